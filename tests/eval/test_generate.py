import numpy as np
import pytest
import torch

from eval.budget import Budget
from eval.generate import Generation, Request, draw, generate
from models.backbone import Backbone
from tests.eval.scripted import TOKENIZER, ScriptedBackbone, real_backbone

DIRECT, WRITTEN = Budget(), Budget("full")


def texts(answers: list[list[Generation]]) -> list[list[str]]:
    return [[TOKENIZER.decode(sample.tokens) for sample in samples] for samples in answers]


def ask(backbone: object, prompts: list[str], budget: Budget, batch_size: int = 8, limit: int = 9):
    requests = [
        Request(TOKENIZER.encode(prompt), index, limit, limit)
        for index, prompt in enumerate(prompts)
    ]
    assert isinstance(backbone, torch.nn.Module)
    return generate(backbone.eval(), requests, budget, TOKENIZER, batch_size)  # type: ignore[arg-type]


def varied_requests() -> list[Request]:
    """Prompts and limits of many lengths, so that rows finish at different times."""
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(8, 100, length).tolist(), index, max_trace, max_answer)
        for index, (length, max_trace, max_answer) in enumerate(rng.integers(1, 12, (13, 3)))
    ]


@pytest.mark.parametrize(
    ("layout", "looped"), [("attn", False), ("gdn attn", False), ("gdn", True)]
)
@pytest.mark.parametrize(
    "budget",
    [
        DIRECT,
        Budget("full", forced_end=3),
        Budget("full", samples=2, temperature=0.8),
        Budget(temperature=1.0),
    ],
    ids=lambda budget: budget.label,
)
def test_continuous_batching_equals_one_by_one(layout: str, looped: bool, budget: Budget) -> None:
    backbone, requests = real_backbone(layout, looped), varied_requests()
    together = generate(backbone, requests, budget, TOKENIZER, batch_size=5, seed=3)
    alone = [
        generate(backbone, [request], budget, TOKENIZER, batch_size=1, seed=3)[0]
        for request in requests
    ]
    assert together == alone
    assert len({len(samples[0].tokens) for samples in together}) > 3, "rows must differ in length"


def test_greedy_generation_is_the_argmax_of_the_whole_text() -> None:
    backbone, request = real_backbone("gdn attn"), Request([20, 30, 40], 0, 0, 12)
    generated = generate(backbone, [request], DIRECT, TOKENIZER)[0][0].tokens
    assert generated == recomputed(backbone, list(request.prompt), len(generated))


def recomputed(backbone: Backbone, tokens: list[int], count: int) -> list[int]:
    start = len(tokens)
    for _ in range(count):
        out = backbone(torch.tensor([tokens]))
        tokens.append(int(out.readout(out.hidden_BTD[:, -1:]).argmax()))
    return tokens[start:]


def test_samples_differ_and_follow_the_seed() -> None:
    backbone, budget = real_backbone("attn"), Budget(samples=4, temperature=1.0)
    requests = varied_requests()
    first, again, other = (
        generate(backbone, requests, budget, TOKENIZER, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len({tuple(sample.tokens) for sample in first[-1]}) > 1


def test_equal_prompts_of_different_questions_draw_differently() -> None:
    requests = [Request([20, 30], index, 9, 9) for index in range(4)]
    answers = generate(real_backbone("attn"), requests, Budget(temperature=1.0), TOKENIZER)
    assert len({tuple(samples[0].tokens) for samples in answers}) == 4


def test_a_text_ends_with_the_end_of_text() -> None:
    backbone = ScriptedBackbone({"a": "1 </think> 2 <eos> 3"})
    assert texts(ask(backbone, ["a"], WRITTEN)) == [["1 </think> 2 <eos>"]]


@pytest.mark.parametrize(
    ("end", "written"),
    [
        (0, "</think> 2 3 </think> 4 <eos>"),
        (2, "1 2 </think> </think> 4 <eos>"),
        (3, "1 2 3 </think> 4 <eos>"),
        (7, "1 2 3 </think> 4 <eos>"),
    ],
)
def test_the_end_of_thought_is_forced(end: int, written: str) -> None:
    backbone = ScriptedBackbone({"a": "1 2 3 </think> 4 <eos>"})
    answer = ask(backbone, ["a"], Budget("full", forced_end=end))[0][0]
    assert TOKENIZER.decode(answer.tokens) == written
    assert answer.decode_steps == len(written.split()) - 1


def test_a_forced_end_stands_in_for_the_limit() -> None:
    backbone = ScriptedBackbone({"a": " ".join(["1"] * 12) + " 2 3 <eos>"})
    answer = ask(backbone, ["a"], Budget("full", forced_end=11), limit=5)
    assert texts(answer) == [[" ".join(["1"] * 11) + " </think> 2 3 <eos>"]]


def test_texts_that_never_end_are_given_up_one_token_past_their_limit() -> None:
    endless = " ".join(["1"] * 50)
    backbone = ScriptedBackbone({"a": endless, "b": f"2 </think> {endless}", "c": "</think> <eos>"})
    lengths = [len(sample.tokens) for [sample] in ask(backbone, ["a", "b", "c"], WRITTEN, limit=5)]
    assert lengths == [6, 2 + 6, 2]


def test_the_longest_text_within_the_limits_is_whole() -> None:
    script = "1 2 3 4 5 </think> 1 2 3 4 5 <eos>"
    assert texts(ask(ScriptedBackbone({"a": script}), ["a"], WRITTEN, limit=5)) == [[script]]


def test_waiting_questions_enter_and_finished_rows_leave() -> None:
    prompts = list("abcdefghijkl")
    scripts = {p: " ".join(["1"] * (1 + 3 * (n % 4))) + " <eos>" for n, p in enumerate(prompts)}
    backbone = ScriptedBackbone(scripts)
    answers = ask(backbone, prompts, DIRECT, batch_size=4, limit=20)
    assert texts(answers) == [[scripts[prompt]] for prompt in prompts]
    rows = [rows for rows, *_ in backbone.calls]
    assert max(rows) == 4
    # In waves of four, each as slow as its slowest, it would take 3 x 10 steps and 3 prefills.
    assert len(rows) < 33
    assert rows[-1] < 4


def test_an_idle_row_never_outgrows_its_state() -> None:
    """Row `a` ends at its limit, with a full state, and waits beside rows that entered later."""
    endless = " ".join(["1"] * 50)
    short = dict.fromkeys("bcdefgh", "1 1 1 1 1 <eos>")
    late = dict.fromkeys("ijklmno", endless)
    backbone = ScriptedBackbone({"a": endless, **short, **late})
    answers = ask(backbone, list("abcdefghijklmno"), DIRECT)
    assert [len(sample.tokens) for [sample] in answers] == [10] + [6] * 7 + [10] * 7


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    backbone = ScriptedBackbone({"a b c": "1 <eos>", "d": "2 <eos>"})
    answers = ask(backbone, ["a b c", "d"], Budget(samples=3, temperature=0.1, loops=2))
    assert texts(answers) == [["1 <eos>"] * 3, ["2 <eos>"] * 3]
    assert backbone.calls == [(2, 3, 2), (6, 1, 2)]


def test_finished_continuations_are_reported() -> None:
    finished: list[int] = []
    backbone = ScriptedBackbone({"a": "1 <eos>", "b": "1 2 <eos>"}).eval()
    requests = [Request(TOKENIZER.encode(prompt), 0, 9, 9) for prompt in "ab"]
    generate(backbone, requests, DIRECT, TOKENIZER, on_finished=finished.append)  # type: ignore[arg-type]
    assert finished == [1, 1]


def test_no_questions_no_answers() -> None:
    assert ask(ScriptedBackbone({}), [], DIRECT) == []


def test_draws_follow_the_distribution() -> None:
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0])
    uniform_B = (np.arange(10_000) + 0.5) / 10_000
    tokens_B = draw(logits_V.expand(10_000, 4), uniform_B, temperature=0.5)
    shares_V = np.bincount(tokens_B, minlength=4) / 10_000
    np.testing.assert_allclose(shares_V, (logits_V / 0.5).softmax(-1).numpy(), atol=2e-4)
