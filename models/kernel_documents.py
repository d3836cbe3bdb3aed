"""Packed documents as fused kernels want them: one flat row, and where its documents start.

Legend: B batch, T time, N documents of all rows, H heads, K key dim, V value dim.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of a flattened batch lie.

    Attributes:
        bounds: `[N + 1]` int32, from 0 to B * T.
        wide_bounds: the same as int64; fla keeps what it derives from this very tensor.
        longest: tokens of the longest document.
        first_B: which document is the first of each row.
        last_B: which document is the last of each row.
        places_BT: which document of its row a token belongs to, int32, from 0.
    """

    bounds: Tensor
    wide_bounds: Tensor
    longest: int
    first_B: Tensor
    last_B: Tensor
    places_BT: Tensor


_latest: list[tuple[Any, int, Documents]] = []


def documents_of(segments_BT: Tensor) -> Documents:
    """Look the documents up; the answer for the latest ids is kept.

    All layers of a pass get the same ids, and counting documents makes the host wait for the GPU:
    once a pass is enough.
    """
    if segments_BT.is_inference():
        return _count(segments_BT)
    if _latest and _latest[0][0]() is segments_BT and _latest[0][1] == segments_BT._version:
        return _latest[0][2]
    found = _count(segments_BT)
    _latest[:] = [(weakref.ref(segments_BT), segments_BT._version, found)]
    return found


def _count(segments_BT: Tensor) -> Documents:
    batch, length = segments_BT.shape
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts_N = starts_BT.flatten().nonzero()[:, 0].to(torch.int32)
    bounds = torch.cat([starts_N, starts_N.new_tensor([batch * length])])
    last_B = starts_BT.sum(dim=1).cumsum(dim=0) - 1
    first_B = torch.cat([last_B.new_zeros(1), last_B[:-1] + 1])
    places_BT = starts_BT.cumsum(dim=1, dtype=torch.int32) - 1
    return Documents(bounds, bounds.long(), int(bounds.diff().max()), first_B, last_B, places_BT)


def document_bounds(segments_BT: Tensor | None, shape: tuple[int, int]) -> tuple[Tensor, int]:
    """Return where documents start in the flattened batch, and the length of the longest.

    Args:
        segments_BT: document ids, each document contiguous; None is one document a row.
        shape: B and T.

    Returns:
        `[N + 1]` int32, from 0 to B * T, and the length.
    """
    batch, length = shape
    if segments_BT is None:
        return torch.arange(0, batch * length + 1, length, dtype=torch.int32), length
    found = documents_of(segments_BT)
    return found.bounds, found.longest


def first_states(state_BHKV: Tensor | None, documents: Documents) -> Tensor | None:
    """Return the state before each document, `[N, H, K, V]`: what is given is the first one's."""
    if state_BHKV is None:
        return None
    count = documents.bounds.shape[0] - 1
    return state_BHKV.new_zeros(count, *state_BHKV.shape[1:]).index_copy(
        0, documents.first_B, state_BHKV
    )


def last_states(states_NHKV: Tensor, documents: Documents) -> Tensor:
    """Return the state after the last document of each row, `[B, H, K, V]`."""
    return states_NHKV.index_select(0, documents.last_B)
