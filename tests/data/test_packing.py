"""Packing: nothing is split or lost, rows are nearly full, and it is the textbook algorithm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.packing import pack, piece_lengths, row_contents


def filled(lengths: np.ndarray, rows_of: np.ndarray) -> np.ndarray:
    return np.bincount(rows_of, weights=lengths).astype(np.int64)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """The algorithm one document at a time: tokens of each row, sorted."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - length)
    return sorted(capacity - space for space in spaces)


@given(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=120))
def test_equals_the_textbook_algorithm(capacity: int, lengths: list[int]) -> None:
    lengths = [min(length, capacity) for length in lengths]
    rows_of = pack(np.array(lengths, dtype=np.int64), capacity)
    totals = filled(np.array(lengths), rows_of) if lengths else np.empty(0, np.int64)
    assert sorted(totals.tolist()) == best_fit_decreasing(lengths, capacity)


@pytest.mark.parametrize(("mean", "capacity"), [(150, 1024), (150, 512), (14, 128), (30, 64)])
def test_rows_are_full_and_never_overfull(mean: int, capacity: int) -> None:
    rng = np.random.default_rng(mean)
    lengths = np.clip(rng.lognormal(np.log(mean), 0.8, 5_000).astype(np.int64), 1, capacity)
    totals = filled(lengths, pack(lengths, capacity))
    assert totals.max() <= capacity
    assert totals.min() >= 1
    assert lengths.sum() / (totals.size * capacity) > 0.95


def test_documents_keep_their_order_inside_a_row() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 500)
    rows_of = pack(lengths, 64)
    order, firsts = row_contents(rows_of)
    assert sorted(order.tolist()) == list(range(500))
    assert firsts.size == rows_of.max() + 1
    for row, documents in enumerate(np.split(order, firsts[1:])):
        assert set(rows_of[documents]) == {row}
        assert np.all(np.diff(documents) > 0)


def test_same_input_same_rows() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 500)
    assert np.array_equal(pack(lengths, 64), pack(lengths.copy(), 64))


@given(st.integers(1, 1000), st.integers(1, 100))
def test_pieces_are_whole_rows_and_a_rest(length: int, capacity: int) -> None:
    pieces = piece_lengths(length, capacity)
    assert sum(pieces) == length
    assert set(pieces[:-1]) <= {capacity}
    assert 1 <= pieces[-1] <= capacity
