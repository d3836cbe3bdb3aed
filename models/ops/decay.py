"""Decayed linear attention: the chunk primitive behind Mamba-2, RetNet and Lightning attention.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = scale * S_t^T q_t

Source: Mamba-2's state space duality (arXiv 2405.21060, section 6) and gated linear attention
(arXiv 2312.06635).

Legend: B batch, T time, N chunks, C tokens in a chunk, G query/key groups, H heads, R = H / G heads
a group, K key dim, V value dim.
"""

import torch
from torch import Tensor

from .chunks import (
    carried_decay,
    chunk_mask,
    document_cumsum,
    entering_decay,
    from_chunks,
    leaving_decay,
    pad_time,
    padding_to,
    pair_decay,
    same_document,
    to_chunks,
    working_dtype,
)
from .twin import runs_step_by_step


def decayed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence above over packed documents, a chunk at a time.

    Args:
        q: queries `[B, T, G, K]`; G divides H, and heads of a group share queries and keys.
        k: keys `[B, T, G, K]`.
        v: values `[B, T, H, V]`.
        log_decay: `g <= 0`, natural log, `[B, T, H]`.
        scale: multiplies the queries; default `K ** -0.5`.
        segments: document ids `[B, T]`, each document contiguous; None is one document.
        state: `[B, H, K, V]`, of the first token's document; None is zeros.
        chunk_size: tokens handled by one matrix product; any value gives the same result.

    Returns:
        Outputs `[B, T, H, V]` in v's dtype, and the state of the last token's document
        `[B, H, K, V]`, at least float32.

    Raises:
        ValueError: if shapes don't fit together.
    """
    _check(q, k, v, log_decay)
    if runs_step_by_step():
        return decayed_attention_reference(
            q, k, v, log_decay, scale=scale, segments=segments, state=state
        )
    if q.shape[1] == 1:
        return _single_step(q, k, v, log_decay, scale, state)
    with torch.autocast(v.device.type, enabled=False):
        return _chunked(q, k, v, log_decay, scale, segments, state, chunk_size)


def decayed_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step-by-step twin of `decayed_attention`: same arguments and results, one token at a time."""
    dtype = v.dtype
    q, k, v, log_decay, state_BHKV = _prepare(q, k, v, log_decay, scale, state)
    outputs = []
    for time in range(v.shape[1]):
        continues = same_document(segments, time)
        if continues is not None:
            state_BHKV = state_BHKV * continues[:, None, None, None]
        state_BHKV, out_BHV = _step(
            q[:, time], k[:, time], v[:, time], log_decay[:, time], state_BHKV
        )
        outputs.append(out_BHV)
    return torch.stack(outputs, dim=1).to(dtype), state_BHKV


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> None:
    heads, groups = v.shape[2], q.shape[2]
    if q.shape != k.shape or heads % groups or q.shape[:2] != v.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit: q, k share "
            "one shape [B, T, G, K], v is [B, T, H, V], and G divides H"
        )
    if log_decay.shape != v.shape[:3]:
        raise ValueError(
            f"log_decay is {tuple(log_decay.shape)}, expected [B, T, H] = {tuple(v.shape[:3])}"
        )


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = working_dtype(v.dtype)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], q.shape[-1], v.shape[-1], dtype=dtype)
    return q.to(dtype) * factor, k.to(dtype), v.to(dtype), log_decay.to(dtype), state.to(dtype)


def _step(
    q_BGK: Tensor, k_BGK: Tensor, v_BHV: Tensor, log_decay_BH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    repeats = v_BHV.shape[1] // q_BGK.shape[1]
    k_BHK = k_BGK.repeat_interleave(repeats, dim=1)
    q_BHK = q_BGK.repeat_interleave(repeats, dim=1)
    written = k_BHK[..., :, None] @ v_BHV[..., None, :]
    state_BHKV = log_decay_BH.exp()[..., None, None] * state_BHKV + written
    return state_BHKV, (q_BHK[..., None, :] @ state_BHKV)[..., 0, :]


def _single_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    q, k, v, log_decay, state = _prepare(q, k, v, log_decay, scale, state)
    with torch.autocast(v.device.type, enabled=False):
        state, out_BHV = _step(q[:, 0], k[:, 0], v[:, 0], log_decay[:, 0], state)
    return out_BHV[:, None].to(dtype), state


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float | None,
    segments: Tensor | None,
    state: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    dtype, (batch, length, heads) = v.dtype, v.shape[:3]
    q, k, v, log_decay, state = _prepare(q, k, v, log_decay, scale, state)
    chunk_size = min(chunk_size, length)
    padding = padding_to(length, chunk_size)
    mask = chunk_mask(segments, (batch, length + padding), chunk_size, v.device)
    q, k, v = (to_chunks(pad_time(x, padding), chunk_size) for x in (q, k, v))
    decay = to_chunks(pad_time(log_decay, padding)[..., None], chunk_size)[..., 0]
    cumulative = document_cumsum(decay, mask)

    groups = q.shape[1]
    pairs = pair_decay(cumulative, mask).unflatten(1, (groups, -1))  # [B, G, R, N, C, C]
    scores = (q @ k.mT)[:, :, None] * pairs
    within = scores.flatten(1, 2) @ v  # [B, H, N, C, V]

    written = k.mT @ _by_group(v * leaving_decay(cumulative, mask)[..., None], groups)
    states, last = _scan(_by_head(written, heads), carried_decay(cumulative, mask), state)
    across = _by_head(q @ _by_group(states, groups), heads)
    out = within + across * entering_decay(cumulative, mask)[..., None]
    return from_chunks(out, length).to(dtype), last


def _by_group(x_BHNXV: Tensor, groups: int) -> Tensor:
    """Lay the heads of a group side by side: `[B, H, N, X, V]` to `[B, G, N, X, R*V]`."""
    return x_BHNXV.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5).flatten(-2)


def _by_head(x_BGNXV: Tensor, heads: int) -> Tensor:
    """Undo `_by_group`."""
    repeats = heads // x_BGNXV.shape[1]
    return x_BGNXV.unflatten(-1, (repeats, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)


def _scan(written_BHNKV: Tensor, carried_BHN: Tensor, state_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the state over chunks; return the state entering each chunk, and the last one."""
    entering = []
    for written, carried in zip(written_BHNKV.unbind(2), carried_BHN.unbind(2), strict=True):
        entering.append(state_BHKV)
        state_BHKV = carried[..., None, None] * state_BHKV + written
    return torch.stack(entering, dim=2), state_BHKV
