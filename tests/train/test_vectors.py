"""Runs with latent thought vectors: what they write, what they cost, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.corpus import Corpus
from data.document import LossWeights
from data.roles import Role
from models.backbone import Backbone
from models.depth.looped import LoopedDepthConfig
from models.depth.nested import NestedDepthConfig
from models.latent.vector import VectorConfig
from tests.train.runs import VECTORS, losses, metrics, small_backbone, train, with_trainer
from train.config import RunConfig
from train.spending import DocumentSize, StepKind, documents_of, step_flops


def test_it_learns_and_says_how_far_posteriors_are_off_the_prior(
    run_at: Callable[..., RunConfig],
) -> None:
    run = train(with_trainer(run_at(backbone=small_backbone(latent=VECTORS)), max_steps=24))
    seen, rows = losses(run), metrics(run)
    assert sum(seen[-3:]) / 3 < seen[0] - 1
    assert float(rows[0]["posterior_kl"]) == 0, "an untrained head tells vectors nothing"
    assert all(float(row["posterior_kl"]) > 0 for row in rows[6:])


def test_others_have_no_posterior(run_at: Callable[..., RunConfig]) -> None:
    run = train(with_trainer(run_at(), max_steps=1))
    assert [row["posterior_kl"] for row in metrics(run)] == [""]


@pytest.mark.parametrize("fit_on", ["document", "question"])
def test_a_training_step_pays_for_its_fits(fit_on: str) -> None:
    """Three forward passes for the slow step; for each fast one three of what it fits."""
    latent = replace(VECTORS, fit_on=fit_on)
    backbone = Backbone(small_backbone(latent=latent, vocab_size=30, mlp_hidden=8))
    size = DocumentSize(length=24, question=9)
    read = size.length if fit_on == "document" else size.question
    # The fast step's vectors and tokens are a prompt of one token fewer, all of it read out.
    fast = backbone.prefill_cost(read - 1, readouts=read - 1).flops
    slow = backbone.prefill_cost(24, readouts=24).flops
    expected = 3 * slow + latent.inner_steps * 3 * fast
    assert step_flops(backbone, {size: 2}, StepKind(1)) == pytest.approx(2 * expected)


def test_questions_are_measured_where_they_are_asked_for(corpus_path: Path) -> None:
    rows = Corpus.open(corpus_path).split("train")
    sizes = documents_of(rows, None, questions=True)
    arrays = rows.read(np.arange(rows.num_rows))
    asked = int(((arrays.roles == Role.QUESTION) & (arrays.segments >= 0)).sum())
    assert sum(size.question * count for size, count in sizes.items()) == asked > 0
    plain = documents_of(rows, None)
    assert sum(s.length * n for s, n in plain.items()) == sum(
        s.length * n for s, n in sizes.items()
    )
    assert {size.question for size in plain} == {0}


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (LoopedDepthConfig(loops=3, route="token"), r"and depth\.route lets"),
        (LoopedDepthConfig(loops=3, stop="margin:0.1"), r"and depth\.stop=margin:0\.1 lets"),
    ],
)
def test_positions_that_run_fewer_loops_are_refused(
    run_at: Callable[..., RunConfig], depth: LoopedDepthConfig, message: str
) -> None:
    config = run_at(backbone=small_backbone(latent=VectorConfig(), depth=depth, num_layers=2))
    config.eval.tasks = config.tasks_of_corpus()
    with pytest.raises(ValueError, match=message):
        config.validate()
    replace(config, backbone=replace(config.backbone, depth=NestedDepthConfig())).validate()


def test_a_loss_on_questions_is_refused(run_at: Callable[..., RunConfig]) -> None:
    config = run_at(backbone=small_backbone(latent=VECTORS))
    config.eval.tasks = config.tasks_of_corpus()
    config.data.loss = LossWeights(question=0.5)
    with pytest.raises(ValueError, match=r"data\.loss\.question=0\.5: latent=vector reads a quest"):
        config.validate()
    config.backbone.latent = replace(VECTORS, inner_steps=0)
    config.validate()
