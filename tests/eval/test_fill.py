"""Answers that are filled in: where they are read, what they cost, what can't be asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.document import encode_pieces, prompt_text
from data.roles import Role
from data.split import evaluation_problems
from eval.budget import Budget, BudgetConfig
from eval.config import EvalConfig, TaskEval
from eval.evaluate import Subject, evaluate
from eval.fill import Filling, FillMeter, check_budgets, fill, fill_requests
from eval.generate import Request
from eval.ledger import Ledger
from models.backbone import Backbone, Output
from models.cost import Cost
from models.mixers.attention import AttentionConfig
from tests.eval.scripted import TOKENIZER, ScriptedBackbone, real_backbone

MASK, END = TOKENIZER.pad_id, TOKENIZER.eos_id
DIRECT = Budget()


def whole_backbone(looped: bool = False) -> Backbone:
    """A small backbone that sees whole documents, with the weights of the causal one."""
    causal = real_backbone("attn", looped)
    mixers = {"attn": AttentionConfig(num_heads=2, conv_width=3, causal=False)}
    backbone = Backbone(replace(causal.config, mixers=mixers)).double().eval()
    backbone.load_state_dict(causal.state_dict())
    return backbone


def requests() -> list[Request]:
    prompts = ([20, 30, 40], [21], [22, 31, 41, 51, 61, 12], [23, 33])
    return [Request(prompt, index, 0, 2 + index) for index, prompt in enumerate(prompts)]


def by_hand(backbone: Backbone, request: Request) -> list[int]:
    """One row alone, without padding: the argmax at each mask, up to the end."""
    places = request.max_answer
    out = backbone(torch.tensor([[*request.prompt, *[MASK] * places]]))
    filled = out.readout(out.hidden_BTD)[0, -places:].argmax(dim=-1).tolist()
    return filled[: filled.index(END) + 1] if END in filled else filled


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("causal", [True, False])
def test_each_place_is_read_where_its_mask_stands(causal: bool, batch_size: int) -> None:
    backbone = real_backbone("attn") if causal else whole_backbone()
    finished: list[int] = []
    answers = fill(backbone, requests(), DIRECT, TOKENIZER, batch_size, finished.append)
    assert sum(finished) == 4 and max(finished) <= batch_size
    for request, answer in zip(requests(), answers, strict=True):
        assert answer.tokens == by_hand(backbone, request)
        assert answer.prompt_tokens == len(request.prompt)
        assert answer.places == request.max_answer
    assert len({token for answer in answers for token in answer.tokens}) > 3


class Filler(ScriptedBackbone):
    """Fills a given text in after each prompt; what is left over is filled with the mask."""

    def __init__(self, scripts: dict[str, str]) -> None:
        super().__init__(scripts)
        self.causal = False

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor, *_: Any, **__: Any) -> Output:
        logits_BTV = torch.zeros(*tokens_BT.shape, TOKENIZER.vocab_size)
        for row, own in enumerate(segments_BT == 0):
            tokens = tokens_BT[row][own].tolist()
            for prompt, script in self.scripts.items():
                if tuple(tokens[: len(prompt)]) == prompt:
                    assert set(tokens[len(prompt) :]) == {MASK}
                    for place, token in enumerate(script, start=len(prompt)):
                        logits_BTV[row, place, token] = 1.0
        return Output(logits_BTV, None, None, lambda hidden: hidden)  # type: ignore[arg-type]

    def prefill_cost(self, length: int, loops: int | None = None, readouts: int = 1) -> Cost:
        return Cost(flops=1000.0 * length + readouts, serial_steps=2)


def test_the_questions_of_a_cell_get_the_places_of_its_longest_answer() -> None:
    problems = evaluation_problems("addition", 2, "test", 0, 40)
    found = [(encode_pieces(p, "none", TOKENIZER)[1] == Role.ANSWER).sum() for p in problems]
    assert set(found) == {4, 5}, "three or four digits, and the end"
    made = fill_requests(problems, TOKENIZER)
    assert {request.max_answer for request in made} == {5}
    assert [request.index for request in made] == list(range(40))
    assert TOKENIZER.decode(made[3].prompt).endswith(problems[3].question)


def test_one_pass_over_prompt_and_places_is_what_it_costs() -> None:
    backbone = whole_backbone(looped=True)
    for loops, passes in ((None, 4), (3, 6)):
        spent = FillMeter(backbone, loops).spend([Filling(10, [5, END], places=4)])
        assert (spent.prompt_tokens, spent.visible_tokens, spent.latent_steps) == (10, 2, 0)
        assert spent.block_calls == 14 * passes
        assert spent.serial_steps == passes
        assert spent.state_bytes == 0
        assert spent.model_flops == backbone.prefill_cost(14, loops, readouts=4).flops


def settings(**budgets: Any) -> EvalConfig:
    tasks = {"selective_copy": TaskEval([2])}
    return EvalConfig(tasks, 6, budgets=BudgetConfig(**budgets), batch_size=4, latency_items=2)


def subject(backbone: Backbone, fills: bool = False) -> Subject:
    return Subject(backbone, TOKENIZER, "a-run", "a-backbone", "step 10", fills=fills)


def test_a_backbone_that_sees_ahead_is_evaluated() -> None:
    backbone = whole_backbone(looped=True).train()
    rows = evaluate(subject(backbone), settings(loops=[1, 3]))
    ledger = Ledger()
    ledger.extend(rows)
    assert ledger.frame().height == 12
    assert backbone.training, "left as it was found"
    for row in rows:
        # Three tokens of a header, eight symbols; places for two tokens and the end.
        assert row["prompt_tokens"] == 11
        assert row["block_calls"] == 14 * 2 * row["budget_loops"]
        assert row["serial_steps"] == 2 * row["budget_loops"]
        assert 1 <= row["visible_tokens"] <= 3
        assert row["output_text"] and row["latency_b1_s"] > 0


def test_an_answer_ends_at_the_first_end() -> None:
    """What stands behind it is dropped; without one there is no answer."""
    problems = evaluation_problems("selective_copy", 2, "test", 0, 6)
    first, *_ = right = [problem.answer for problem in problems]
    written = [f"{answer} <eos>" for answer in right]
    written[1], written[3], written[4] = f". {right[1]}", f"{right[3]} .", "<eos> . <eos>"
    texts = {prompt_text(p, "none"): text for p, text in zip(problems, written, strict=True)}
    rows = evaluate(subject(Filler(texts)), settings())  # type: ignore[arg-type]
    assert [row["correct"] for row in rows] == [True, False, True, False, False, True]
    assert [row["visible_tokens"] for row in rows] == [3, 3, 3, 3, 1, 3]
    assert rows[0]["output_text"] == f"{first} <eos>" and rows[4]["output_text"] == "<eos>"
    assert {row["model_flops"] for row in rows} == {1000 * 14 + 3}


def test_a_causal_backbone_fills_in_where_it_was_trained_to() -> None:
    backbone = real_backbone("gdn attn")
    written, filled = (evaluate(subject(backbone, fills), settings()) for fills in (False, True))
    assert {row["serial_steps"] for row in filled} == {2}
    assert {row["state_bytes"] for row in filled} == {0}
    assert min(row["state_bytes"] for row in written) > 0


TRACE = (
    r"eval.budgets.traces=\[full\]: the backbone backbone is non-causal and fills answers in, "
    r"so it can't write a trace: ask for traces=\[none\]"
)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"traces": ["full"]}, TRACE),
        ({"traces": ["none", "short"]}, r"eval.budgets.traces=\[none, short\]: .*write a trace"),
        (
            {"traces": ["full"], "forced_ends": [None, 3]},
            r"eval.budgets.traces=\[full\]: .*write a trace",
        ),
        ({"forced_ends": [None, 3]}, r"eval.budgets.forced_ends=\[null, 3\]: .*no thought to end"),
        ({"samples": [1, 5]}, r"eval.budgets.samples=\[1, 5\]: .*ask for samples=\[1\]"),
    ],
)
def test_budgets_that_need_words_are_refused(budgets: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        evaluate(subject(whole_backbone()), settings(**budgets))
    assert "\n" not in str(refused.value)


def test_a_task_that_asks_for_a_trace_is_refused_by_its_own_key() -> None:
    config = settings()
    config.tasks["selective_copy"].traces = ["full"]
    with pytest.raises(ValueError, match=r"eval.tasks.selective_copy.traces=\[full\]"):
        evaluate(subject(whole_backbone()), config)


def test_why_a_causal_backbone_fills_in_is_said() -> None:
    with pytest.raises(ValueError, match=r"backbone was trained by objective.fill and fills"):
        check_budgets(settings(traces=["full"]), real_backbone("attn"))
