from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.document import prompt_text
from data.split import evaluation_problems
from data.task_list import TASKS
from data.tasks.task import Problem
from eval.budget import Budget, BudgetConfig
from eval.columns import COLUMNS
from eval.config import EvalConfig, TaskEval
from eval.evaluate import Subject, evaluate
from eval.generate import Generation
from eval.ledger import Ledger
from eval.progress import progress_bar
from eval.spending import Meter
from tests.eval.scripted import TOKENIZER, ScriptedBackbone, real_backbone

LEVEL, ITEMS = 32, 6


def subject(backbone: Any, checkpoint: str = "step 10", **settings: Any) -> Subject:
    return Subject(backbone, TOKENIZER, "a-run", "a-backbone", checkpoint, **settings)


def settings(level: int = LEVEL, items: int = ITEMS, **budgets: Any) -> EvalConfig:
    tasks = {"parity": TaskEval([level])}
    return EvalConfig(tasks, items, budgets=BudgetConfig(**budgets), batch_size=4, latency_items=2)


def scripted(write: Callable[[int, Problem], str], trace: str = "none", **kind: Any) -> Any:
    problems = evaluation_problems("parity", LEVEL, "test", 0, ITEMS)
    texts = {prompt_text(p, trace): write(index, p) for index, p in enumerate(problems)}
    return ScriptedBackbone(texts, **kind)


def test_a_row_counts_what_the_question_cost() -> None:
    prompt = 3 + LEVEL + 1
    backbone = scripted(lambda _, p: f"1 0 1 </think> {p.answer} <eos>", "full", adjustable=True)
    rows = evaluate(subject(backbone), settings(traces=["full"], loops=[3]))
    assert len(rows) == ITEMS and all(row["correct"] for row in rows)
    row = rows[0]
    assert row["prompt_tokens"] == prompt
    assert row["visible_tokens"] == 6
    assert row["latent_steps"] == 0
    # Three loops of two blocks; the prompt and five of the six written tokens are read.
    assert row["block_calls"] == (prompt + 5) * 6
    assert row["model_flops"] == 3000 * prompt + 6 * sum(range(prompt + 1, prompt + 6))
    assert row["serial_steps"] == (1 + 5) * 6
    assert row["state_bytes"] == 6 * 8 * (prompt + 5)
    assert row["budget_loops"] == 3 and row["budget_trace"] == "full"
    assert row["latency_b1_s"] > 0 and row["batch_s"] > 0 and row["joules"] is None
    assert row["output_text"] == f"1 0 1 </think> {row['answer_text']} <eos>"


def test_samples_share_the_prompt_and_the_serial_steps() -> None:
    samples = [Generation(10, [1, 2]), Generation(10, [1, 2, 3, 4]), Generation(10, [1])]
    spent = Meter(ScriptedBackbone({}), None).spend(samples)  # type: ignore[arg-type]
    assert spent.visible_tokens == 7
    assert spent.block_calls == (10 + 1 + 3 + 0) * 2
    assert spent.model_flops == 10_000 + 2 * (11 + 11 + 12 + 13)
    assert spent.serial_steps == (1 + 3) * 2
    assert spent.state_bytes == 2 * 8 * (11 + 13 + 10)


def test_a_meter_agrees_with_the_backbone_whatever_it_counted_before() -> None:
    backbone = real_backbone("gdn attn", looped=True)
    meter = Meter(backbone, 3)
    for prompt, written in ((20, 5), (3, 2), (40, 1)):
        spent = meter.spend([Generation(prompt, [0] * written)])
        decoded = range(prompt + 1, prompt + written)
        assert spent.model_flops == pytest.approx(
            backbone.prefill_cost(prompt, 3).flops
            + sum(backbone.cost(context, 3).flops for context in decoded)
        )
        assert spent.state_bytes == backbone.cost(prompt + written - 1, 3).state_bytes


def test_the_ledger_takes_the_rows() -> None:
    backbone = scripted(lambda _, p: f"{p.answer} <eos>")
    ledger = Ledger()
    ledger.extend(evaluate(subject(backbone), settings()))
    frame = ledger.frame()
    assert frame.height == ITEMS
    assert {column.name for column in COLUMNS if column.required} <= set(frame.columns)


def test_wrong_unfinished_and_endless_answers_are_wrong_and_paid_for() -> None:
    def write(index: int, problem: Problem) -> str:
        wrong = str(1 - int(problem.answer))
        endings = [f"{problem.answer} <eos>", f"{wrong} <eos>", "<eos>"]
        return ([*endings, f"{problem.answer} {problem.answer} <eos>"] + [problem.answer] * 2)[
            index
        ]

    rows = evaluate(subject(scripted(write)), settings())
    assert [row["correct"] for row in rows] == [True, False, False, False, False, False]
    # The reference is an answer and an end: 2 tokens; the limit 2 x 2 + 8, and one to overrun it.
    assert [row["visible_tokens"] for row in rows] == [2, 2, 1, 3, 13, 13]


def test_the_majority_of_samples_is_verified_and_all_are_paid_for() -> None:
    backbone = scripted(lambda _, p: f"{p.answer} <eos>")
    rows = evaluate(subject(backbone), settings(samples=[1, 3], temperature=0.1))
    assert [row["budget_samples"] for row in rows] == [1] * ITEMS + [3] * ITEMS
    assert all(row["correct"] for row in rows)
    assert rows[-1]["visible_tokens"] == 3 * rows[0]["visible_tokens"]
    assert rows[-1]["serial_steps"] == rows[0]["serial_steps"]


def test_levels_say_what_they_are() -> None:
    backbone = ScriptedBackbone({})
    config = EvalConfig({"parity": TaskEval([4, 32, 64])}, 20, latency_items=0)
    rows = evaluate(subject(backbone, trained={"parity": [4, 32]}), config)
    found = {(r["level"], r["split"], r["train_only"], r["beyond"]) for r in rows}
    assert found == {
        (4, "train", True, False),
        (32, "test", False, False),
        (64, "test", False, True),
    }
    assert len([row for row in rows if row["level"] == 4]) == 16, "all that there are"
    assert {row["latency_b1_s"] for row in rows} == {None}
    assert {row["chance"] for row in rows} == {TASKS["parity"].chance(4)}


def test_levels_are_judged_by_what_the_run_was_trained_on() -> None:
    config = settings()
    for trained, beyond in (({"parity": [8]}, True), ({}, True), (None, False)):
        rows = evaluate(subject(ScriptedBackbone({}), trained=trained), config)
        assert {row["beyond"] for row in rows} == {beyond}


def test_an_evaluation_goes_on_where_it_was() -> None:
    backbone = scripted(lambda _, p: f"{p.answer} <eos>")
    config = settings(traces=["none", "full"])
    saved: list[int] = []
    rows = evaluate(subject(backbone), config, on_cell=lambda so_far: saved.append(len(so_far)))
    assert saved == [ITEMS, 2 * ITEMS]

    backbone.calls.clear()
    assert evaluate(subject(backbone), config, existing=rows) == rows
    assert backbone.calls == []

    partial = [*rows[:ITEMS], *rows[ITEMS + 2 :]]
    resumed = evaluate(subject(backbone), config, existing=partial)
    assert resumed[:ITEMS] == rows[:ITEMS]
    assert [r["correct"] for r in resumed] == [r["correct"] for r in rows]


@pytest.mark.parametrize("change", ["checkpoint", "seed", "temperature"])
def test_rows_of_another_checkpoint_or_setting_are_not_kept(change: str) -> None:
    backbone = scripted(lambda _, p: f"{p.answer} <eos>")
    config = settings(samples=[2], temperature=0.1)
    stale = [{**row, change: 77} for row in evaluate(subject(backbone), config)]
    rows = evaluate(subject(backbone), config, existing=stale)
    assert len(rows) == ITEMS and 77 not in {row[change] for row in rows}


def test_rows_survive_the_ledger_file_as_a_place_to_go_on_from(tmp_path: Any) -> None:
    from eval.ledger import read_ledger, write_ledger

    backbone = scripted(lambda _, p: f"{p.answer} <eos>")
    ledger = Ledger()
    ledger.extend(evaluate(subject(backbone), settings()))
    write_ledger(ledger.frame(), tmp_path / "ledger.parquet")
    existing = read_ledger(tmp_path / "ledger.parquet").to_dicts()
    backbone.calls.clear()
    assert len(evaluate(subject(backbone), settings(), existing=existing)) == ITEMS
    assert backbone.calls == []


def test_budgets_that_a_backbone_cannot_run_are_left_out_or_refused() -> None:
    backbone = scripted(lambda _, p: f"{p.answer} <eos>")
    rows = evaluate(subject(backbone), settings(loops=[None, 2, 3]))
    assert {row["budget_loops"] for row in rows} == {None}
    with pytest.raises(ValueError, match=r"eval.budgets has loops=\[2\].*add null"):
        evaluate(subject(backbone), settings(loops=[2]))


def test_another_vocabulary_is_refused() -> None:
    backbone = ScriptedBackbone({})
    backbone.config.vocab_size = 64
    with pytest.raises(ValueError, match=r"backbone.vocab_size=64 isn't the tokenizer's \d+"):
        evaluate(subject(backbone), settings())


@pytest.mark.parametrize("layout", ["attn", "gdn attn"])
def test_a_real_backbone_is_evaluated(layout: str) -> None:
    backbone = real_backbone(layout, looped=True).train()
    config = settings(traces=["none", "full"], forced_ends=[None, 2], loops=[1, 3])
    rows = evaluate(subject(backbone), config)
    ledger = Ledger()
    ledger.extend(rows)
    assert ledger.frame().height == 3 * 2 * ITEMS
    assert backbone.training, "left as it was found"
    few, many = (
        next(r for r in rows if r["budget_loops"] == loops and r["budget_trace"] == "none")
        for loops in (1, 3)
    )
    assert few["prompt_tokens"] == many["prompt_tokens"] == 3 + LEVEL
    assert many["block_calls"] / (LEVEL + 2 + many["visible_tokens"]) == 6
    assert few["block_calls"] / (LEVEL + 2 + few["visible_tokens"]) == 2


def test_state_bytes_are_those_of_the_real_state() -> None:
    backbone = real_backbone("attn gdn").float()
    length = 17
    state = backbone.init_state(3, length)
    backbone(torch.zeros(3, length, dtype=torch.long), None, state)
    spent = Meter(backbone, None).spend([Generation(length, [0])] * 3)
    assert spent.state_bytes == state.nbytes


def test_a_budget_of_the_config_is_the_budget_of_the_rows() -> None:
    backbone = scripted(lambda _, p: "1 0 </think> 1 <eos>", "short")
    rows = evaluate(subject(backbone), settings(traces=["short"], forced_ends=[1]))
    assert Budget("short", 1).columns().items() <= rows[0].items()
    assert rows[0]["output_text"].startswith("1 </think> ")


def test_progress_is_silent_unless_somebody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2) as progress:
        progress.describe("a cell")
        progress.advance(1)
    assert capsys.readouterr() == ("", "")
