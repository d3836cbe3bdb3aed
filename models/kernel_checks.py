"""What a fused kernel must equal before it may run: a plain recurrence, forward and backward.

All the recurrences here are one (references as in the operators themselves):

    S_t = Diag(exp g_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T          o_t = scale * S_t^T q_t

It is written out once more, apart from the operators, because they ask this file whether a kernel
may stand in for them; and it has no chunks, so that no chunking is checked against itself.

Legend: B batch, T time, G query/key groups, H heads, K key dim, V value dim, D channels, W filter
width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH, BATCH, HEADS = 160, 2, 2
FIRST_ROW = (70, 1, 89)
"""Lengths of the documents of a trial's first row; its second row is one document."""

Operation = Callable[..., tuple[Tensor, Tensor | None]]
"""`(*inputs, segments=, state=) -> (out, state)`; options besides are the operator's own."""


@dataclass(frozen=True)
class Trial:
    """Inputs of one small forward and backward.

    Attributes:
        inputs: float32, in the order of the operator's arguments, by name.
        state: what the first documents start from; None where the operator has none.
        half: names of the inputs that a kernel gets in half precision.
    """

    inputs: dict[str, Tensor]
    state: Tensor | None
    half: frozenset[str]


def largest_difference(
    kernel: Operation, plain: Operation, trial: Trial, dtype: torch.dtype
) -> tuple[float, str]:
    """Return the largest relative difference of outputs and gradients, and where it was.

    Both ways are tried that kernels branch on: packed documents with a state, one document without.
    Inputs are rounded to the kernel's precision beforehand, so that only its own error counts. It
    is infinite where the kernel gives no number.
    """
    worst, where = 0.0, "nowhere"
    for packed in (True, False):
        ours = _everything(kernel, trial, dtype, packed, dtype)
        for name, expected in _everything(plain, trial, dtype, packed, torch.float32).items():
            difference = (ours[name].float() - expected).norm() / expected.norm().clamp_min(1e-6)
            error = float(difference.nan_to_num(nan=float("inf")))
            if error > worst:
                worst, where = error, name
    return worst, where


def _everything(
    operation: Operation, trial: Trial, rounding: torch.dtype, packed: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Run forward and backward; return outputs and the gradient of every input."""
    device = next(iter(trial.inputs.values())).device
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast(device):
        leaves = {
            name: x.to(rounding if name in trial.half else x.dtype)
            .to(dtype if name in trial.half else x.dtype)
            .detach()
            .clone()
            .requires_grad_()
            for name, x in trial.inputs.items()
        }
        options: dict[str, Any] = {}
        state = trial.state.clone().requires_grad_() if packed and trial.state is not None else None
        if packed:
            options = {"segments": _segments(device), "state": state}
        out, last = operation(*leaves.values(), **options)
        results = {"output": out} | ({} if last is None else {"state": last})
        cotangents = [draw(x.shape, device, seed) for seed, x in enumerate(results.values(), 7)]
        torch.autograd.backward(
            list(results.values()),
            [g.to(x.dtype) for g, x in zip(cotangents, results.values(), strict=True)],
        )
    found = {name: x.detach() for name, x in results.items()}
    given = leaves if state is None else leaves | {"first state": state}
    for name, leaf in given.items():
        assert leaf.grad is not None
        found[f"gradient of {name}"] = leaf.grad
    return found


def _no_autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


def _segments(device: torch.device) -> Tensor:
    segments = torch.zeros(BATCH, LENGTH, dtype=torch.long, device=device)
    lengths = torch.tensor(FIRST_ROW, device=device)
    segments[0] = torch.arange(len(FIRST_ROW), device=device).repeat_interleave(lengths)
    return segments


def draw(shape: tuple[int, ...] | torch.Size, device: torch.device, seed: int) -> Tensor:
    """Draw on the host: the same numbers on every device, and nobody's generator moves."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def recurrence_trial(
    keys: int, values: int, device: torch.device, decay: str, extra: tuple[str, ...]
) -> Trial:
    """Draw inputs of a recurrence: q, k, then `extra`, in the operators' order.

    `decay` is "head" or "channel": most tokens forget little, every fifth nearly everything, as a
    gate does at the start of a sentence. "mild" is by channel within RWKV-7's bound of -0.6.
    """
    heads = (BATCH, LENGTH, HEADS)
    q, k = (F.normalize(draw((*heads, keys), device, seed), dim=-1) for seed in (0, 1))
    inputs = {"q": q * keys**0.5, "k": k}
    shape = heads if decay == "head" else (*heads, keys)
    uniform = torch.sigmoid(draw(shape, device, 3))
    strong = (
        torch.arange(LENGTH, device=device).remainder(5).eq(4).view(1, -1, *[1] * len(shape[2:]))
    )
    mild = -0.6 * uniform
    log_decay = mild if decay == "mild" else torch.where(strong, -6.0 * uniform, 0.3 * mild)
    named = {"log_decay": log_decay, "v": draw((*heads, values), device, 2)}
    for seed, name in enumerate(extra, 4):
        inputs[name] = named[name] if name in named else _gate(name, k, seed)
    return Trial(inputs, draw((BATCH, HEADS, keys, values), device, 9), _HALF & inputs.keys())


_HALF = frozenset({"q", "k", "v", "a", "b", "erase", "x", "weight"})


def _gate(name: str, k: Tensor, seed: int) -> Tensor:
    if name == "beta":  # up to 2: negative eigenvalues
        return 2 * torch.sigmoid(draw(k.shape[:-1], k.device, seed))
    if name == "a":
        return -k
    return k * torch.sigmoid(draw(k.shape, k.device, seed))  # b, or erase: along the key


def convolution_trial(width: int, channels: int, device: torch.device) -> Trial:
    """Draw inputs of a short convolution, whose state is the tail `[B, W-1, D]`."""
    inputs = {
        "x": draw((BATCH, LENGTH, channels), device, 0),
        "weight": draw((channels, width), device, 1),
    }
    return Trial(inputs, draw((BATCH, width - 1, channels), device, 2), _HALF & inputs.keys())


def scan_trial(keys: int, values: int, device: torch.device) -> Trial:
    """Draw inputs of Mamba-2's scan: one group of queries and keys, steps as at its start."""
    groups = (BATCH, LENGTH, 1, keys)
    inputs = {
        "q": draw(groups, device, 0),
        "k": draw(groups, device, 1),
        "x": draw((BATCH, LENGTH, HEADS, values), device, 2),
        "time_step": 0.1 * torch.sigmoid(draw((BATCH, LENGTH, HEADS), device, 3)),
        "rate": -torch.linspace(1, 16, HEADS, device=device),
    }
    return Trial(inputs, draw((BATCH, HEADS, keys, values), device, 9), _HALF & inputs.keys())


def plain_decayed(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """`models.ops.decay.decayed_attention`, plainly."""
    nothing = torch.zeros_like(k)
    return _recur(q, k, v, nothing, nothing, _by_channel(log_decay), **options)


def plain_delta(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """`models.ops.delta.delta_rule`, plainly: the decayed state is read, then corrected."""
    g, strength = _by_channel(log_decay), beta[..., None]
    return _recur(q, k, strength * v, k * g.exp(), -strength * k, g, **options)


def plain_erase_write(
    q: Tensor, k: Tensor, erase: Tensor, v: Tensor, log_decay: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """`models.ops.delta.erase_write`, plainly."""
    g = _by_channel(log_decay)
    return _recur(q, k, v, erase * g.exp(), -k, g, **options)


def plain_dplr(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """`models.ops.delta.dplr`, plainly."""
    return _recur(q, k, v, a, b, _by_channel(log_decay), **options)


def plain_scan(
    q: Tensor, k: Tensor, x: Tensor, time_step: Tensor, rate: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Mamba-2's scan, plainly: `S = exp(dt A) S + dt B x^T`, `y = S^T C` (arXiv 2405.21060)."""
    repeats = x.shape[2] // q.shape[2]
    q, k = (y.repeat_interleave(repeats, dim=2) for y in (q, k))
    return plain_decayed(q, k, time_step[..., None] * x, time_step * rate, scale=1.0, **options)


def plain_convolution(
    x: Tensor, weight: Tensor, *, segments: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, None]:
    """`models.ops.convolution.short_convolution`, plainly; column j weighs j steps back."""
    out, width = x * weight[:, 0], weight.shape[1]
    tail = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    padded = torch.cat([tail, x], dim=1)
    for back in range(1, width):
        earlier = padded[:, width - 1 - back : padded.shape[1] - back]
        if segments is not None:
            ids = torch.cat([segments[:, :1].expand(-1, back), segments], dim=1)
            earlier = earlier * (ids[:, :-back] == segments)[..., None]
        out = out + earlier * weight[:, back]
    return out, None


def _by_channel(log_decay: Tensor) -> Tensor:
    return log_decay if log_decay.dim() == 4 else log_decay[..., None]


def _recur(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    memory = (
        v.new_zeros(*v.shape[:1], v.shape[2], k.shape[-1], v.shape[-1]) if state is None else state
    )
    outputs = []
    for time in range(v.shape[1]):
        if segments is not None and time:
            same_B = segments[:, time] == segments[:, time - 1]
            memory = memory * same_B[:, None, None, None]
        read = a[:, time, :, None] @ memory
        memory = memory * log_decay[:, time].exp()[..., None] + b[:, time, ..., None] @ read
        memory = memory + k[:, time, ..., None] @ v[:, time, :, None]
        outputs.append((factor * q[:, time, :, None] @ memory)[:, :, 0])
    return torch.stack(outputs, dim=1), memory
