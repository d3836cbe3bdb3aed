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
    decayed_pairs,
    document_cumsum,
    entering_decay,
    leaving_decay,
    pad_time,
    padding_to,
    pair_decay,
    same_document,
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
    q, k, v, log_decay, state = (x.to(dtype) for x in (q, k, v, log_decay, state))
    return q if factor == 1 else q * factor, k, v, log_decay, state


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
    grouped = (1, (q.shape[2], -1))
    with torch.autocast(v.device.type, enabled=False):
        decayed = (log_decay[:, 0].exp()[..., None, None] * state).unflatten(*grouped)
        # Without gradients nobody else holds `decayed`, and the state is what takes time here.
        update = decayed.addcmul if torch.is_grad_enabled() else decayed.addcmul_
        state = update(k[:, 0, :, None, :, None], v[:, 0].unflatten(*grouped)[..., None, :])
        out_BGR1V = q[:, 0, :, None, None] @ state
    return out_BGR1V.flatten(1, 3)[:, None].to(dtype), state.flatten(1, 2)


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
    """Heads of a group stay side by side, as they arrive, so one product serves the whole group."""
    dtype, (batch, length) = v.dtype, v.shape[:2]
    q, k, v, log_decay, state = _prepare(q, k, v, log_decay, scale, state)
    chunk_size = min(chunk_size, length)
    padding = padding_to(length, chunk_size)
    mask = chunk_mask(segments, (batch, length + padding), chunk_size, v.device)
    q, k, v, log_decay = (
        pad_time(x, padding).unflatten(1, (-1, chunk_size)) for x in (q, k, v, log_decay)
    )
    q, k = (x.transpose(2, 3) for x in (q, k))  # [B, N, G, C, K]; v stays [B, N, C, H, V]
    cumulative = document_cumsum(log_decay, mask)  # [B, N, H, C]

    grouped = (2, (q.shape[2], -1))
    pairs = pair_decay(cumulative, mask).unflatten(*grouped)  # [B, N, G, R, C, C]
    scores = decayed_pairs((q @ k.mT)[:, :, :, None], pairs, cumulative.unflatten(*grouped))
    within = scores.flatten(2, 3) @ v.transpose(2, 3)  # [B, N, H, C, V]

    leaving, entering = (
        decay(cumulative, mask).mT[..., None] for decay in (leaving_decay, entering_decay)
    )
    written = k.mT @ _by_group(v * leaving, q.shape[2])
    states, last = _scan(written, carried_decay(cumulative, mask), state)
    across = (q @ states).transpose(2, 3).reshape(v.shape)
    out = torch.addcmul(within.transpose(2, 3), across, entering)
    return out.flatten(1, 2)[:, :length].to(dtype), last


def _by_group(x_BNCHV: Tensor, groups: int) -> Tensor:
    """View `[B, N, C, H, V]` as `[B, N, G, C, R*V]`."""
    return x_BNCHV.unflatten(3, (groups, -1)).flatten(-2).transpose(2, 3)


def _scan(written_BNGKX: Tensor, carried_BNH: Tensor, state_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the state over chunks; return the state entering each chunk, and the last one.

    Inside, `X = R*V`: the heads of a group side by side.
    """
    groups, dim = written_BNGKX.shape[2], state_BHKV.shape[-1]
    state = state_BHKV.unflatten(1, (groups, -1)).transpose(2, 3)  # [B, G, K, R, V]
    entering = []
    for written, carried in zip(written_BNGKX.unbind(1), carried_BNH.unbind(1), strict=True):
        entering.append(state)
        state = carried.unflatten(1, (groups, 1, -1))[..., None] * state
        state = state + written.unflatten(-1, (-1, dim))
    return torch.stack(entering, dim=1).flatten(-2), state.transpose(2, 3).flatten(1, 2)
