"""The gated delta rule with one decay for a head, a chunk at a time.

The WY form of DeltaNet (arXiv 2406.06484, section 3.2) with decays (arXiv 2412.06464, section 3.3).

Legend: B batch, T time, N chunks, C tokens in a chunk, H heads, K key dim, V value dim.
"""

import torch
from torch import Tensor

from .chunks import (
    carried_decay,
    chunk_mask,
    decayed_pairs,
    document_cumsum,
    entering_decay,
    from_chunks,
    leaving_decay,
    pad_time,
    padding_to,
    pair_decay,
    to_chunks,
)


def chunked_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Run `delta_rule` with one decay for a head; inputs are prepared: scaled, of one dtype.

    Returns:
        Outputs `[B, T, H, V]`, and the last state.
    """
    batch, length = v.shape[:2]
    chunk_size = min(chunk_size, length)
    padding = padding_to(length, chunk_size)
    mask = chunk_mask(segments, (batch, length + padding), chunk_size, v.device)
    log_decay = pad_time(log_decay, padding).unflatten(1, (-1, chunk_size))
    cumulative = document_cumsum(log_decay, mask).transpose(0, 1)  # [N, B, H, C]
    mask = mask.chunk_first()
    q, k, v, beta = (
        to_chunks(pad_time(x, padding), chunk_size) for x in (q, k, v, beta[..., None])
    )
    pairs = pair_decay(cumulative, mask)
    entering = entering_decay(cumulative, mask)[..., None]

    solved = _solve(k, beta, pairs, cumulative)
    values, reads = solved @ v, solved @ (k * -entering)
    written_keys = k * leaving_decay(cumulative, mask)[..., None]
    carried = carried_decay(cumulative, mask)[..., None]
    states, changes, last = scan_changes(values, reads, written_keys, carried, state)
    out = (q * entering) @ states + decayed_pairs(q @ k.mT, pairs, cumulative) @ changes
    return from_chunks(out, length), last


def _solve(k: Tensor, beta: Tensor, pairs: Tensor, cumulative: Tensor) -> Tensor:
    """Return `(I + L)^{-1} beta`, with L the strictly lower part of `beta (k k^T) decay`."""
    return unit_lower_inverse(decayed_pairs((k * beta) @ k.mT, pairs, cumulative)) * beta.mT


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """Return `(I + L)^{-1}`, with L what `[..., C, C]` holds below its diagonal."""
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)


def scan_changes(
    values: Tensor,
    reads: Tensor,
    written_keys: Tensor,
    carried: Tensor,
    state: Tensor,
    written: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the state over chunks, each token changing it by what it reads.

        changes = values + reads S        S' = carried S + written_keys^T changes + written

    Args:
        values: `[N, B, H, C, V]`.
        reads: `[N, B, H, C, K]`; negative where what the state says is taken off.
        written_keys: `[N, B, H, C, K]`.
        carried: decay of a whole chunk, `[N, B, H, K or 1]`.
        state: `[B, H, K, V]`.
        written: what else a chunk adds, `[N, B, H, K, V]`.

    Returns:
        The state entering each chunk `[N, B, H, K, V]`, what each token changes
        `[N, B, H, C, V]`, and the last state.
    """
    states, changes = [], []
    batch, state = state.shape[:2], state.flatten(0, 1)
    inputs = [values, reads, written_keys.mT, carried[..., None]]
    inputs += [] if written is None else [written]
    flat = (x.flatten(1, 2).unbind() for x in inputs)
    for value, read, key, decay, *added in zip(*flat, strict=True):
        change = torch.baddbmm(value, read, state)
        states.append(state)
        changes.append(change)
        kept = torch.addcmul(added[0], decay, state) if added else decay * state
        state = torch.baddbmm(kept, key, change)
    entering, changed = (torch.stack(parts).unflatten(1, batch) for parts in (states, changes))
    return entering, changed, state.unflatten(0, batch)
