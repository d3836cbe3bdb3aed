"""The tables say what the ledgers say: who is cheapest, what is unsure, what is unequal."""

import polars as pl
import pytest

from eval.comparisons import comparisons
from eval.findings import gather
from eval.page import render_page
from eval.run_tables import backbone_table, sample_table
from eval.runs import read_runs
from eval.tables import best_eta_table, level_tables, verdict_table


@pytest.fixture(scope="module")
def findings(experiment):
    return gather([experiment], 0.9)


def texts(table):
    return [[entry.text for entry in row] for row in table.rows]


def test_the_first_table_names_who_is_cheapest(findings):
    table = verdict_table(findings)
    assert table.columns == ["Currency", "parity", "swaps"]
    tokens, _, flops, state, _ = table.rows
    assert tokens[2].text == "gated_deltanet and deltanet_hybrid"
    assert "2\u202ftokens" in tokens[2].detail[0]
    assert tokens[2].detail[-1].startswith("next: transformer, full trace: 15\u202ftokens (7.5×)")
    assert flops[2].text == "deltanet_hybrid"
    assert state[2].text == "gated_deltanet"


def test_none_is_said_where_nothing_reaches_the_threshold(experiment):
    for row in verdict_table(gather([experiment], 0.999)).rows:
        assert [entry.text for entry in row[1:]] == ["none", "none"]
        assert row[1].detail[0].startswith("most accurate: ")


def test_an_unsure_winner_is_said_to_be_unsure(findings):
    exact = findings.points.filter(label="gated_deltanet", task="swaps", budget="direct")
    threshold = exact["accuracy"].item()
    assert exact["low"].item() < threshold
    table = verdict_table(gather([run.folder for run in findings.runs], threshold))
    assert "interval reaches below" in " ".join(table.rows[0][2].detail)


def test_level_table_tells_fitting_from_generalising(findings):
    swaps = level_tables(findings)[1]
    assert swaps.columns[2:] == [
        "Level 2 (train-only), n = 500",
        "Level 8, n = 500",
        "Level 16, n = 500",
        "Level 24 (harder), n = 500",
    ]
    assert swaps.rows[0][2].text.startswith("100.0 [99.2, ")


def test_eta_names_its_budget(findings):
    row = dict(zip([r.label for r in findings.runs], best_eta_table(findings).rows, strict=True))
    assert row["gated_deltanet"][1].detail == ("direct",)
    assert row["transformer"][1].detail == ("full trace",)


def test_comparisons_are_paired_on_the_same_questions(findings):
    found = comparisons(findings.ledger, findings.points)
    assert [best["task"] for best, _, _ in found] == ["parity"] * 4 + ["swaps"] * 4
    for best, other, gap in found:
        assert gap.items == 1000
        assert gap.difference == pytest.approx(best["accuracy"] - other["accuracy"])


def test_comparisons_use_templates_as_clusters(findings):
    named = findings.ledger.with_columns(template=(pl.col("index") // 10).cast(pl.String))
    assert {gap.clusters for _, _, gap in comparisons(named, findings.points)} == {50}


def test_other_questions_are_not_compared(findings):
    other = findings.ledger.with_columns(seed=pl.col("run").rank("dense").cast(pl.Int64))
    assert comparisons(other, findings.points) == []


def test_notes_say_what_is_unequal(tmp_path, answers, make_run):
    make_run(tmp_path / "a", answers("transformer", items=5), train_tokens=1000)
    make_run(tmp_path / "b", answers("gated_deltanet", items=5), train_tokens=2000)
    notes = " ".join(gather([tmp_path], 0.9).notes())
    assert "Parameters differ by 1.1%" in notes
    assert "swaps: not trained on the same number of tokens (1,000 to 2,000)" in notes


def test_tasks_may_be_trained_for_different_times(tmp_path, answers, make_run):
    """What is compared is the runs that answered one task."""
    make_run(tmp_path / "a", answers("transformer", "parity", items=5), train_tokens=1000)
    make_run(tmp_path / "b", answers("transformer", "swaps", items=5), train_tokens=2000)
    assert "number of tokens" not in " ".join(gather([tmp_path], 0.9).notes())


def test_a_level_that_not_all_answered_is_said_to_be_left_out(tmp_path, answers, make_run):
    make_run(tmp_path / "a", answers("transformer", items=5))
    part = answers("gated_deltanet", items=5).filter(pl.col("level") != 16)
    make_run(tmp_path / "b", part)
    findings = gather([tmp_path], 0.9)
    assert "swaps: level 16 is not pooled" in " ".join(findings.notes())
    assert findings.points["levels"].to_list() == [[8]] * findings.points.height


def test_samples_show_right_and_wrong_answers(findings):
    table = sample_table(findings.runs[0], 2)
    assert table is not None
    assert [row[0] for row in texts(table)] == ["right", "right", "wrong", "wrong"]


def test_samples_make_control_characters_visible_and_long_texts_short(tmp_path, answers, make_run):
    make_run(tmp_path / "run", answers("transformer", items=5))
    run = read_runs([tmp_path / "run"])[0]
    odd = "a\x00\u202eb\n" + "x" * 1000
    run.ledger.replace_column(
        run.ledger.columns.index("output_text"),
        pl.Series("output_text", [odd] * run.ledger.height),
    )
    table = sample_table(run, 1)
    assert table is not None
    written = texts(table)[0][-1]
    assert written.startswith("a\\x00\\x202eb\\x0axxx")
    assert written.endswith("(605 more)")


def test_no_text_in_the_ledger_is_no_obstacle(tmp_path, answers, make_run):
    ledger = answers("transformer", items=5).drop("question_text", "answer_text", "output_text")
    make_run(tmp_path / "run", ledger)
    assert "What they wrote" not in render_page(gather([tmp_path], 0.9), {}, 2, b"")


def test_facts_of_a_backbone_are_listed_whatever_they_are(tmp_path, answers, make_run):
    facts = {"chunk_size": 32, "depth": {"kind": "looped"}, "corpus": "f" * 64}
    make_run(tmp_path / "run", answers("transformer", items=5), **facts)
    table = backbone_table(gather([tmp_path], 0.9))
    found = dict(texts(table))
    assert found["Parameters"] == "210,112"
    assert found["Weights"] == "821\u202fKiB"
    assert found["Learning rate (peak)"] == "0.02"
    assert (found["chunk_size"], found["depth.kind"]) == ("32", "looped")
    assert found["corpus"] == "ffffffffffff…"
