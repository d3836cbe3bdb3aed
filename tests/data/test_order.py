"""The order of rows: a permutation each epoch, a pure function of (seed, stage, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import GlobalOrder, Phase, permutation_key, permuted


def whole(num_rows: int) -> list[Phase]:
    return [Phase(1.0, num_rows)]


@settings(deadline=None)
@given(st.integers(1, 5_000), st.integers(0, 2**63), st.integers(0, 100))
def test_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    values = permuted(np.arange(n), n, permutation_key(seed, 0, epoch))
    assert np.array_equal(np.sort(values), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65_536, 65_537])
def test_is_a_bijection_around_powers_of_two(n: int) -> None:
    values = permuted(np.arange(n), n, permutation_key(0, 0, 0))
    assert np.array_equal(np.sort(values), np.arange(n))


def test_large_ranges_stay_inside() -> None:
    n = 10**15 + 7
    indices = np.random.default_rng(0).integers(0, n, 2_000)
    values = permuted(indices, n, permutation_key(1, 2, 3))
    assert values.min() >= 0
    assert values.max() < n
    assert np.unique(values).size == np.unique(indices).size


def test_shape_is_kept_and_each_index_stands_alone() -> None:
    key = permutation_key(0, 0, 0)
    whole = permuted(np.arange(12).reshape(3, 4), 100, key)
    assert whole.shape == (3, 4)
    assert [int(permuted(np.array([i]), 100, key)[0]) for i in range(12)] == whole.ravel().tolist()


def test_looks_shuffled() -> None:
    """Neighbours part, halves mix, few stay where they were."""
    n = 4_096
    values = permuted(np.arange(n), n, permutation_key(0, 0, 0))
    assert abs(np.corrcoef(np.arange(n), values)[0, 1]) < 0.06
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06
    assert abs((values[: n // 2] < n // 2).mean() - 0.5) < 0.04
    assert (values == np.arange(n)).sum() < 8


def test_each_epoch_visits_every_row_in_another_order() -> None:
    order = GlobalOrder(whole(48), 8, seed=3, stage=0)
    epochs = [np.concatenate([order.indices(6 * e + s) for s in range(6)]) for e in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(48))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize(("seed", "stage"), [(1, 0), (0, 1)])
def test_seed_and_stage_key_the_order(seed: int, stage: int) -> None:
    first = GlobalOrder(whole(1_000), 64, 0, 0).indices(0)
    assert not np.array_equal(first, GlobalOrder(whole(1_000), 64, seed, stage).indices(0))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 40))
def test_steps_cut_one_endless_sequence(num_rows: int, rows_per_step: int, step: int) -> None:
    """Whatever the size of a step, sample i is the same row; steps may straddle epochs."""
    one_by_one = GlobalOrder(whole(num_rows), 1, 5, 2)
    expected = one_by_one.samples(np.arange(step * rows_per_step, (step + 1) * rows_per_step))
    order = GlobalOrder(whole(num_rows), rows_per_step, 5, 2)
    assert np.array_equal(order.indices(step), expected)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_slice_the_same_batch(world_size: int) -> None:
    order = GlobalOrder(whole(100), 16, seed=0, stage=0)
    share = 16 // world_size
    slices = [order.indices(7)[rank * share : (rank + 1) * share] for rank in range(world_size)]
    assert np.array_equal(np.concatenate(slices), GlobalOrder(whole(100), 16, 0, 0).indices(7))


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 60))
def test_each_phase_has_its_share_of_the_stage(sizes: list[int], width: int, steps: int) -> None:
    """Row by row: from the phase that its share of the stage says, in whole epochs of it."""
    count = len(sizes)
    phases = [Phase((i + 1) / count, size) for i, size in enumerate(sizes)]
    order = GlobalOrder(phases, width, 3, 0, steps)
    rows = np.concatenate([order.indices(step) for step in range(steps)])
    ends = [round(phase.until * steps * width) for phase in phases]
    for i, size in enumerate(sizes):
        mine = rows[(ends[i - 1] if i else 0) : ends[i]] - sum(sizes[:i])
        assert mine.size == 0 or (mine.min() >= 0 and mine.max() < size)
        for epoch in range(0, mine.size - size + 1, size):
            assert np.array_equal(np.sort(mine[epoch : epoch + size]), np.arange(size))


def test_one_phase_is_the_order_without_phases() -> None:
    assert np.array_equal(
        GlobalOrder(whole(100), 8, 1, 2, 50).indices(30),
        GlobalOrder(whole(100), 8, 1, 2).indices(30),
    )


def test_past_its_end_a_stage_stays_in_the_last_phase() -> None:
    order = GlobalOrder([Phase(0.5, 10), Phase(1.0, 20)], 4, 0, 0, 6)
    assert set(order.indices(9).tolist()) <= set(range(10, 30))


def test_order_is_the_same_in_every_version() -> None:
    """A run that was begun with an older version goes on in the same order."""
    assert GlobalOrder(whole(1_000), 6, 0, 0).indices(2).tolist() == FROZEN


FROZEN = [384, 337, 136, 649, 648, 364]


@pytest.mark.parametrize(("num_rows", "rows_per_step"), [(0, 8), (8, 0)])
def test_nothing_to_order_is_refused(num_rows: int, rows_per_step: int) -> None:
    with pytest.raises(ValueError, match="at least 1 row"):
        GlobalOrder(whole(num_rows), rows_per_step, 0, 0)
