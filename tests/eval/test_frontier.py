"""The frontier is a step over points that nothing beats."""

import numpy as np
import polars as pl
import pytest

from eval.axis import cost_axis
from eval.currencies import CURRENCIES
from eval.frontier import cheapest, dominated, frontier, steps

CURRENCY = {currency.column: currency for currency in CURRENCIES}


def test_a_point_is_dominated_by_one_no_dearer_and_no_worse():
    costs, accuracies = [1, 2, 2, 3, 4], [0.5, 0.4, 0.8, 0.8, 0.9]
    assert dominated(costs, accuracies).tolist() == [False, True, False, True, False]


def test_equal_points_stand_side_by_side():
    assert not dominated([1, 1], [0.5, 0.5]).any()


def test_domination_equals_its_definition():
    rng = np.random.Generator(np.random.Philox(0))
    costs, accuracies = rng.integers(1, 8, 40), rng.integers(0, 8, 40) / 8
    found = dominated(costs, accuracies)
    for i in range(40):
        beaten = any(
            costs[j] <= costs[i]
            and accuracies[j] >= accuracies[i]
            and (costs[j] < costs[i] or accuracies[j] > accuracies[i])
            for j in range(40)
        )
        assert found[i] == beaten


def test_steps_rise():
    costs, heights = steps([4, 1, 2, 2, 3], [0.9, 0.5, 0.4, 0.8, 0.8])
    assert costs.tolist() == [1, 2, 4]
    assert heights.tolist() == [0.5, 0.8, 0.9]


def test_frontier_keeps_tasks_apart_and_drops_what_was_not_measured():
    points = pl.DataFrame(
        {
            "task": ["a", "a", "b", "b"],
            "accuracy": [0.9, 0.5, 0.4, 0.3],
            "latency_b1_s": [1.0, 2.0, 3.0, None],
        }
    )
    placed = frontier(points, "latency_b1_s")
    assert placed["task"].to_list() == ["a", "a", "b"]
    assert placed["dominated"].to_list() == [False, True, False]
    unmeasured = frontier(points.filter(pl.col("latency_b1_s").is_null()), "latency_b1_s")
    assert unmeasured.is_empty()


def make_points(*rows):
    columns = ["label", "accuracy", "low", "cost_"]
    return pl.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])


def test_cheapest_sorts_what_reaches_the_threshold():
    points = make_points(
        ("dear", 0.99, 0.98, 9.0), ("poor", 0.89, 0.85, 1.0), ("unsure", 0.91, 0.88, 2.0)
    )
    found = cheapest(points, "cost_", 0.9)
    assert found["label"].to_list() == ["unsure", "dear"]
    assert found["sure"].to_list() == [False, True]
    assert found["least"].to_list() == [True, False]


def test_cheapest_counts_equal_costs_as_ties():
    points = make_points(("a", 0.95, 0.9, 2.0), ("b", 0.97, 0.9, 2.0), ("c", 0.99, 0.9, 2.05))
    assert cheapest(points, "cost_", 0.9)["least"].to_list() == [True, True, False]
    assert cheapest(points, "cost_", 0.9, tolerance=0.05)["least"].all()


def test_nothing_reaches_the_threshold():
    assert cheapest(make_points(("a", 0.5, 0.4, 1.0)), "cost_", 0.9).is_empty()


def test_free_answers_have_a_place_left_of_all_others():
    axis = cost_axis([0, 4, 64], CURRENCY["latent_steps"])
    assert axis is not None and axis.zero is not None
    assert axis.low < axis.place(0) == axis.zero < 4 == axis.place(4) < axis.high
    assert axis.labels[0] == "0"


def test_an_axis_that_nobody_spends_is_none():
    assert cost_axis([0, 0], CURRENCY["latent_steps"]) is None
    assert cost_axis([], CURRENCY["latency_b1_s"]) is None


@pytest.mark.parametrize("column", list(CURRENCY))
@pytest.mark.parametrize("ends", [(3.0, 3.0), (2.0, 15.0), (7e3, 4e7), (1e-4, 2e-2)])
def test_ticks_are_few_and_inside(column, ends):
    axis = cost_axis(ends, CURRENCY[column], most_ticks=5)
    assert axis is not None
    assert 1 <= len(axis.ticks) <= 5
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert len(set(axis.labels)) == len(axis.labels)
