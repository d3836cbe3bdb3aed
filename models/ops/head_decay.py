"""Decayed linear attention with one decay for a head, a chunk at a time.

The block decomposition of Mamba-2 (arXiv 2405.21060, section 6): within a chunk by scores, between
chunks by states. Heads of a group stay side by side, as they arrive, so that one product serves the
whole group.

With G the sum of a token's log decays since its chunk or document began, `out_i` holds the factor
`exp(G_i)` and all that is made of `v_j` the factor `exp(-G_j)`. So the gradient of G takes no
product of its own:  `dG_i = out_i . dout_i - v_i . dv_i`,  and for the last token `S' . dS'` more.

Legend: B batch, T time, N chunks, C tokens in a chunk, G query/key groups, H heads, R = H / G heads
a group, K key dim, V value dim, X = R * V.
"""

from typing import Any

import torch
from torch import Tensor

from .chunks import (
    ChunkMask,
    carried_decay,
    chunk_mask,
    document_cumsum,
    entering_decay,
    leaving_decay,
    pad_time,
    padding_to,
    pair_decay,
)


def chunked_head_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Run `decayed_attention` with a decay `[B, T, H]`; inputs are prepared: scaled, of one dtype.

    Returns:
        Outputs `[B, T, H, V]`, and the last state.
    """
    batch, length = v.shape[:2]
    chunk_size = min(chunk_size, length)
    padding = padding_to(length, chunk_size)
    mask = chunk_mask(segments, (batch, length + padding), chunk_size, v.device)
    q, k, v, log_decay = (
        pad_time(x, padding).unflatten(1, (-1, chunk_size)) for x in (q, k, v, log_decay)
    )
    q, k = (x.transpose(2, 3) for x in (q, k))  # [B, N, G, C, K]; v stays [B, N, C, H, V]
    cumulative_BNHC = document_cumsum(log_decay, mask)
    inputs = (q, k, v, cumulative_BNHC, state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        out, last = _Chunks.apply(mask, *inputs)
    else:
        out, last, _, _ = _forward(mask, *inputs)
    return out.flatten(1, 2)[:, :length], last


def _forward(
    mask: ChunkMask, q: Tensor, k: Tensor, v: Tensor, cumulative: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs `[B, N, C, H, V]`, last state, decays of pairs, states entering each chunk."""
    pairs_BNHCC, groups = pair_decay(cumulative, mask), q.shape[2]
    scores = (q @ k.mT)[:, :, :, None] * pairs_BNHCC.unflatten(2, (groups, -1))
    within_BNHCV = _each_head(scores.flatten(2, 3), v.transpose(2, 3))
    leaving, entering = _ends(cumulative, mask)
    written = k.mT @ _by_group(v * leaving, groups)
    states, last = _scan(written, _carried(cumulative, mask, groups), _wide(state, groups))
    across = _by_head(q @ states, v.shape)
    out = torch.addcmul(within_BNHCV.transpose(2, 3), across, entering)
    last = _narrow(last, state.shape).clone()  # a state is written in place: it must be no view
    return out, last, pairs_BNHCC, states


class _Chunks(torch.autograd.Function):
    """`_forward` with its gradient written out."""

    @staticmethod
    def forward(ctx: Any, mask: ChunkMask, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out, last, pairs, states = _forward(mask, *inputs)
        q, k, v, cumulative, state = inputs
        ctx.mask, ctx.shape = mask, state.shape
        ctx.save_for_backward(q, k, v, cumulative, pairs, states, out, last)
        return out, last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cumulative, pairs, states, out, last = ctx.saved_tensors
        dout, dlast = gradients
        groups = q.shape[2]
        leaving, entering = _ends(cumulative, ctx.mask)
        carried = _carried(cumulative, ctx.mask, groups)

        dscored, dv_BNCHV = _within_backward(q, k, v, pairs, dout)
        dread = _by_group(dout * entering, groups)
        after, dstate = _scan(q.mT @ dread, carried, _wide(dlast, groups), from_end=True)
        dv = torch.addcmul(dv_BNCHV, _by_head(k @ after, v.shape), leaving)
        dq = torch.matmul(dscored, k).add_(dread @ states.mT)
        dk = torch.matmul(dscored.mT, q).add_(_by_group(v * leaving, groups) @ after.mT)

        dcumulative = ((out * dout).sum(dim=-1) - (v * dv).sum(dim=-1)).transpose(2, 3).contiguous()
        product = (states[:, 1:] * after[:, :-1]).unflatten(-1, (-1, v.shape[-1]))
        dcumulative[:, :-1, :, -1] += product.sum(dim=(3, 5)).flatten(2)
        dcumulative[:, -1, :, -1] += (last * dlast).sum(dim=(-2, -1))
        return None, dq, dk, dv, dcumulative, _narrow(dstate, ctx.shape)


def _within_backward(
    q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the products `q k^T`, `[B, N, G, C, C]`, and, within chunks alone, of v."""
    v_BNHCV, dout_BNHCV = v.transpose(2, 3), dout.transpose(2, 3)
    grouped = (2, (q.shape[2], -1))
    scores = (q @ k.mT)[:, :, :, None] * pairs.unflatten(*grouped)
    dv_BNHCV = _each_head(scores.flatten(2, 3).mT, dout_BNHCV)
    dscores = _each_head(dout_BNHCV, v_BNHCV.mT).mul_(pairs)
    return dscores.unflatten(*grouped).sum(dim=3), dv_BNHCV.transpose(2, 3)


def _each_head(left_BNHCX: Tensor, right_BNHXY: Tensor) -> Tensor:
    """`left @ right`; on a CPU head by head, which copies neither out of the layout it has."""
    if not left_BNHCX.is_cpu or torch.compiler.is_compiling():
        return left_BNHCX @ right_BNHXY
    batch, chunks, heads, size = left_BNHCX.shape[:-1]
    out = left_BNHCX.new_empty(heads, batch * chunks, size, right_BNHXY.shape[-1])
    for head in range(heads):
        pair = (x[:, :, head].flatten(0, 1) for x in (left_BNHCX, right_BNHXY))
        torch.bmm(*pair, out=out[head])
    return out.unflatten(1, (batch, chunks)).permute(1, 2, 0, 3, 4)


def _ends(cumulative: Tensor, mask: ChunkMask) -> tuple[Tensor, Tensor]:
    """Decays up to the chunk's end and since its start, `[B, N, C, H, 1]`."""
    ends = (decay(cumulative, mask) for decay in (leaving_decay, entering_decay))
    leaving, entering = (x.mT[..., None] for x in ends)
    return leaving, entering


def _carried(cumulative: Tensor, mask: ChunkMask, groups: int) -> Tensor:
    """Decay of a whole chunk, `[B, N, G, 1, R, 1]`."""
    return carried_decay(cumulative, mask).unflatten(2, (groups, 1, -1))[..., None]


def _by_group(x_BNCHV: Tensor, groups: int) -> Tensor:
    """View `[B, N, C, H, V]` as `[B, N, G, C, X]`."""
    return x_BNCHV.unflatten(3, (groups, -1)).flatten(-2).transpose(2, 3)


def _by_head(x_BNGCX: Tensor, shape: torch.Size) -> Tensor:
    """View `[B, N, G, C, X]` as `[B, N, C, H, V]`."""
    return x_BNGCX.transpose(2, 3).reshape(shape)


def _wide(state_BHKV: Tensor, groups: int) -> Tensor:
    """View `[B, H, K, V]` as `[B, G, K, X]`: the heads of a group side by side."""
    return state_BHKV.unflatten(1, (groups, -1)).transpose(2, 3).flatten(-2)


def _narrow(state_BGKX: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_wide`."""
    return state_BGKX.unflatten(-1, (-1, shape[-1])).transpose(2, 3).flatten(1, 2)


def _scan(
    written: Tensor, carried: Tensor, state: Tensor, *, from_end: bool = False
) -> tuple[Tensor, Tensor]:
    """Carry the state `[B, G, K, X]` over chunks; return those entering each, and the last one.

    From the end it is its own gradient: of what the chunks read of the states, and of the last
    state, it makes the gradients of the states leaving each chunk, and of the first one.
    """
    states, heads = [], (carried.shape[-2], -1)
    state, order = state.unflatten(-1, heads), -1 if from_end else 1
    chunks = zip(written.unbind(1)[::order], carried.unbind(1)[::order], strict=True)
    for added, decay in chunks:
        states.append(state)
        state = torch.addcmul(added.unflatten(-1, heads), decay, state)
    return torch.stack(states[::order], dim=1).flatten(-2), state.flatten(-2)
