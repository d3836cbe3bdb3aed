"""The ledger refuses what cannot be trusted, and a file of it is complete or absent."""

import os
import re
from pathlib import Path

import polars as pl
import pytest

from data.atomic import WriteError
from eval.columns import BUDGET_COLUMNS, COLUMNS
from eval.ledger import Ledger, LedgerError, read_ledger, validate, write_ledger

DESIGN = [
    *("run", "backbone", "task", "level", "split", "index", "budget_trace", "budget_forced_end"),
    *("budget_loops", "budget_latent_steps_allowed", "budget_samples", "correct", "chance"),
    *("visible_tokens", "latent_steps", "block_calls", "model_flops", "serial_steps"),
    *("state_bytes", "latency_b1_s", "batch_s", "joules", "seed"),
]


@pytest.fixture
def frame(answers):
    return answers("transformer", items=4)


def test_schema_holds_the_columns_of_the_design_in_order():
    names = [column.name for column in COLUMNS]
    assert names[: len(DESIGN)] == DESIGN
    assert len(set(names)) == len(names)
    assert all(column.meaning for column in COLUMNS)
    budget = [name for name in DESIGN if name.startswith("budget_")]
    assert list(BUDGET_COLUMNS) == [*budget, "budget_stop"]


def test_the_documentation_lists_every_column():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    rows = re.findall(r"^\| `(\w+)`(?: \(optional\))? \| (.*?) \| (.*) \|$", page.read_text(), re.M)
    assert rows == [(c.name, c.unit or "–", c.meaning) for c in COLUMNS]


def test_rows_come_back_as_they_were_written(tmp_path, frame):
    ledger = Ledger()
    ledger.extend(frame.to_dicts())
    path = tmp_path / "run" / "ledger.parquet"
    ledger.write(path)
    again = read_ledger(path)
    assert len(ledger) == again.height == frame.height
    assert again.equals(validate(frame, "frame"))
    assert again.columns[: len(DESIGN)] == DESIGN
    assert os.listdir(path.parent) == ["ledger.parquet"]


def test_an_earlier_ledger_can_be_continued(frame):
    first, second = frame.head(6), frame.tail(frame.height - 6)
    ledger = Ledger(first)
    ledger.extend(second.to_dicts())
    assert ledger.frame().equals(validate(frame, "frame"))


def test_columns_may_be_added(frame):
    more = frame.with_columns(checkpoint=pl.lit("abc"))
    assert validate(more, "ledger").columns[-1] == "checkpoint"


def test_a_row_names_what_it_lacks(frame):
    row = frame.row(0, named=True)
    del row["joules"], row["seed"]
    with pytest.raises(LedgerError, match="joules, seed"):
        Ledger().append(row)


def test_whole_numbers_may_come_as_floats(frame):
    counted = frame.with_columns(pl.col("block_calls").cast(pl.Float64))
    assert validate(counted, "ledger")["block_calls"].dtype == pl.Int64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop("chance"), "no column chance"),
        (lambda f: f.with_columns(correct=pl.col("correct").cast(pl.String)), "column correct"),
        (lambda f: f.with_columns(index=pl.col("index") + 0.5), "column index holds Float64"),
        (lambda f: f.with_columns(visible_tokens=-1), "below zero"),
        (lambda f: f.with_columns(model_flops=float("nan")), "NaN or infinity"),
        (lambda f: f.with_columns(chance=1.0), r"outside \[0, 1\)"),
        (lambda f: f.with_columns(seed=pl.lit(None, dtype=pl.Int64)), "column seed lacks"),
        (lambda f: pl.concat([f, f.head(3)]), "3 answers are counted twice"),
        (lambda f: f.clear(), "no rows"),
    ],
)
def test_a_wrong_ledger_is_refused_in_one_line(tmp_path, frame, change, says):
    path = tmp_path / "ledger.parquet"
    change(frame).write_parquet(path)
    with pytest.raises(LedgerError, match=says) as refused:
        read_ledger(path)
    assert str(path) in str(refused.value)
    assert f"python -m eval run={tmp_path}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_or_damaged_file_is_named(tmp_path, frame):
    path = tmp_path / "ledger.parquet"
    with pytest.raises(LedgerError, match="no such ledger; make it with: python -m eval"):
        read_ledger(path)
    write_ledger(frame, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LedgerError, match="not readable as Parquet"):
        read_ledger(path)


def test_a_failed_write_leaves_the_old_ledger_alone(tmp_path, frame, monkeypatch):
    path = tmp_path / "ledger.parquet"
    write_ledger(frame, path)
    before = path.read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="disk is full"):
        write_ledger(frame.head(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ledger.parquet"]
