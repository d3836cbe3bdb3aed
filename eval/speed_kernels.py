"""What going through our operators costs on CUDA, over calling the package's kernel directly.

Both get the same tensors, forward and backward, and take turns. Where a kernel is missing or
unsound the reason stands in its place.

Legend: B batch, T time, H heads, K key dim, V value dim.
"""

import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from eval.speed_timing import take_turns
from eval.table import Entry, Table
from models.kernel_adapters import SCAN_CHUNK, named_alike
from models.kernels import KERNELS, describe, find
from models.ops.convolution import short_convolution
from models.ops.decay import decayed_attention
from models.ops.delta import delta_rule, dplr, erase_write

LENGTH = 2048


class Settings(Protocol):
    """What is needed of the suite's settings."""

    dim: int
    head_dim: int
    batch: int
    rounds: int


def compare_kernels(config: Settings, device: str = "cuda") -> dict[str, dict[str, Any]]:
    """Time each operator through our dispatch and its kernel called directly, at 2048 tokens."""
    found: dict[str, dict[str, Any]] = {}
    for name, kernel in KERNELS.items():
        if name.split()[0] not in OPERATORS:
            continue
        inputs = _inputs(name, config, device)
        values, queries = inputs["x" if "x" in inputs else "v"], next(iter(inputs.values()))
        if name == "short_convolution":
            queries = inputs["weight"]
        if find(name.split()[0], values, queries, inputs.get("log_decay")) is None:
            found[name] = {"ratio": None, "why": describe()[name]}
            continue
        function = getattr(import_module(kernel.module), kernel.name)
        calls = {
            "ours": _backward(OPERATORS[name.split()[0]], inputs),
            "direct": _backward(DIRECT[name.split()[0]](function), inputs),
        }
        seconds = take_turns(calls, 10 * config.rounds, device, warm_up=5)
        medians = {who: statistics.median(times) for who, times in seconds.items()}
        ratio = medians["ours"] / medians["direct"]
        found[name] = {"ratio": ratio, "seconds": medians, "kernel": kernel.name}
    return found


def _inputs(name: str, config: Settings, device: str) -> dict[str, Tensor]:
    """Draw tensors as they come in training: half precision, but for gates."""
    keys = config.head_dim
    trial = KERNELS[name].trial(
        4 if name == "short_convolution" else keys, keys, torch.device(device)
    )
    sizes = {2: config.dim // config.head_dim}
    grown: dict[str, Tensor] = {}
    for label, x in trial.inputs.items():
        if x.dim() > 2:
            repeats = [config.batch, -(-LENGTH // x.shape[1]), *([1] * (x.dim() - 2))]
            if x.dim() > 2 and label not in ("x",) and x.shape[2] > 1:
                repeats[2] = max(1, sizes[2] // x.shape[2])
            x = x[:1].repeat(*repeats)[:, :LENGTH]
        grown[label] = x.to(torch.bfloat16 if label in trial.half else x.dtype).contiguous()
    return {label: x.requires_grad_() for label, x in grown.items()}


def _backward(call: Callable[..., Any], inputs: dict[str, Tensor]) -> Callable[[], None]:
    def forward_backward() -> None:
        out = call(*inputs.values())
        out = out[0] if isinstance(out, tuple) else out
        out.backward(torch.ones_like(out))
        for x in inputs.values():
            x.grad = None

    return forward_backward


def _scan(q: Tensor, k: Tensor, x: Tensor, time_step: Tensor, rate: Tensor) -> Any:
    run = find("scan", x, q)
    assert run is not None
    return run(q, k, x, time_step, rate)


OPERATORS: dict[str, Callable[..., Any]] = {
    "decayed_attention": decayed_attention,
    "delta_rule": delta_rule,
    "erase_write": erase_write,
    "dplr": dplr,
    "scan": _scan,
    "short_convolution": short_convolution,
}
"""Our operators, by the names of their kernels."""


def _chunked(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """fla's chunk functions by argument name, as its own layers call them."""

    def direct(function: Callable[..., Any]) -> Callable[..., Any]:
        named = named_alike(function)

        def call(*inputs: Tensor) -> Any:
            given = dict(zip(names, inputs, strict=True))
            return named(**given, scale=inputs[0].shape[-1] ** -0.5, output_final_state=True)

        return call

    return direct


def _direct_scan(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(q: Tensor, k: Tensor, x: Tensor, time_step: Tensor, rate: Tensor) -> Any:
        return function(x, time_step, rate, k, q, chunk_size=SCAN_CHUNK, return_final_states=True)

    return call


def _direct_erase_write(function: Callable[..., Any]) -> Callable[..., Any]:
    """A direct caller of the general recurrence must bring its form about, too."""
    call = _chunked("q", "k", "v", "a", "b", "g")(function)

    def direct(q: Tensor, k: Tensor, erase: Tensor, v: Tensor, log_decay: Tensor) -> Any:
        return call(q, k, v, (erase * log_decay.exp()).to(v.dtype), -k, log_decay)

    return direct


DIRECT: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "decayed_attention": _chunked("q", "k", "v", "g"),
    "delta_rule": _chunked("q", "k", "v", "g", "beta"),
    "erase_write": _direct_erase_write,
    "dplr": _chunked("q", "k", "v", "a", "b", "g"),
    "scan": _direct_scan,
    "short_convolution": lambda function: lambda x, weight: function(x.mT, weight).mT,
}
"""How a package's function is called directly with our operators' tensors, but for the convolution:
its filters begin with the input furthest back, ours with the nearest."""


def kernel_table(found: dict[str, dict[str, Any]]) -> Table:
    """Lay out what `compare_kernels` found."""
    rows = []
    for name, one in found.items():
        if one["ratio"] is None:
            rows.append([Entry(name), Entry(""), Entry(""), Entry(one["why"], "faint")])
            continue
        times = [f"{1e6 * one['seconds'][who]:,.0f}" for who in ("ours", "direct")]
        rows.append([Entry(name), *map(Entry, times), Entry(f"{one['ratio']:.2f}", "strong")])
    columns = ["operator", "ours", "direct", "ratio"]
    title = f"microseconds of forward + backward at {LENGTH} tokens, bf16"
    return Table(title, columns, rows, names=1)
