"""Positions within packed documents."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.segments import document_positions
from tests.models.cases import PACKINGS

CPU = torch.device("cpu")


def counted(ids: list[int], start: int) -> list[int]:
    """Count by hand: from `start` in the first document, from zero in each later one."""
    positions, position = [], start
    for time, document in enumerate(ids):
        if time and document != ids[time - 1]:
            position = 0
        positions.append(position)
        position += 1
    return positions


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    padded=st.booleans(),
    start=st.integers(0, 9),
)
def test_positions_restart_at_each_document(lengths: list[int], padded: bool, start: int) -> None:
    first = -1 if padded else 0
    ids = [first + document for document, length in enumerate(lengths) for _ in range(length)]
    segments = torch.tensor([ids])
    from_zero = document_positions(segments, len(ids), None, CPU)
    assert from_zero.tolist() == [counted(ids, 0)]
    went_on = document_positions(segments, len(ids), torch.tensor([start]), CPU)
    assert went_on.tolist() == [counted(ids, start)]


def test_rows_are_counted_apart(segments: Tensor) -> None:
    starts = torch.tensor([3, 8])
    positions = document_positions(segments, segments.shape[1], starts, CPU)
    for row, ids in enumerate(segments.tolist()):
        assert positions[row].tolist() == counted(ids, int(starts[row]))


def test_without_segments_a_row_is_one_document() -> None:
    length = PACKINGS["one"].shape[1]
    assert document_positions(None, length, None, CPU).tolist() == [list(range(length))]
    went_on = document_positions(None, 3, torch.tensor([5, 0]), CPU)
    assert went_on.tolist() == [[5, 6, 7], [0, 1, 2]]
