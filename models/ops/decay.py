"""Decayed linear attention: behind Mamba-2, RetNet, Lightning attention, GLA and HGRN-2.

    S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T          o_t = scale * S_t^T q_t

Source: Mamba-2's state space duality (arXiv 2405.21060, section 6) and gated linear attention
(arXiv 2312.06635).

Legend: B batch, T time, G query/key groups, H heads, R = H / G heads a group, K key dim, V value
dim.
"""

import torch
from torch import Tensor

from ..kernels import find
from .channel_decay import chunked_decayed_attention
from .head_decay import chunked_head_decay
from .steps import by_channel, check_decay, column, prepare, read, row, step_through
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
        log_decay: `g <= 0`, natural log, `[B, T, H]`; or, where G equals H, one for each key
            channel, `[B, T, H, K]`.
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
    kernel = find("decayed_attention", v, q, log_decay) if q.shape[1] > 1 else None
    if kernel is not None:
        return kernel(q, k, v, log_decay, scale=scale, segments=segments, state=state)
    dtype = v.dtype
    q, v, k, log_decay, state = prepare(q, v, (k, log_decay), scale, state)
    with torch.autocast(v.device.type, enabled=False):
        if q.shape[1] == 1:
            out, state = _once(q, k, v, by_channel(log_decay), state)
        else:
            run = chunked_head_decay if log_decay.dim() == 3 else chunked_decayed_attention
            out, state = run(q, k, v, log_decay, segments, state, chunk_size)
    return out.to(dtype), state


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
    _check(q, k, v, log_decay)
    dtype = v.dtype
    q, v, k, log_decay, state = prepare(q, v, (k, log_decay), scale, state)
    inputs = (q, k, v, by_channel(log_decay))
    out, state = step_through(_step, inputs, state, segments)
    return out.to(dtype), state


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> None:
    heads, groups = v.shape[2], q.shape[2]
    if q.shape != k.shape or heads % groups or q.shape[:2] != v.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit: q, k share "
            "one shape [B, T, G, K], v is [B, T, H, V], and G divides H"
        )
    check_decay(log_decay, v.shape[:3], q.shape[-1])
    if log_decay.dim() == 4 and groups != heads:
        raise ValueError(
            f"q {tuple(q.shape)} has {groups} groups for {heads} heads: a decay by channel "
            "[B, T, H, K] needs queries and keys for each head"
        )


def _step(
    q_BGK: Tensor, k_BGK: Tensor, v_BHV: Tensor, log_decay_BHK: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    repeats = v_BHV.shape[1] // q_BGK.shape[1]
    k_BHK = k_BGK.repeat_interleave(repeats, dim=1)
    q_BHK = q_BGK.repeat_interleave(repeats, dim=1)
    state_BHKV = column(log_decay_BHK.exp()) * state_BHKV + column(k_BHK) @ row(v_BHV)
    return state_BHKV, read(q_BHK, state_BHKV)


def _once(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    grouped = (1, (q.shape[2], -1))
    decayed = (column(log_decay[:, 0].exp()) * state).unflatten(*grouped)
    # Without gradients nobody else holds `decayed`, and the state is what takes time here.
    update = decayed.addcmul if torch.is_grad_enabled() else decayed.addcmul_
    state = update(k[:, 0, :, None, :, None], v[:, 0].unflatten(*grouped)[..., None, :])
    out_BGR1V = q[:, 0, :, None, None] @ state
    return out_BGR1V.flatten(1, 3)[:, None], state.flatten(1, 2)
