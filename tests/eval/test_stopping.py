"""Stopping rules beside fixed counts and the oracle, from a ledger written by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from eval.stopping import in_order, is_about_stopping, stopping, stopping_tables
from eval.stopping_figure import draw_stopping, frugal

BASE: dict[str, Any] = {
    "task": "words",
    "split": "test",
    "budget_trace": "none",
    "beyond": False,
    "block_calls": 10,
    "batch_s": 0.002,
}


def rows(run: str) -> list[dict[str, Any]]:
    """Question i, of level i, is right from i loops on; the rule runs i loops, and errs on one."""
    made = []
    for index in (1, 2, 3):
        for loops in (1, 2, 3):
            made.append(
                BASE
                | {"run": run, "level": index, "index": index, "correct": loops >= index}
                | {"budget_loops": loops, "budget_stop": "none", "model_flops": 1e6 * loops}
                | {"mean_loops": float(loops), "answer_loops": float(loops)}
            )
        made.append(
            BASE
            | {"run": run, "level": index, "index": index, "correct": index < 3}
            | {"budget_loops": None, "budget_stop": "kl:0.1", "model_flops": 1.5e6 * index}
            | {"mean_loops": 3.0, "answer_loops": float(index)}
        )
    return made


@pytest.fixture
def ways() -> list[Any]:
    ledger = pl.DataFrame(rows("a") + rows("b"))
    runs = [SimpleNamespace(name=name, backbone="looped") for name in ("a", "b")]
    return in_order(stopping(ledger, runs))  # type: ignore[arg-type]


def test_each_way_is_what_its_rows_say(ways: list[Any]) -> None:
    assert [way.name for way in ways] == ["1 loop", "2 loops", "3 loops", "kl:0.1", "oracle"]
    one, _, three, rule, oracle = ways
    assert one.accuracy == pytest.approx([1 / 3, 1 / 3]) and one.with_level == []
    assert (three.correct, three.asked) == (6, 6)
    assert rule.accuracy == pytest.approx([2 / 3, 2 / 3]) and rule.loops == [2.0, 2.0]
    assert rule.with_level == pytest.approx([1.0, 1.0]) == rule.with_need
    assert rule.by_level == {1: 1.0, 2: 2.0, 3: 3.0}
    assert oracle.accuracy == [1.0, 1.0] and oracle.flops == pytest.approx([2e6, 2e6])


def test_the_oracle_runs_one_loop_where_none_is_right() -> None:
    ledger = pl.DataFrame(rows("a")).with_columns(correct=pl.lit(value=False))
    runs = [SimpleNamespace(name="a", backbone="looped")]
    oracle = in_order(stopping(ledger, runs))[-1]  # type: ignore[arg-type]
    assert oracle.accuracy == [0.0] and oracle.loops == [1.0]


def test_ledgers_without_rules_have_nothing_to_say(ways: list[Any]) -> None:
    plain = pl.DataFrame(rows("a")).filter(pl.col("budget_stop") == "none")
    assert not is_about_stopping(plain) and stopping(plain, []) == []
    assert not is_about_stopping(plain.drop("answer_loops"))
    assert stopping_tables([]) == []


def test_tables_and_pictures_show_every_way(ways: list[Any], tmp_path: Path) -> None:
    (table,) = stopping_tables(ways)
    assert [row[0].text for row in table.rows] == [way.name for way in ways]
    assert table.rows[0][5].text == "2.00", "milliseconds"
    assert "2 seeds" in table.note and "all 6 answers" in table.note
    assert frugal(ways[:3]).name == "3 loops"
    figure = draw_stopping(ways, trained_mean=2.0)
    cost, sweep, spent = figure.axes
    assert len(cost.lines) == 3 and len(spent.lines) == 2
    assert [text.get_text() for text in sweep.texts] == ["trained mean", "twice"]
    figure.savefig(tmp_path / "stopping.png")
