"""Answers to changed thoughts: what is changed, what is counted, and where it is kept and shown."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from torch import Tensor

from data.split import evaluation_problems
from eval import faithfulness_files
from eval.budget import Budget, BudgetConfig
from eval.config import EvalConfig, TaskEval
from eval.evaluate import Subject
from eval.evaluate_run import evaluate_run
from eval.faithfulness import (
    AS_THEY_ARE,
    CHANGES,
    HALF,
    NONE,
    SWAPPED,
    ZEROED,
    Carried,
    Check,
    check_thoughts,
    derangement,
    zeros,
)
from eval.faithfulness_files import FAITHFULNESS_FILE, read_checks, what_is_asked, write_checks
from eval.faithfulness_table import faithfulness_tables
from eval.findings import gather
from eval.generate import AlterOf, generate
from eval.page import render_page
from eval.questions import make_request
from models.backbone import Backbone
from models.latent.feedback import FeedbackConfig
from models.latent.filler import FillerConfig
from models.latent.latent import Alter
from models.latent.lotus import LotusConfig
from models.latent.pause import PauseConfig
from models.latent.slots import SlotConfig
from models.latent.soft import SoftConfig
from tests.eval.scripted import TOKENIZER
from tests.eval.thinking import thinking_backbone

SCHEMES = {
    "pause": PauseConfig(thoughts=3),
    "filler": FillerConfig(thoughts=3),
    "feedback": FeedbackConfig(thoughts=3),
    "jacobi": FeedbackConfig(thoughts=3, jacobi=2),
    "lotus": LotusConfig(thoughts=3, loops=3),
    "soft": SoftConfig(thoughts=3),
}
ITEMS = 5
CONFIG = EvalConfig(
    tasks={"s3_swaps": TaskEval([8])},
    items=ITEMS,
    budgets=BudgetConfig(traces=["none", "full"]),
    faithfulness=True,
)


def subject(latent: SlotConfig) -> Subject:
    return Subject(thinking_backbone(latent), TOKENIZER, "run", "thinker", "abc")


def written(backbone: Backbone, alter: AlterOf | None = None, seed: int = 0) -> list[list[int]]:
    """What is written after each question; two are read at a time."""
    problems = evaluation_problems("s3_swaps", 8, "test", 0, ITEMS)
    requests = [make_request(p, index, "full", TOKENIZER) for index, p in enumerate(problems)]
    given = (backbone, requests, Budget("full", forced_end=4), TOKENIZER, 2, seed)
    return [samples[0].tokens for samples in generate(*given, alter=alter)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_replayed_thoughts_change_nothing_and_swaps_can_be_undone(scheme: str) -> None:
    backbone, carried, swapped = thinking_backbone(SCHEMES[scheme]), Carried(ITEMS), Carried(ITEMS)
    plain = written(backbone)
    assert written(backbone, carried.look) == plain
    assert [sorted(each) for each in carried.inputs] == [[0, 1, 2]] * ITEMS
    assert written(backbone, carried.give) == plain
    pairs = np.array([1, 0, 3, 2, 4])

    def swap(places: Sequence[int]) -> Alter:
        give, look = carried.give(pairs[list(places)]), swapped.look(places)

        def both(made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
            return look(give(made_MD, rows_M, numbers_M), rows_M, numbers_M)

        return both

    other = written(backbone, swap)
    if scheme in ("pause", "filler"):
        assert other == plain
    assert written(backbone, lambda places: swapped.give(pairs[list(places)])) == plain


@pytest.mark.parametrize("scheme", ["feedback", "jacobi", "lotus", "soft"])
def test_other_thoughts_make_other_texts(scheme: str) -> None:
    backbone, carried = thinking_backbone(SCHEMES[scheme]), Carried(ITEMS)
    plain, source = written(backbone, carried.look), derangement(ITEMS, [0, 8])
    assert written(backbone, lambda places: carried.give(source[list(places)])) != plain
    assert written(backbone, zeros) != plain


@pytest.mark.parametrize("count", [2, 3, 8, 501])
def test_nobody_gets_their_own_thoughts_and_all_are_given(count: int) -> None:
    source = derangement(count, [0, 8])
    assert sorted(source) == list(range(count))
    assert (source != np.arange(count)).all()
    assert (source == derangement(count, [0, 8])).all()
    assert count < 8 or (source != derangement(count, [1, 8])).any()


def test_every_change_is_asked_of_every_question() -> None:
    asked = subject(SCHEMES["pause"])
    checks = check_thoughts(asked, CONFIG)
    assert [check.change for check in checks] == list(CHANGES)
    assert [check.latent_steps for check in checks] == [3, 3, 3, 1, 0]
    assert {(c.asked, c.task, c.level, c.trace) for c in checks} == {(ITEMS, "s3_swaps", 8, "full")}
    assert not any(check.beyond or check.train_only for check in checks)
    plain, swapped = checks[:2]
    assert plain.changed == swapped.changed == 0 and swapped.right == plain.right


def test_what_makes_no_sense_is_left_out() -> None:
    one = check_thoughts(subject(FeedbackConfig(thoughts=1)), CONFIG)
    assert [check.change for check in one] == [AS_THEY_ARE, SWAPPED, ZEROED, NONE]
    alone = check_thoughts(subject(FeedbackConfig(thoughts=2)), replace(CONFIG, items=1))
    assert [check.change for check in alone] == [AS_THEY_ARE, ZEROED, HALF, NONE]
    assert check_thoughts(subject(FeedbackConfig(thoughts=0)), CONFIG) == []


def test_answers_are_counted_by_the_tasks_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = evaluation_problems("s3_swaps", 8, "test", 0, ITEMS)
    answers = [problem.answer for problem in problems]
    said = iter([answers, [*answers[:3], None, "wrong"], answers, answers, [None] * ITEMS])
    monkeypatch.setattr("eval.faithfulness.ask", lambda *_: next(said))
    checks = check_thoughts(subject(SCHEMES["feedback"]), CONFIG)
    assert [check.right for check in checks] == [5, 3, 5, 5, 0]
    assert [check.changed for check in checks] == [0, 2, 0, 0, 5]


# In a run's folder


def test_a_run_is_checked_once_for_what_is_asked(
    thinking_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, tasks={"s3_swaps": TaskEval([2, 8])}, items=3, latency_items=0)
    evaluate_run(thinking_run, config, "cpu")
    kept = json.loads((thinking_run / FAITHFULNESS_FILE).read_text())
    checks = read_checks(thinking_run, kept["checkpoint"], what_is_asked(config))
    assert checks is not None and len(checks) == 2 * len(CHANGES)
    assert [check.train_only for check in checks] == [True] * 5 + [False] * 5
    assert read_checks(thinking_run, "another checkpoint") is None
    assert read_checks(thinking_run, None, what_is_asked(replace(config, items=4))) is None

    assert gather([thinking_run], 0.9).checks == {"transformer": checks}

    def fail(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(faithfulness_files, "check_thoughts", fail)
    evaluate_run(thinking_run, config, "cpu")
    with pytest.raises(AssertionError, match="asked again"):
        evaluate_run(thinking_run, config, "cpu", force=True)
    with pytest.raises(ValueError, match=r"^eval\.faithfulness=true needs a trace mode"):
        evaluate_run(thinking_run, replace(config, budgets=BudgetConfig()), "cpu")


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    assert read_checks(tmp_path) is None
    (tmp_path / FAITHFULNESS_FILE).write_text("{")
    assert read_checks(tmp_path) is None


# In the report


def made_up(change: str, level: int, right: int, changed: int = 0) -> Check:
    return Check(
        "swaps", level, "full", change, 3, right, 100, changed, 1 / 3, level > 16, level < 8
    )


def test_the_table_sets_changes_side_by_side() -> None:
    checks = [
        made_up(change, level, right, 100 - right)
        for level in (2, 8, 16, 24)
        for change, right in ((AS_THEY_ARE, 90), (SWAPPED, 35), (ZEROED, 80), (NONE, 90))
    ]
    (table,) = faithfulness_tables({"thinker": checks})
    assert [row[2].text for row in table.rows] == [
        *("held-out", "2 (train-only)", "8", "16", "24 (harder)")
    ]
    pooled = table.rows[0]
    assert pooled[3].text == "90.0 [85.1, 93.4]" and pooled[3].detail == ("n = 200",)
    assert pooled[4].tone == "faint" and pooled[4].detail == ("65.0% differ",)
    assert pooled[6].text == "–", "half of them was not asked"
    assert "don't depend on what thoughts carry" in table.note
    assert faithfulness_tables({}) == []


def test_a_report_shows_the_checks_of_its_ledgers_weights(
    tmp_path: Path, answers: Callable[..., pl.DataFrame], make_run: Callable[..., Path]
) -> None:
    ledger = answers("transformer", items=20).with_columns(checkpoint=pl.lit("abc"))
    folder = make_run(tmp_path / "transformer", ledger)
    checks = [made_up(change, 8, 50) for change in CHANGES]
    write_checks(folder, "abc", {}, checks)
    page = render_page(gather([folder], 0.9), {}, 0, b"")
    assert "Do answers depend on their thoughts?" in page
    assert "Swapped between questions" in page and "50.0 [40.4, 59.6]" in page
    write_checks(folder, "older weights", {}, checks)
    page = render_page(gather([folder], 0.9), {}, 0, b"")
    assert "Do answers depend on their thoughts?" not in page
