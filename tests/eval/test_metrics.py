"""Accuracies, efficiencies and prices, against numbers worked out by hand."""

import polars as pl
import pytest

from eval.currencies import CURRENCIES, amount, amount_bounds, figures
from eval.ledger import validate
from eval.metrics import (
    best_eta,
    budget_name,
    cells,
    common_levels,
    cost_per_correct,
    eta,
    points,
    spent_currencies,
)
from eval.statistics import wilson

CURRENCY = {currency.column: currency for currency in CURRENCIES}
TOKENS = CURRENCY["visible_tokens"]


def make_ledger(answers, **groups):
    """Make a ledger of cells given as name=(row changes, right, wrong)."""
    row = answers("transformer", items=1).row(0, named=True)
    row |= {"level": 8, "train_only": False, "split": "test", "chance": 0.25}
    rows = []
    for changes, right, wrong in groups.values():
        for index in range(right + wrong):
            rows.append(row | changes | {"index": index, "correct": index < right})
    return validate(pl.DataFrame(rows, infer_schema_length=None), "test")


def full(tokens, **changes):
    return {"budget_trace": "full", "visible_tokens": tokens} | changes


def test_a_cell_holds_accuracy_interval_and_corrected_quality(answers):
    ledger = make_ledger(answers, only=({"visible_tokens": 3}, 70, 30))
    cell = cells(ledger).row(0, named=True)
    low, high = wilson(70, 100)
    assert (cell["items"], cell["correct"], cell["accuracy"]) == (100, 70, 0.7)
    assert (cell["low"], cell["high"]) == (low, high)
    assert cell["quality"] == pytest.approx((0.7 - 0.25) / 0.75)
    assert cell["quality_low"] == pytest.approx((low - 0.25) / 0.75)
    assert cell["visible_tokens"] == 3


def test_latent_steps_and_tokens_are_added_up_where_anybody_thinks(answers):
    spends = {"visible_tokens": 3, "latent_steps": 4}
    thinking = points(cells(make_ledger(answers, only=(spends, 1, 1))))
    assert thinking["total_steps"].to_list() == [7]
    assert CURRENCY["total_steps"] in spent_currencies(thinking)
    plain = points(cells(make_ledger(answers, only=({"latent_steps": 0}, 1, 1))))
    assert CURRENCY["total_steps"] not in spent_currencies(plain)


def test_worse_than_chance_is_no_quality(answers):
    cell = cells(make_ledger(answers, only=({}, 10, 90))).row(0, named=True)
    assert cell["quality"] == 0
    assert cell["quality_high"] == 0


def test_points_pool_held_out_levels_only(answers):
    ledger = make_ledger(
        answers,
        easy=({"level": 8, "visible_tokens": 2}, 30, 10),
        hard=({"level": 16, "visible_tokens": 6}, 10, 10),
        heart=({"level": 2, "train_only": True, "split": "train"}, 50, 0),
        beyond=({"level": 24, "beyond": True}, 0, 50),
    )
    point = points(cells(ledger)).row(0, named=True)
    assert point["levels"] == [8, 16]
    assert (point["items"], point["correct"]) == (60, 40)
    # The mean over items, not over levels.
    assert point["visible_tokens"] == pytest.approx((40 * 2 + 20 * 6) / 60)


def test_points_pool_only_levels_that_every_budget_answered(answers):
    ledger = make_ledger(
        answers,
        a8=({"level": 8}, 5, 5),
        a12=({"level": 12}, 5, 5),
        b8=(full(9, level=8), 5, 5),
    )
    assert common_levels(cells(ledger))["level"].unique().to_list() == [8]
    assert points(cells(ledger))["items"].to_list() == [10, 10]


def test_without_common_levels_there_are_no_points(answers):
    ledger = make_ledger(answers, a=({"level": 8}, 5, 5), b=(full(9, level=12), 5, 5))
    assert points(cells(ledger)).is_empty()


def test_a_cost_measured_at_some_levels_only_is_not_pooled(answers):
    ledger = make_ledger(
        answers,
        a=({"level": 8, "latency_b1_s": 0.1}, 5, 5),
        b=({"level": 16, "latency_b1_s": None}, 5, 5),
    )
    by_cell = cells(ledger)
    assert by_cell["latency_b1_s"].to_list() == [0.1, None]
    assert points(by_cell)["latency_b1_s"].to_list() == [None]


def test_eta_is_a_mean_of_ratios_over_tasks(answers):
    ledger = make_ledger(
        answers,
        first=({"task": "first", "visible_tokens": 2}, 100, 0),
        second=({"task": "second", "visible_tokens": 10, "chance": 0.5}, 75, 25),
    )
    row = eta(points(cells(ledger)), TOKENS).row(0, named=True)
    # 1 / 2 and 0.5 / 10; a ratio of means would be 0.75 / 6 = 0.125.
    assert row["eta"] == pytest.approx((0.5 + 0.05) / 2)
    assert row["low"] < row["eta"]
    assert (row["tasks"], row["complete"]) == (2, True)


def test_eta_is_stated_per_scale(answers):
    ledger = make_ledger(answers, only=({"model_flops": 5e6, "state_bytes": 2048}, 100, 0))
    pooled = points(cells(ledger))
    assert eta(pooled, CURRENCY["model_flops"])["eta"].item() == pytest.approx(1 / 5)
    assert eta(pooled, CURRENCY["state_bytes"])["eta"].item() == pytest.approx(1 / 2)


def test_eta_of_nothing_spent_has_no_value(answers):
    ledger = make_ledger(
        answers,
        free=({"task": "first", "state_bytes": 0}, 100, 0),
        paid=({"task": "second", "state_bytes": 1024}, 100, 0),
    )
    assert eta(points(cells(ledger)), CURRENCY["state_bytes"])["eta"].to_list() == [None]


def test_best_eta_needs_every_task(answers):
    ledger = make_ledger(
        answers,
        cheap=({"task": "first", "visible_tokens": 1}, 100, 0),
        long=(full(10, task="first"), 100, 0),
        other=(full(10, task="second"), 100, 0),
    )
    pooled = points(cells(ledger))
    every = eta(pooled, TOKENS)
    assert every.filter(budget="direct")["complete"].to_list() == [False]
    best = best_eta(pooled).filter(currency="visible_tokens")
    assert best["budget"].to_list() == ["full trace"]
    assert best["eta"].to_list() == [pytest.approx(0.1)]


def test_best_eta_takes_the_best_budget_of_each_run(answers):
    ledger = make_ledger(
        answers,
        direct=({"visible_tokens": 2}, 40, 60),
        trace=(full(4), 100, 0),
        other=({"run": "b", "visible_tokens": 2}, 100, 0),
    )
    best = best_eta(points(cells(ledger))).filter(currency="visible_tokens")
    found = {row["run"]: row["budget"] for row in best.iter_rows(named=True)}
    assert found == {"transformer-0a1b2c": "full trace", "b": "direct"}


def test_cost_per_correct_counts_wrong_answers_too(answers):
    ledger = make_ledger(answers, some=({"visible_tokens": 6}, 25, 75), none=(full(6), 0, 100))
    priced = cost_per_correct(points(cells(ledger)), TOKENS)
    total = 100 * 6
    assert priced["per_correct"].to_list() == [pytest.approx(total / 25), None]
    assert priced["per_low"][0] < total / 25 < priced["per_high"][0]


def test_spent_currencies_leave_out_what_is_zero_or_unmeasured(answers):
    ledger = make_ledger(answers, only=({"latency_b1_s": None}, 5, 5))
    spent = {currency.column for currency in spent_currencies(points(cells(ledger)))}
    expected = {"visible_tokens", "serial_steps", "model_flops", "state_bytes", "block_calls"}
    assert spent == expected


BUDGET = {
    "budget_trace": "none",
    "budget_forced_end": None,
    "budget_loops": None,
    "budget_latent_steps_allowed": None,
    "budget_samples": 1,
    "budget_stop": None,
}


@pytest.mark.parametrize(
    ("changes", "several", "name"),
    [
        ({}, False, "direct"),
        ({"budget_trace": "full", "budget_forced_end": 8}, False, "full trace, cut at 8"),
        ({"budget_loops": 1}, False, "direct"),
        ({"budget_loops": 1}, True, "direct, 1 loop"),
        ({"budget_loops": 3}, False, "direct, 3 loops"),
        ({"budget_loops": 3}, None, "direct"),
        ({"budget_latent_steps_allowed": 4}, False, "direct, 4 latent steps"),
        ({"budget_trace": "short", "budget_samples": 5}, False, "short trace, vote of 5"),
        ({"budget_stop": "kl:0.1"}, False, "direct, kl:0.1"),
        ({"budget_stop": "none"}, False, "direct, all loops"),
    ],
)
def test_budgets_have_names(changes, several, name):
    assert budget_name(BUDGET | changes, several) == name


def test_budgets_are_ordered_from_direct_to_long(answers):
    ledger = answers("looped_transformer", items=2)
    order = cells(ledger.sample(fraction=1.0, shuffle=True, seed=1))["budget"]
    assert order.unique(maintain_order=True).to_list() == [
        f"{family}, {loops} loop{'s' if loops > 1 else ''}"
        for family in ("direct", "full trace, cut at 8", "full trace")
        for loops in (1, 2, 3)
    ]


def test_amounts_are_written_for_people():
    assert amount(8.1e6, CURRENCY["model_flops"]).split() == ["8.1M", "FLOPs"]
    assert amount(33792, CURRENCY["state_bytes"]).split() == ["33", "KiB"]
    assert amount(0.00144, CURRENCY["latency_b1_s"]).split() == ["1.44", "ms"]
    assert amount(2.0, TOKENS).split() == ["2", "tokens"]
    assert amount(None, TOKENS) == "–"
    assert amount_bounds(980, 1100, 1020, TOKENS) == "[0.98, 1.1]"
    assert amount_bounds(2, None, 3, TOKENS) == "[2, ∞]"
    assert [figures(v) for v in (0.0012345, 123456, 999.6, 10)] == [
        "0.00123",
        "123,456",
        "1,000",
        "10",
    ]
