"""fla's block-sparse attention under our signatures, and what it must equal.

`parallel_nsa` reads the blocks that it is told, `parallel_moba` chooses them itself. Both count
blocks from each document's start, as we do, and need a sequence from scratch. Signatures were read,
not run: see `models.kernels`.

Legend: B batch, T time, H heads, G key/value heads, K head dim, M chosen blocks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernel_checks import BATCH, LENGTH, Operation, Trial, draw
from .kernel_documents import document_bounds, documents_of

BLOCK, CHOSEN = 32, 2
"""Tokens of a block and blocks that a query reads, its own included, in a check."""


def selected_blocks(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index_BTGM: Tensor,
    real_BTGM: Tensor,
    *,
    block_size: int,
    segments: Tensor | None = None,
) -> Tensor:
    """Attend over chosen blocks and the query's own through fla's `parallel_nsa`.

    Args:
        function: the package's.
        q: queries `[B, T, H, K]`; it takes 16, 32, ... of them for each key/value head.
        k: keys `[B, T, G, K]`.
        v: values `[B, T, G, K]`.
        index_BTGM: earlier blocks to read, counted from the document's start.
        real_BTGM: whether there is such a block.
        block_size: tokens of a block.
        segments: document ids `[B, T]`; None is one document.

    Returns:
        `[B, T, H, K]`.
    """
    own_BTG1 = positions_of(segments, k)[:, :, None, None].expand(-1, -1, k.shape[2], 1)
    own_BTG1 = own_BTG1 // block_size
    real_first = real_BTGM.byte().argsort(dim=-1, descending=True, stable=True)
    index = torch.where(real_BTGM, index_BTGM, own_BTG1).gather(-1, real_first)
    flat = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v}
    flat["g_slc"] = v.new_ones(q.shape[:3])
    flat["block_indices"] = torch.cat([own_BTG1, index], dim=-1)
    flat["block_counts"] = 1 + real_BTGM.sum(dim=-1)
    flat, bounds = _flattened(flat, segments)
    out = function(
        **flat, block_size=block_size, window_size=0, scale=q.shape[-1] ** -0.5, cu_seqlens=bounds
    )
    return out.reshape(*q.shape[:3], -1)


def moba(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int,
    num_selected: int,
    segments: Tensor | None = None,
) -> Tensor:
    """Attend as MoBA does through fla's `parallel_moba`: own block and the best earlier ones.

    Shapes as in `selected_blocks`; `num_selected` has the query's own block in it.
    """
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in (k, v))
    bounds, longest = document_bounds(segments, (q.shape[0], q.shape[1]))
    flat = [x.to(v.dtype).flatten(0, 1)[None] for x in (q, k, v)]
    out = function(
        *flat,
        cu_seqlens=bounds.to(q.device),
        max_seqlen=longest,
        chunk_size=block_size,
        topk=num_selected,
    )
    return out.reshape(*q.shape[:3], -1)


def positions_of(segments: Tensor | None, x: Tensor) -> Tensor:
    """Position of each token in its document, `[B, T]`."""
    times = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    if segments is None:
        return times
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return times - torch.where(starts, times, 0).cummax(dim=1).values


def _flattened(
    inputs: dict[str, Tensor], segments: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    if segments is None:
        return inputs, None
    flat = {name: x.flatten(0, 1)[None] for name, x in inputs.items()}
    return flat, documents_of(segments).wide_bounds


def checked_selection(run: Callable[..., Tensor]) -> Operation:
    """Let `selected_blocks` be checked: every query reads its document's first block, too."""

    def operation(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
        segments = options.get("segments")
        own_BT = positions_of(segments, k) // BLOCK
        real = (own_BT > 0)[:, :, None, None].expand(-1, -1, k.shape[2], 1)
        index = torch.zeros_like(real, dtype=torch.long)
        return run(q, k, v, index, real, block_size=BLOCK, segments=segments), None

    return operation


def checked_moba(run: Callable[..., Tensor]) -> Operation:
    """Let `moba` be checked."""

    def operation(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
        kwargs = {"block_size": BLOCK, "num_selected": CHOSEN, "segments": options.get("segments")}
        return run(q, k, v, **kwargs), None

    return operation


def plain_selected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index_BTGM: Tensor,
    real_BTGM: Tensor,
    *,
    block_size: int,
    segments: Tensor | None = None,
) -> Tensor:
    """`selected_blocks`, plainly: attention under a mask."""
    block_BT = positions_of(segments, k) // block_size
    picked = (index_BTGM[..., None] == block_BT[:, None, None, None]) & real_BTGM[..., None]
    seen_BTGS = picked.any(dim=3) | (block_BT[:, None] == block_BT[..., None])[:, :, None]
    return _masked(q, k, v, seen_BTGS, segments)


def plain_moba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int,
    num_selected: int,
    segments: Tensor | None = None,
) -> Tensor:
    """`moba`, plainly: mean keys, the best of the earlier blocks, attention under a mask."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    block_BT = positions_of(segments, k) // block_size
    same_BTS = _same_document(segments, k)
    member_BTS = same_BTS & (block_BT[:, None] == block_BT[..., None])
    means = torch.einsum("bts,bshk->bthk", member_BTS.to(k.dtype), k.detach())
    means = means / member_BTS.sum(dim=-1)[..., None, None]  # at each token, its block's
    scores_BTHS = torch.einsum("bthk,bshk->bths", q.detach(), means)
    first_BS = positions_of(segments, k) % block_size == 0
    earlier = same_BTS & (block_BT[:, None] < block_BT[..., None]) & first_BS[:, None]
    scores_BTHS = scores_BTHS.masked_fill(~earlier[:, :, None], float("-inf"))
    best, where = scores_BTHS.topk(num_selected - 1, dim=-1)
    chosen = block_BT[:, None, None].expand(scores_BTHS.shape).gather(-1, where)
    options: dict[str, Any] = {"block_size": block_size, "segments": segments}
    return plain_selected(q, k, v, chosen, best.isfinite(), **options)


def _same_document(segments: Tensor | None, x: Tensor) -> Tensor:
    length = x.shape[1]
    earlier = torch.ones(1, length, length, dtype=torch.bool, device=x.device).tril()
    if segments is None:
        return earlier
    return earlier & (segments[:, :, None] == segments[:, None])


def _masked(q: Tensor, k: Tensor, v: Tensor, seen_BTGS: Tensor, segments: Tensor | None) -> Tensor:
    repeats = q.shape[2] // k.shape[2]
    seen_BTGS = seen_BTGS & _same_document(segments, k)[:, :, None]
    k, v, seen = (x.repeat_interleave(repeats, dim=2) for x in (k, v, seen_BTGS))
    scores = torch.einsum("bthk,bshk->bths", q * q.shape[-1] ** -0.5, k)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("bths,bshk->bthk", weights, v)


def selection_trial(keys: int, values: int, device: torch.device) -> Trial:
    """Draw inputs of `selected_blocks`: 16 query heads of one key/value head."""
    shape = (BATCH, LENGTH)
    inputs = {
        "q": draw((*shape, 16, keys), device, 0),
        "k": draw((*shape, 1, keys), device, 1),
        "v": draw((*shape, 1, values), device, 2),
    }
    return Trial(inputs, None, frozenset(inputs))


def moba_trial(keys: int, values: int, device: torch.device) -> Trial:
    """Draw inputs of `moba` whose choices no rounding decides.

    A block's keys have a direction of their own, and a query's fondness for these directions is a
    permutation of whole numbers.
    """
    marks, shape = LENGTH // BLOCK, (BATCH, LENGTH, 2)
    q, k = (0.3 * draw((*shape, keys), device, seed) for seed in (0, 1))
    fondness = draw((*shape, marks), device, 3).argsort(dim=-1).to(q.dtype)
    times = torch.arange(LENGTH, device=device) // BLOCK
    own = torch.nn.functional.one_hot(times, marks).to(k.dtype)
    q = torch.cat([fondness, q[..., marks:]], dim=-1)
    k = torch.cat([3 * own[None, :, None].expand(*shape, -1), k[..., marks:]], dim=-1)
    inputs = {"q": q, "k": k, "v": draw((*shape, values), device, 2)}
    return Trial(inputs, None, frozenset(inputs))
