"""Recurrences whose decay differs between key channels, a chunk at a time.

Score of query i and key j:  `A_ij = sum_d q_id k_jd prod_{j < s <= i} alpha_sd`, alpha = exp(g).

A chunk is cut in halves, each half again, down to single tokens. Scores between a right half and
the left one before it are one matrix product: of queries decayed since the end of the left half,
and keys decayed up to it. Going back up, each level multiplies its queries and keys by the decay of
the neighbouring half. So a factor is a product of decays, never the exponential of a difference:
nothing overflows, strong decays cost no precision, no position sees a later one, and `C x C x K` is
never stored. A document's first token decays by 0, which cuts it off from all that came before: by
exact zeros, whatever the other documents hold.

The chunk forms are those of GLA (arXiv 2312.06635, section 4), Kimi Delta Attention (arXiv
2510.26692, section 3) and, for DPLR, RWKV-7 (arXiv 2503.14456, appendix).

Legend: B batch, T time, N chunks, C tokens in a chunk, H heads, X = N * B * H, K key dim, V value
dim, P kinds of rows (queries first), Q kinds of columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import from_chunks, pad_time, padding_to, to_chunks
from .delta_chunks import scan_changes, unit_lower_inverse


def chunked_decayed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Run `decayed_attention` on prepared inputs: scaled, of one dtype, decay `[B, T, H, K or 1]`.

    Returns:
        Outputs `[B, T, H, V]`, and the last state.
    """
    length = v.shape[1]
    decay, _, (q, k, v) = _cut(log_decay, segments, chunk_size, q, k, v)
    (scores,), (q_read, k_write), carried = _halve((q * decay,), (k,), decay, own=(q * k,))
    states, last = _scan_written(k_write.mT @ v, carried, state)
    return from_chunks(q_read @ states + scores @ v, length), last


def chunked_erase_write(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    log_decay: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Run `erase_write` on prepared inputs; see `chunked_decayed_attention`.

    With u what each token writes, `u_i = v_i - sum_{j < i} A(erase, k)_ij u_j - erase_i S`.
    """
    length = v.shape[1]
    decay, _, (q, k, erase, v) = _cut(log_decay, segments, chunk_size, q, k, erase, v)
    rows = (q * decay, erase * decay)
    (scores, lower), (q_read, erased, k_write), carried = _halve(rows, (k,), decay, own=(q * k,))
    inverse = unit_lower_inverse(lower)
    values, reads = inverse @ v, inverse @ -erased
    states, changes, last = scan_changes(values, reads, k_write, carried, state)
    return from_chunks(q_read @ states + scores @ changes, length), last


def chunked_dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Run `dplr` on prepared inputs; see `chunked_decayed_attention`.

    With u what a reads, `u_i = sum_{j < i} (A(a, b)_ij u_j + A(a, k)_ij v_j) + a_i S`, in which a
    is not yet decayed by its own token.
    """
    length = v.shape[1]
    decay, starts, (q, k, v, a, b) = _cut(log_decay, segments, chunk_size, q, k, v, a, b)
    if starts is not None:
        a = a.masked_fill(starts, 0)  # no decay of its own to cut it off
    (qk, qb, ak, ab), (q_read, a_read, k_write, b_write), carried = _halve(
        (q * decay, a), (k, b), decay, own=(q * k, q * b)
    )
    inverse = unit_lower_inverse(-ab)
    values, reads = inverse @ (ak @ v), inverse @ a_read
    states, changes, last = scan_changes(
        values, reads, b_write, carried, state, written=k_write.mT @ v
    )
    out = q_read @ states + qk @ v + qb @ changes
    return from_chunks(out, length), last


def _cut(
    log_decay: Tensor, segments: Tensor | None, chunk_size: int, *inputs: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Cut into chunks of a power of two: the decay factors, which tokens are first, the inputs."""
    length, keys = log_decay.shape[1], inputs[0].shape[-1]
    size = 1 << (min(chunk_size, length) - 1).bit_length()
    padding, starts = padding_to(length, size), None
    if segments is not None:
        first = torch.zeros_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        log_decay = log_decay.masked_fill(first[..., None, None], float("-inf"))
        starts = to_chunks(pad_time(first[..., None, None], padding), size)
    decay = log_decay.exp().expand(-1, -1, -1, keys)
    decay = F.pad(decay, (0, 0, 0, 0, 0, padding), value=1.0)
    chunked = [to_chunks(pad_time(x, padding), size) for x in inputs]
    return to_chunks(decay, size), starts, chunked


def _halve(
    rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], decay: Tensor, own: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Score rows against the columns of earlier tokens, and decay both to the chunk's ends.

    Args:
        rows: P tensors `[N, B, H, C, K]`; queries first.
        columns: Q tensors like them.
        decay: factors in [0, 1], like them.
        own: the first row times each column: what a token's query says of its own keys.

    Returns:
        Scores `[N, B, H, C, C]` of each row and column, row by row; the rows decayed since the
        chunk's start, then the columns decayed up to its end; the decay of the whole chunk
        `[N, B, H, K]`.
    """
    lead = decay.shape[:3]
    diagonals = torch.stack([product.sum(dim=-1) for product in own])
    flat = (x.flatten(0, 2) for x in (decay, *rows, *columns))
    # Without gradients torch.compile would break the graph at the function with its own.
    run = _Halving.apply if torch.is_grad_enabled() else _halve_parts
    results = run(len(rows), diagonals.flatten(1, 3), *flat)
    *results, carried = (x.unflatten(0, lead) for x in results)
    count = len(rows) * len(columns)
    return results[:count], results[count:], carried


def _halve_parts(
    kinds: int, diagonals: Tensor, decay: Tensor, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Scores `[X, C, C]` of each row and column, rows and columns at the ends, all the decay."""
    (count, size, keys), columns = decay.shape, len(inputs) - kinds
    scores = decay.new_zeros(kinds, columns, count, size, size)
    scores[0].diagonal(dim1=-2, dim2=-1).copy_(diagonals)
    outs, carried = [torch.empty_like(x) for x in inputs], decay.new_empty(count, keys)
    for part in _parts(decay):
        levels, ends, total = _climb(kinds, decay[part], [x[part] for x in inputs])
        for half, right, left, _, _ in levels:
            blocks = _blocks(scores[:, :, part], half)
            blocks.copy_(_by_kind(right @ left.mT, blocks.shape))
        for out, end in zip(outs, ends, strict=True):
            out[part] = end
        carried[part] = total
    return *scores.flatten(0, 1).unbind(), *outs, carried


class _Halving(torch.autograd.Function):
    """`_halve` on `[Q, X, C]` and `[X, C, K]`, a few chunks at a time, so that they stay in cache.

    A level takes rows x of right halves, columns y of left halves, and the decays s, t of left and
    right halves: `A = x y^T; x <- x s; y <- y t; s <- s t`. Its gradient goes back through these
    four lines, made again from the inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, kinds: int, diagonals: Tensor, decay: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.kinds = kinds
        ctx.save_for_backward(decay, *inputs)
        return _halve_parts(kinds, diagonals, decay, *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        decay, *inputs = ctx.saved_tensors
        count, kinds = ctx.kinds * (len(inputs) - ctx.kinds), ctx.kinds
        results = [torch.empty_like(x) for x in (decay, *inputs)]
        for part in _parts(decay):
            levels, _, _ = _climb(kinds, decay[part], [x[part] for x in inputs])
            dscores = torch.stack([x[part] for x in gradients[:count]]).unflatten(0, (kinds, -1))
            drows, dcolumns = _side_by_side(kinds, [x[part] for x in gradients[count:-1]])
            dtotal = _descend(levels, dscores, drows, dcolumns, gradients[-1][part])
            parts = dtotal, *drows.unbind(2), *dcolumns.unbind(2)
            for result, gradient in zip(results, parts, strict=True):
                result[part] = gradient.view(result[part].shape)
        ddiagonals = [x.diagonal(dim1=-2, dim2=-1) for x in gradients[: count // kinds]]
        return None, torch.stack(ddiagonals), *results


Level = tuple[int, Tensor, Tensor, Tensor, Tensor]
"""Tokens in a half, rows of right halves, columns of left halves, decays of left and right."""


def _parts(decay_XCK: Tensor) -> list[slice]:
    """Chunks taken at once: as many as a CPU core's cache holds; elsewhere, or compiled, all."""
    count, size, keys = decay_XCK.shape
    in_parts = decay_XCK.is_cpu and not torch.compiler.is_compiling()
    step = max(1, 2**16 // (size * keys)) if in_parts else count
    return [slice(start, start + step) for start in range(0, count, step)]


def _climb(
    kinds: int, decay: Tensor, inputs: list[Tensor]
) -> tuple[list[Level], list[Tensor], Tensor]:
    """Return all levels from single tokens up, rows and columns at the ends, and all the decay."""
    rows, columns = _side_by_side(kinds, inputs)
    levels, total = [], decay.flatten(0, 1)
    for half in (1 << level for level in range(decay.shape[1].bit_length() - 1)):
        right, left = _halves(rows, half)[:, 1], _halves(columns, half)[:, 0]
        first, second = total.view(-1, 2, total.shape[-1]).unbind(1)
        levels.append((half, right.clone(), left.clone(), first, second))
        right.mul_(first[:, None])
        left.mul_(second[:, None])
        total = first * second
    return levels, [*rows.unbind(2), *columns.unbind(2)], total


def _descend(
    levels: list[Level], dscores: Tensor, drows: Tensor, dcolumns: Tensor, dtotal: Tensor
) -> Tensor:
    """Turn the gradients at the ends, in place, into those of rows and columns; return decay's."""
    for half, right, left, first, second in reversed(levels):
        dright, dleft = _halves(drows, half)[:, 1], _halves(dcolumns, half)[:, 0]
        dblocks = _by_token(_blocks(dscores, half))
        dfirst = (dright * right).sum(dim=1).addcmul_(dtotal, second)
        dsecond = (dleft * left).sum(dim=1).addcmul_(dtotal, first)
        dright.mul_(first[:, None]).add_(dblocks @ left)
        dleft.mul_(second[:, None]).add_(dblocks.mT @ right)
        dtotal = torch.stack([dfirst, dsecond], dim=1).flatten(0, 1)
    return dtotal


def _side_by_side(kinds: int, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Copy rows and columns `[X, C, K]` to `[X, C, P, K]` and `[X, C, Q, K]`."""
    rows, columns = torch.stack(inputs[:kinds], dim=2), torch.stack(inputs[kinds:], dim=2)
    return rows.contiguous(), columns.contiguous()  # torch.compile stacks in other layouts


def _halves(x_XCPK: Tensor, half: int) -> Tensor:
    """View `[X, C, P, K]` as `[.., 2, half * P, K]`."""
    return x_XCPK.view(-1, 2, half * x_XCPK.shape[2], x_XCPK.shape[3])


def _blocks(scores: Tensor, half: int) -> Tensor:
    """The blocks of right rows and left columns: `[P, Q, X, blocks, half, half]`, a view."""
    split = scores.unflatten(-1, (-1, 2, half)).unflatten(3, (-1, 2, half))
    return split.diagonal(dim1=3, dim2=6)[:, :, :, 1, :, 0].movedim(-1, 3)


def _by_kind(product: Tensor, shape: torch.Size) -> Tensor:
    """View `[X * blocks, half * P, half * Q]` as `[P, Q, X, blocks, half, half]`."""
    kinds, columns, count, blocks, half, _ = shape
    return product.view(count, blocks, half, kinds, half, columns).permute(3, 5, 0, 1, 2, 4)


def _by_token(blocks: Tensor) -> Tensor:
    """Undo `_by_kind`, as a copy."""
    split = blocks.permute(2, 3, 4, 0, 5, 1)
    return split.flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _scan_written(written: Tensor, carried: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the state over chunks; return the state entering each chunk, and the last one."""
    states = []
    for added, decay in zip(written.unbind(), carried[..., None].unbind(), strict=True):
        states.append(state)
        state = torch.addcmul(added, decay, state)
    return torch.stack(states), state
