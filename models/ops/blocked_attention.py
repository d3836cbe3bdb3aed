"""Softmax attention over blocks of queries, with its gradient written out: training on CPUs.

torch's fused attention for CPUs multiplies out the upper triangle wherever a mask is given, and its
bfloat16 gradient is several times slower than these products. Here a block of causal queries stops
at its last key, so nearly half of the work is never done. Probabilities are kept for the gradient,
or made again where the sequence is so long that they would fill the memory.

Legend: T query and key time, X rows times heads, C queries in a block, S keys in sight of a block,
B batch, H heads, K key dim, V value dim.
"""

from typing import Any

import torch
from torch import Tensor

from .sight import OwnKeys, is_causal

Visible = Tensor | OwnKeys | None

KEPT_LENGTH = 1024
"""Longest sequence whose probabilities are kept for the gradient, tokens."""


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    window: int | None,
    scale: float,
) -> Tensor:
    """Attend as `softmax_attention` does, each query to keys of the same call.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, T, H, K]`.
        v: values `[B, T, H, V]`.
        visible: `[B or 1, T, T]`, True where the query may see the key, unmade or made; None is
            causal order, and made it shows no later key.
        window: keys that a query sees at most, itself included; None is all.
        scale: multiplies the scores.

    Returns:
        `[B, T, H, V]`.
    """
    q_XTK, k_XTK, v_XTV = (x.transpose(1, 2).flatten(0, 1) for x in (q * scale, k, v))
    run = _Blocks.apply if torch.is_grad_enabled() else _attend
    out_XTV = run(q_XTK, k_XTK, v_XTV, visible, window)
    return out_XTV.unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    window: int | None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Outputs `[X, T, V]`; the probabilities of each block are added to `kept`."""
    out = torch.empty_like(v)
    for rows, columns in _blocks(q, visible, window):
        probabilities = _probabilities(q, k, visible, rows, columns)
        _write(out[:, rows], probabilities, v[:, columns])
        if kept is not None:
            kept.append(probabilities)
    return out


class _Blocks(torch.autograd.Function):
    """With P the probabilities: `dS = P (g v^T - sum(g o))`, `dv, dq, dk = P^T g, dS k, dS^T q`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Visible, window: int | None
    ) -> Tensor:
        kept: list[Tensor] | None = [] if q.shape[1] <= KEPT_LENGTH else None
        out = _attend(q, k, v, visible, window, kept)
        ctx.save_for_backward(q, k, v, out, *(kept or ()))
        ctx.visible, ctx.window = visible, window
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, *kept = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        along = (gradient * out).sum(dim=-1, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, (rows, columns) in enumerate(_blocks(q, ctx.visible, ctx.window)):
            at = (rows, columns)
            probabilities = kept[block] if kept else _probabilities(q, k, ctx.visible, *at)
            dscores = torch.bmm(gradient[:, rows], v[:, columns].mT)
            dscores.sub_(along[:, rows]).mul_(probabilities)
            dv[:, columns].baddbmm_(probabilities.mT, gradient[:, rows])
            dk[:, columns].baddbmm_(dscores.mT, q[:, rows])
            _write(dq[:, rows], dscores, k[:, columns])
        return dq, dk, dv, None, None


def _write(place: Tensor, left: Tensor, right: Tensor) -> None:
    """Multiply into a slice; a compiler can't, it breaks the graph, and needs no such help."""
    if torch.compiler.is_compiling():
        place.copy_(torch.bmm(left, right))
    else:
        torch.bmm(left, right, out=place)


def _blocks(q_XTK: Tensor, visible: Visible, window: int | None) -> list[tuple[slice, slice]]:
    """Rows of queries, and the keys that any of them may see."""
    size, length = 64 if q_XTK.dtype.itemsize > 2 else 128, q_XTK.shape[1]
    starts = range(0, length, size)
    ends = [min(start + size, length) for start in starts]
    firsts = [max(0, start + 1 - window) if window else 0 for start in starts]
    lasts = ends if is_causal(visible) else [length] * len(ends)
    return [
        (slice(start, end), slice(first, last))
        for start, end, first, last in zip(starts, ends, firsts, lasts, strict=True)
    ]


def _probabilities(
    q_XTK: Tensor, k_XTK: Tensor, visible: Visible, rows: slice, columns: slice
) -> Tensor:
    """Softmax of a block's scores `[X, C, S]`, over the keys that each query may see."""
    scores = torch.bmm(q_XTK[:, rows], k_XTK[:, columns].mT)
    if visible is not None:
        is_made = isinstance(visible, Tensor)
        seen = visible[:, rows, columns] if is_made else visible.among(rows, columns)
        by_row = scores.unflatten(0, (len(seen), -1))
        by_row.masked_fill_(~seen[:, None], float("-inf"))
    else:
        size = scores.shape[1]
        later = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu(1)
        scores[:, :, -size:].masked_fill_(later, float("-inf"))
    return scores.softmax(dim=-1)
