"""Thoughts in generation and in the ledger: batched as alone, each a full step, none visible."""

from dataclasses import replace

import pytest
import torch

from eval.budget import Budget, BudgetConfig, fitting
from eval.generate import Generation, Request, generate
from eval.spending import Meter
from models.backbone import Backbone
from models.block import Block
from models.depth.looped import LoopedDepthConfig
from models.latent.feedback import FeedbackConfig
from models.latent.latent import LatentConfig
from models.latent.listing import LATENTS
from models.latent.lotus import LotusConfig
from models.latent.none import NoLatentConfig
from models.latent.pause import PauseConfig
from models.latent.ponder import PonderConfig
from models.latent.ponder2 import Ponder2Config
from models.latent.soft import SoftConfig
from tests.eval.scripted import TOKENIZER
from tests.eval.thinking import thinking_backbone

THINKING = [kind for kind, made in LATENTS.items() if made.thinks]
LAYERS = 2
WRITTEN = Budget("full")


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    return [
        Request(torch.randint(8, 100, (length,), generator=generator).tolist(), index, 5, 5)
        for index, length in enumerate((5, 1, 9, 2, 7))
    ]


@pytest.mark.parametrize("kind", THINKING)
@pytest.mark.parametrize("samples", [1, 2])
def test_batches_think_as_one_by_one(kind: str, samples: int) -> None:
    """Rows enter and leave; samples share their question's thoughts."""
    backbone = thinking_backbone(LATENTS[kind]())
    temperature = 0.8 if samples > 1 else 0.0
    budget = Budget("full", samples=samples, temperature=temperature, latent_steps=3)
    together = generate(backbone, requests(), budget, TOKENIZER, batch_size=4, seed=3)
    alone = [generate(backbone, [r], budget, TOKENIZER, 1, seed=3)[0] for r in requests()]
    assert together == alone
    assert all(sample.thoughts == 3 for answers in together for sample in answers)


def test_batches_think_as_one_by_one_where_tokens_stop() -> None:
    """Prompts and thoughts whose tokens leave the loop early, each at its own time."""
    depth = LoopedDepthConfig(loops=4, halting="gate", stop="gate:0.5")
    backbone = thinking_backbone(FeedbackConfig(thoughts=3), depth)
    together = generate(backbone, requests(), WRITTEN, TOKENIZER, batch_size=3)
    alone = [generate(backbone, [r], WRITTEN, TOKENIZER, 1)[0] for r in requests()]
    assert together == alone
    ran = {loops for (answer,) in together for loops in answer.exits or ()}
    assert len(ran) > 1, "tokens must stop at different loops"


@pytest.mark.parametrize("kind", THINKING)
def test_an_answer_is_the_argmax_of_the_whole_text(kind: str) -> None:
    backbone, request = thinking_backbone(LATENTS[kind]()), requests()[2]
    ((answer,),) = generate(backbone, [request], Budget("full", latent_steps=2), TOKENIZER)
    dots = TOKENIZER.encode(". .")
    read = torch.tensor([[*request.prompt, *dots, *answer.tokens]])
    roles, asked = torch.ones_like(read), len(request.prompt)
    roles[:, asked : asked + 2] = 3
    out = backbone(read, roles_BT=roles)
    says = out.readout(out.hidden_BTD)[0, asked + 1 : -1].argmax(dim=-1).tolist()
    assert says == answer.tokens


def test_who_thinks_when() -> None:
    """Behind <think> alone; as many as the budget says, or the scheme's own number."""
    backbone, asked = thinking_backbone(PauseConfig(thoughts=4)), requests()[:1]
    for budget, thoughts in (
        (Budget(), 0),
        (WRITTEN, 4),
        (Budget("full", latent_steps=0), 0),
        (Budget("full", latent_steps=7), 7),
    ):
        ((answer,),) = generate(backbone, asked, budget, TOKENIZER)
        assert answer.thoughts == thoughts


def test_no_thoughts_are_the_plain_backbone() -> None:
    thinking, plain = thinking_backbone(FeedbackConfig()), thinking_backbone(NoLatentConfig())
    plain.load_state_dict(thinking.state_dict())
    none = generate(thinking, requests(), Budget("full", latent_steps=0), TOKENIZER)
    assert none == generate(plain, requests(), WRITTEN, TOKENIZER)


def blocks_run(backbone: Backbone, budget: Budget) -> tuple[int, Generation]:
    """Passes of positions through blocks that answering one question really made."""
    ran: list[int] = []
    for module in backbone.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, given, __: ran.append(given[0][..., 0].numel()))
    ((answer,),) = generate(backbone, requests()[:1], budget, TOKENIZER, batch_size=1)
    return sum(ran), answer


@pytest.mark.parametrize(
    "latent",
    [
        PauseConfig(),
        FeedbackConfig(thoughts=4),
        SoftConfig(thoughts=4),
        PonderConfig(passes=2),
        Ponder2Config(),
        Ponder2Config(latents=2, rounds=3),
        Ponder2Config(content="pause"),
    ],
    ids=lambda latent: f"{latent.kind} {getattr(latent, 'rounds', '')}",
)
def test_block_calls_are_the_calls_made(latent: LatentConfig) -> None:
    backbone = thinking_backbone(latent)
    calls, answer = blocks_run(backbone, WRITTEN)
    assert Meter(backbone, None).spend([answer]).block_calls == calls


@pytest.mark.parametrize(
    ("latent", "rounds"), [(FeedbackConfig(jacobi=2), 3), (LotusConfig(loops=4), 4)]
)
def test_thoughts_in_rounds_count_once_a_round(latent: LatentConfig, rounds: int) -> None:
    backbone = thinking_backbone(latent)
    calls, answer = blocks_run(backbone, WRITTEN)
    spent = Meter(backbone, None).spend([answer])
    assert spent.block_calls == calls
    thoughts, decoded = latent.slots(), answer.decode_steps
    assert spent.latent_steps == rounds * thoughts
    assert spent.serial_steps == LAYERS * (1 + rounds + decoded), "a round runs all side by side"


def test_a_thought_is_a_full_step_and_no_visible_token() -> None:
    """Two samples of a prompt of five with three thoughts, counted by hand."""
    backbone = thinking_backbone(SoftConfig())
    samples = [Generation(5, [1, 2, 3], thoughts=3), Generation(5, [1, 2], thoughts=3)]
    spent = Meter(backbone, None).spend(samples)
    assert (spent.visible_tokens, spent.latent_steps, spent.prompt_tokens) == (5, 3, 5)
    assert spent.block_calls == LAYERS * (5 + 3 + 2 + 1)
    assert spent.serial_steps == LAYERS * (1 + 3 + 2)
    head = backbone.readout_flops
    step = [backbone.cost(context).flops - head for context in range(12)]
    soft = 2 * head  # a readout and an expected embedding
    expected = backbone.prefill_cost(5).flops + sum(step[6:9]) + 3 * soft
    expected += sum(step[c] + head for c in (9, 10, 9))
    assert spent.model_flops == pytest.approx(expected)
    assert spent.state_bytes == backbone.cost(10).state_bytes + backbone.cost(9).state_bytes


@pytest.mark.parametrize(
    ("latent", "each", "serial"),
    [
        (PonderConfig(passes=2), 2, 3),
        (Ponder2Config(latents=2), 2, 3),
        (Ponder2Config(latents=2, content="pause"), 2, 1),
    ],
    ids=["ponder", "ponder2", "pause"],
)
def test_what_thinks_with_every_token_counts_with_every_token(
    latent: LatentConfig, each: int, serial: int
) -> None:
    backbone = thinking_backbone(latent)
    spent = Meter(backbone, None).spend([Generation(1, [1, 2, 3])])
    assert spent.latent_steps == each * 3
    assert spent.serial_steps == LAYERS * serial * (1 + 2)
    costs = backbone.prefill_cost(1).flops + sum(backbone.cost(c).flops for c in (2, 3))
    assert spent.model_flops == pytest.approx(costs)


def test_loops_that_stop_early_count_thoughts_by_their_exits() -> None:
    depth = LoopedDepthConfig(loops=3, halting="gate", stop="kl:0.5")
    backbone = thinking_backbone(FeedbackConfig(thoughts=2), depth)
    exits = [3, 1, 2, 1, 3, 1, 2]  # a prompt of three, two thoughts, two decoded tokens
    spent = Meter(backbone, None).spend([Generation(3, [1, 2, 3], exits, thoughts=2)])
    assert spent.block_calls == LAYERS * sum(exits)
    assert spent.serial_steps == LAYERS * (3 + 1 + 3 + 1 + 2)
    assert spent.latent_steps == 2
    assert spent.answer_loops == pytest.approx((3 + 1 + 2) / 3), "from the last thought on"


def test_budgets_of_thoughts_go_to_those_who_think() -> None:
    asked = BudgetConfig(traces=["none", "full"], latent_steps=[None, 0, 3]).budgets()
    thinking, plain = (
        thinking_backbone(PauseConfig(thoughts=3)),
        thinking_backbone(NoLatentConfig()),
    )
    own = Budget("full", latent_steps=3)
    assert fitting(asked, thinking) == [Budget(), replace(own, latent_steps=0), own]
    assert fitting(asked, plain) == [Budget(), WRITTEN]
    with pytest.raises(ValueError, match="latent_steps=2 with trace=none: thoughts follow <think>"):
        Budget(latent_steps=2)


def test_rules_that_stop_tokens_are_left_out_where_passes_repeat() -> None:
    depth = LoopedDepthConfig(loops=2)
    rules = [Budget(stop="kl:0.1")]
    assert fitting(rules, thinking_backbone(FeedbackConfig(), depth)) == rules
    assert fitting(rules, thinking_backbone(PonderConfig(), depth)) == []
