"""Answers of a backbone with latent thought vectors: inferred from the question, and paid for."""

import pytest
import torch

from eval.budget import Budget, BudgetConfig, fitting
from eval.generate import Generation, Request, generate
from eval.spending import Meter
from models.backbone import Backbone
from models.latent.vector import VectorConfig
from tests.eval.scripted import TOKENIZER, real_backbone

QUESTION, ANSWER = 1, 4


def backbone_of(layout: str = "gdn attn") -> Backbone:
    return real_backbone(layout, latent=VectorConfig(vectors=2, width=4, inner_steps=3))


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    return [
        Request(torch.randint(8, 100, (length,), generator=generator).tolist(), index, 6, 6)
        for index, length in enumerate((5, 1, 9, 2, 7))
    ]


@pytest.mark.parametrize("budget", [Budget(), Budget("full", samples=2, temperature=0.8)])
def test_batches_answer_as_one_by_one(budget: Budget) -> None:
    backbone = backbone_of()
    together = generate(backbone, requests(), budget, TOKENIZER, batch_size=4, seed=3)
    alone = [generate(backbone, [r], budget, TOKENIZER, 1, seed=3)[0] for r in requests()]
    assert together == alone


def test_an_answer_is_the_argmax_of_the_whole_text() -> None:
    backbone, request = backbone_of("attn"), requests()[2]
    ((answer,),) = generate(backbone, [request], Budget(), TOKENIZER)
    read = torch.tensor([[*request.prompt, *answer.tokens]])
    roles, asked = torch.full_like(read, ANSWER), len(request.prompt)
    roles[:, :asked] = QUESTION
    out = backbone(read, torch.zeros_like(read), roles_BT=roles)
    assert out.readout(out.hidden_BTD)[0, asked - 1 : -1].argmax(dim=-1).tolist() == answer.tokens
    unfitted = backbone(read, torch.zeros_like(read))
    assert not torch.allclose(unfitted.hidden_BTD, out.hidden_BTD)


def test_a_question_pays_for_its_fit_and_its_vectors() -> None:
    """Two samples of a prompt of five: they share the fit; positions are counted by hand."""
    backbone = backbone_of("attn")
    samples = [Generation(5, [1, 2, 3]), Generation(5, [1, 2])]
    spent = Meter(backbone, None).spend(samples)
    layers, steps, vectors = 2, 3, 2
    assert spent.latent_steps == steps * vectors
    fits = 3 * steps * (vectors + 4)
    assert spent.block_calls == layers * (fits + vectors + 5 + 2 + 1)
    assert spent.serial_steps == layers * (2 * steps + 1 + 2)
    decoded = sum(backbone.cost(context).flops for context in (6, 7, 6))
    fit = 3 * steps * backbone.prefill_cost(4, readouts=4).flops
    assert spent.model_flops == pytest.approx(fit + backbone.prefill_cost(5).flops + decoded)
    assert spent.state_bytes == sum(backbone.cost(context).state_bytes for context in (7, 6))


def test_budgets_of_latent_steps_are_not_its() -> None:
    asked = BudgetConfig(traces=["full"], latent_steps=[None, 3], stops=[None, "none"])
    assert {b.latent_steps for b in fitting(asked.budgets(), backbone_of())} == {None}
