"""Runs taken together: which rate is reported, who solves a task, and what may be said of it."""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from eval.findings import MOST_SHOWN_ALONE, Findings, gather
from eval.group_costs import cost_of_groups
from eval.loops_and_layers import gap_table, shape_of
from eval.markdown import markdown_table
from eval.mechanism_tables import mechanism_level_tables, mechanism_table, rate_table
from eval.mechanisms import Mechanisms
from eval.report import main, write_report
from eval.table import Entry, Table

ITEMS = 40
GOOD = {8: 1.0, 16: 0.95, 24: 0.9}
HALF = {8: 1.0, 16: 0.8, 24: 0.0}


@pytest.fixture
def sweep(tmp_path: Path, answers, make_run):
    """Give the function that adds a run of a made-up sweep, and the sweep's folder."""

    def add(
        backbone: str,
        task: str,
        seed: int,
        rate: float,
        loss: float | None,
        accuracy: Mapping[int, float],
        setup: str = "",
    ) -> Path:
        name = f"{backbone}-{task}-s{seed}-{rate}{setup}"
        ledger = answers("transformer", items=ITEMS).filter(pl.col("budget_trace") == "none")
        ledger = ledger.with_columns(
            *(pl.lit(value).alias(key) for key, value in {"run": name, "task": task}.items()),
            backbone=pl.lit(backbone),
            correct=pl.struct("level", "index").map_elements(
                lambda at: at["index"] < ITEMS * accuracy.get(at["level"], 1.0),
                return_dtype=pl.Boolean,
            ),
        )
        facts = {"seed": seed, "peak_learning_rate": rate, "corpus": f"c0ffee {task}"}
        folder = make_run(tmp_path / "sweep" / name, answers("transformer", items=1), **facts)
        (folder / "ledger.parquet").unlink()
        ledger.write_parquet(folder / "ledger.parquet")
        (folder / "config.yaml").write_text(
            f"seed: {seed}\noptim: {{kind: muon, lr: {rate}}}\ndata: {{name: {task}}}\n"
            f"trainer: {{max_steps: 7{setup}}}\n"
        )
        said = "" if loss is None else loss
        (folder / "metrics.csv").write_text(f"step,loss,validation_loss\n1,2,9\n2,1,{said}\n3,1,\n")
        return folder

    return add, tmp_path / "sweep"


def found_in(folder: Path) -> Mechanisms:
    found = gather([folder], 0.9).mechanisms
    assert found is not None
    return found


def texts(table: Table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


def test_reports_of_single_runs_stay_as_they_were(experiment: Path, tmp_path: Path) -> None:
    findings = write_report([experiment], tmp_path / "report.html")
    assert findings.mechanisms is None and not findings.shows_groups_only
    assert not (tmp_path / "mechanisms.png").exists()
    assert "Seeds taken together" not in (tmp_path / "report.html").read_text()


def test_the_rate_is_chosen_by_validation_loss_alone(sweep) -> None:
    """The other rate is better on the test questions, and is not looked at."""
    add, folder = sweep
    for seed in (0, 1):
        add("gdn", "s3", seed, 0.01, 0.2 + seed / 10, HALF)
        add("gdn", "s3", seed, 0.02, 0.3 + seed / 10, GOOD)
    outcome = found_in(folder).outcomes["gdn", "s3"]
    assert outcome.rate == 0.01
    assert outcome.losses == pytest.approx({0.01: 0.25, 0.02: 0.35})
    assert [result.seed for result in outcome.seeds] == [0, 1]
    table = rate_table(found_in(folder))
    assert table is not None
    assert [entry.tone for entry in table.rows[0]] == ["", "", "strong", ""]
    assert table.rows[0][3].detail == ("97.5 [97.5 to 97.5], 2/2",)


def test_a_rate_that_lost_a_seed_is_not_chosen(sweep) -> None:
    add, folder = sweep
    add("gdn", "s3", 0, 0.02, 0.1, GOOD)
    for seed in (0, 1):
        add("gdn", "s3", seed, 0.01, 0.5, GOOD)
    assert found_in(folder).outcomes["gdn", "s3"].rate == 0.01


def test_a_seed_solves_a_task_at_every_held_out_level(sweep) -> None:
    """Not on the mean, and without the levels that are train-only or beyond training."""
    add, folder = sweep
    add("gdn", "s3", 0, 0.01, 0.1, {8: 1.0, 16: 0.85, 2: 1.0, 24: 1.0})
    add("gdn", "s3", 1, 0.01, 0.1, {8: 0.9, 16: 0.9, 2: 0.0, 24: 0.0})
    first, second = found_in(folder).outcomes["gdn", "s3"].seeds
    assert first.accuracy > 0.92 and not first.solved
    assert second.solved
    assert first.levels.keys() == {8, 16} and first.beyond == {24: 1.0}


def test_no_verdict_without_a_positive_control(sweep) -> None:
    add, folder = sweep
    for seed in (0, 1, 2):
        add("gdn", "s3", seed, 0.01, 0.1, GOOD if seed < 2 else HALF)
        add("attn", "s3", seed, 0.01, 0.1, HALF)
        add("gdn", "s5", seed, 0.01, 0.1, GOOD if seed < 1 else HALF)
        add("attn", "s5", seed, 0.01, 0.1, HALF)
    found = found_in(folder)
    assert found.controls == {"s3": "gdn", "s5": None}
    table = mechanism_table(found)
    assert texts(table) == [["attn", "0/3", "–"], ["gdn", "2/3", "–"]]
    assert all("no control passed" in row[2].detail for row in table.rows)
    assert "s3: gdn, 2 of 3 seeds" in table.note
    assert "No verdict on s5" in table.note


def test_levels_are_told_with_the_range_over_seeds(sweep) -> None:
    add, folder = sweep
    add("gdn", "s3", 0, 0.01, 0.1, {8: 1.0, 16: 1.0, 24: 0.0})
    add("gdn", "s3", 1, 0.01, 0.1, {8: 1.0, 16: 0.5, 24: 0.0})
    (table,) = mechanism_level_tables(found_in(folder))
    assert table.columns == ["Backbone", "Level 8", "Level 16", "Level 24 (harder)"]
    assert texts(table)[0][2] == "75.0 [50.0 to 100.0]"


def test_harder_levels_are_told_only_where_somebody_beats_guessing(sweep) -> None:
    add, folder = sweep
    for seed in (0, 1):
        add("gdn", "s3", seed, 0.01, 0.1, GOOD)
        add("gdn", "parity", seed, 0.01, 0.1, {**GOOD, 24: 0.0})
    found = found_in(folder)
    assert found.goes_beyond("s3") and not found.goes_beyond("parity")
    by_task = dict(zip(found.tasks, mechanism_table(found).rows[0][1:], strict=True))
    assert any(line.startswith("harder") for line in by_task["s3"].detail)
    assert not any(line.startswith("harder") for line in by_task["parity"].detail)


def test_other_settings_are_other_groups(sweep) -> None:
    add, folder = sweep
    for seed in (0, 1):
        add("gdn", "s3", seed, 0.01, 0.1, GOOD)
        add("gdn", "s3", seed, 0.01, 0.1, HALF, setup="00")
    found = found_in(folder)
    assert len(found.labels) == 2
    assert all(label.startswith("gdn (") for label in found.labels)
    assert sorted(outcome.solved for outcome in found.outcomes.values()) == [0, 2]


def test_missing_validation_losses_are_said(sweep) -> None:
    add, folder = sweep
    for rate in (0.01, 0.02):
        run = add("gdn", "s3", 0, rate, None, GOOD)
        (run / "metrics.csv").unlink()
    findings = gather([folder], 0.9)
    assert any("No validation loss" in note and "gdn on s3" in note for note in findings.notes())


@pytest.fixture
def many(sweep) -> Path:
    """More runs than can be shown one by one, each with one task only."""
    add, folder = sweep
    for task in ("s3", "mqar"):
        for backbone in ("attn", "gdn", "gla"):
            for seed in (0, 1, 2):
                add(backbone, task, seed, 0.01, 0.1, GOOD if backbone != "gla" else HALF)
    return folder


def test_many_runs_are_shown_as_groups(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"runs={many}"]) == 0
    said = capsys.readouterr().out
    assert "Which seeds solve what" in said and said.count("gla") <= 3  # a row of each table
    files = {path.name for path in many.iterdir() if path.is_file()}
    pictures = {"mechanisms.png", "costs.png", "recall.png"}
    assert files == {"report.html", "mechanisms.md", *pictures}
    page = (many / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "data-figure" not in page and len(page) < 1_000_000
    text = (many / "mechanisms.md").read_text()
    assert "| attn | **3/3**<br>97.5 \\[97.5 to 97.5\\]" in text
    header = (many / "mechanisms.png").read_bytes()[16:24]
    assert int.from_bytes(header[:4], "big") == 1400


def test_a_few_runs_are_shown_alone_too(sweep) -> None:
    """Each with a task of its own, so that no task is answered by all."""
    add, folder = sweep
    for task in ("s3", "parity"):
        for seed in (0, 1):
            add("gdn", task, seed, 0.01, 0.1, GOOD)
    findings: Findings = write_report([folder], folder / "report.html")
    assert len(findings.runs) <= MOST_SHOWN_ALONE
    assert set(findings.points["task"]) == {"s3", "parity"}
    page = (folder / "report.html").read_text()
    assert "Seeds taken together" in page and 'data-figure="frontier"' in page
    assert (folder / "mechanisms.png").is_file() and (folder / "frontier.png").is_file()


def test_markdown_cannot_be_broken_out_of() -> None:
    rows = [[Entry("a|b"), Entry("1", "strong", ("<i>",))]]
    table = Table("T", ["name", "n"], rows, names=1)
    assert "| a\\|b | **1**<br>\\<i\\> |" in markdown_table(table)
    assert all(line.count(" | ") == 1 for line in markdown_table(table).splitlines()[2:])


# Loops against layers


def shaped(folder: Path, layers: int, loops: int, **depth: object) -> None:
    """Say in cost.json that a run is (layers x loops)."""
    path = folder / "cost.json"
    kind = {"kind": "looped", "prelude": 0, "coda": 0, "loops": loops} | depth
    facts = {"block_calls_per_position": layers * loops}
    facts["depth"] = kind if loops > 1 else {"kind": "fixed"}
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_the_gap_that_loops_close(sweep) -> None:
    add, folder = sweep
    accuracy = {(1, 1): 0.3, (1, 4): 0.75, (2, 2): 0.9, (4, 1): 0.9, (3, 1): 0.5}
    for (layers, loops), share in accuracy.items():
        for seed in (0, 1):
            levels = {8: share, 16: share + 0.05 * seed}
            run = add(f"{layers}x{loops}", "s3", seed, 0.01, 0.1, levels)
            shaped(run, layers, loops)
    findings = gather([folder], 0.9)
    table = gap_table(findings.mechanisms, findings.runs, findings.cells)
    assert table is not None
    shown = {row[1]: row for row in texts(table)}
    assert list(shown) == ["(1 x 1)", "(1 x 4)", "(2 x 2)", "(4 x 1)"], "(3 x 1) is no part"
    assert shown["(1 x 4)"][4] == "75%" and shown["(2 x 2)"][4] == "100%"
    assert shown["(1 x 1)"][4] == shown["(4 x 1)"][4] == ""
    assert shown["(1 x 4)"][2] == "76.2 [75.0 to 77.5]"
    assert shown["(1 x 4)"][3] == "76.2 [69.1, 82.2]", "Wilson, 122 of 160"
    assert "99.5, 99.6 (99.8% of the gap)" in table.note
    assert "Loops against layers" in write_markdown(folder)


def write_markdown(folder: Path) -> str:
    write_report([folder], folder / "report.html")
    assert "Loops against layers" in (folder / "report.html").read_text()
    return (folder / "mechanisms.md").read_text()


def test_without_both_stacks_there_is_no_gap(sweep) -> None:
    add, folder = sweep
    for layers, loops in ((1, 1), (1, 4)):
        for seed in (0, 1):
            shaped(add(f"{layers}x{loops}", "s3", seed, 0.01, 0.1, GOOD), layers, loops)
    findings = gather([folder], 0.9)
    assert gap_table(findings.mechanisms, findings.runs, findings.cells) is None
    assert gap_table(None, findings.runs, findings.cells) is None


@pytest.mark.parametrize(
    ("depth", "calls", "shape"),
    [
        ({"kind": "fixed"}, 4, (4, 1)),
        ({"kind": "looped", "prelude": 0, "coda": 0, "loops": 3}, 6, (2, 3)),
        ({"kind": "looped", "prelude": 1, "coda": 0, "loops": 3}, 7, None),
        ({}, 4, None),
        ({"kind": "fixed"}, None, None),
    ],
)
def test_shapes_are_read_from_costs(depth, calls, shape) -> None:
    assert shape_of({"depth": depth, "block_calls_per_position": calls}) == shape


def test_groups_show_what_their_answers_cost(sweep) -> None:
    """Over the seeds, at the rate that was chosen; the other rate is not looked at."""
    add, folder = sweep
    for seed, accuracy in ((0, GOOD), (1, HALF)):
        add("gdn", "s3", seed, 0.01, 0.5, accuracy)
        add("gdn", "s3", seed, 0.02, 0.9, GOOD)
    findings = write_report([folder], folder / "report.html")
    assert findings.grouped is not None
    (table,) = cost_of_groups(findings.grouped)
    (row,) = texts(table)
    assert table.columns[:3] == ["Backbone", "Budget", "Accuracy (%)"]
    assert row[:3] == ["gdn", "direct", "93.8 [90.0 to 97.5]"]
    assert "tokens" in row[3]
    assert "what an answer costs" in (folder / "report.html").read_text()
    assert (folder / "costs.png").read_bytes()[:4] == b"\x89PNG"
