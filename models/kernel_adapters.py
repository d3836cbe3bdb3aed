"""Fused kernels under the signatures of our own operators.

fla (flash-linear-attention 0.6) takes packed documents as one flat row with `cu_seqlens` and a
state for each document; mamba-ssm and causal-conv1d take document numbers from 0 (`seq_idx`).
Each adapter gets the package's function first, then what the operator got, and returns what the
operator returns. Signatures were read, not run: `models.kernels` compares each with a plain
recurrence before it is used.

Legend: B batch, T time, G query/key groups, H heads, K key dim, V value dim, D channels, W filter
width.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernel_documents import documents_of, first_states, last_states

SCAN_CHUNK = 256
"""mamba-ssm's own choice of tokens in a chunk."""

_ALIASES = {"q": ("q", "r"), "g": ("g", "gk", "w")}


def named_alike(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return fla's `function` under one set of argument names.

    Its versions call the log decay `g`, `gk` or `w` and the query `q` or `r`; older ones put heads
    before time unless told otherwise.
    """
    known = inspect.signature(function).parameters
    names = {
        ours: next((theirs for theirs in many if theirs in known), ours)
        for ours, many in _ALIASES.items()
    }
    fixed = {"head_first": False} if "head_first" in known else {}

    def call(**arguments: Any) -> Any:
        return function(**fixed, **{names.get(key, key): x for key, x in arguments.items()})

    return call


def _by_document(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    scale: float | None,
    segments: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run one of fla's chunk functions over packed documents; the state stays float32."""
    state = None if state is None else state.float()
    options = {"scale": inputs["q"].shape[-1] ** -0.5 if scale is None else scale}
    with torch.autocast(inputs["q"].device.type, enabled=False):
        if segments is None:
            return function(**inputs, **options, initial_state=state, output_final_state=True)
        documents = documents_of(segments)
        flat = {name: x.flatten(0, 1)[None] for name, x in inputs.items()}
        out, states = function(
            **flat,
            **options,
            initial_state=first_states(state, documents),
            output_final_state=True,
            cu_seqlens=documents.wide_bounds,
        )
    return out[0].unflatten(0, segments.shape), last_states(states, documents)


def decayed_attention(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """fla's `chunk_simple_gla` (decay by head) or `chunk_gla` (by channel); groups are repeated."""
    repeats = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in (q, k))
    inputs = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "g": log_decay.float()}
    return _by_document(function, inputs, scale, segments, state)


def delta_rule(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """fla's `chunk_gated_delta_rule` (decay by head) or `chunk_kda` (by channel)."""
    inputs = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "g": log_decay.float()}
    return _by_document(function, inputs | {"beta": beta.float()}, scale, segments, state)


def dplr(
    function: Callable[..., Any],
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
    """fla's `chunk_dplr_delta_rule`, which is behind its RWKV-7."""
    if log_decay.dim() == 3:
        log_decay = log_decay[..., None].expand(k.shape)
    keys = {"q": q, "k": k, "a": a, "b": b}
    inputs = {name: x.to(v.dtype) for name, x in keys.items()}
    inputs |= {"v": v, "g": log_decay.float()}
    return _by_document(function, inputs, scale, segments, state)


def erase_write(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    log_decay: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Gated DeltaNet-2 as `dplr`: `a = exp(g) erase` reads the decayed state, `b = -k`."""
    if log_decay.dim() == 3:
        log_decay = log_decay[..., None].expand(k.shape)
    return dplr(function, q, k, v, erase * log_decay.exp(), -k, log_decay, **options)


def scan(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    x: Tensor,
    time_step: Tensor,
    rate: Tensor,
    *,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's `mamba_chunk_scan_combined`: `S = exp(dt A) S + dt k x^T`, `o = S^T q`.

    It can't stand in for `decayed_attention`, whose decay and values are independent: values would
    be divided by the time step, and the gradient of a small one drowned in rounding.

    Args:
        function: the package's.
        q: C of Mamba-2, `[B, T, G, K]`.
        k: B of Mamba-2, `[B, T, G, K]`.
        x: `[B, T, H, V]`.
        time_step: `dt > 0`, `[B, T, H]`.
        rate: `A < 0`, `[H]`.
        segments: document ids `[B, T]`; None is one document.
        state: `[B, H, K, V]`, of the first token's document; None is zeros.
    """
    with torch.autocast(x.device.type, enabled=False):
        out, last = function(
            x,
            time_step.float(),
            rate.float(),
            k.to(x.dtype),
            q.to(x.dtype),
            chunk_size=SCAN_CHUNK,
            initial_states=None if state is None else state.float().mT.contiguous(),
            seq_idx=None if segments is None else documents_of(segments).places_BT,
            return_final_states=True,
        )
    return out, last.mT.float()


def short_convolution(
    function: Callable[..., Any],
    x: Tensor,
    weight: Tensor,
    *,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, None]:
    """causal-conv1d's `causal_conv1d_fn`, channels last.

    It takes documents or a tail, not both; so a tail goes in front, as what it is: earlier inputs
    of the first document. Its filters begin with the input furthest back.
    """
    before, places = 0, None
    if state is not None:
        before = state.shape[1]
        x = torch.cat([state.to(x.dtype), x], dim=1)
    if segments is not None:
        places = documents_of(segments).places_BT
        places = torch.cat([places[:, :1].expand(-1, before), places], dim=1).contiguous()
    with torch.autocast(x.device.type, enabled=False):
        taps_DW = weight.to(x.dtype).flip(1).contiguous()
        out = function(x.transpose(1, 2), taps_DW, seq_idx=places)
    return out.transpose(1, 2)[:, before:], None
