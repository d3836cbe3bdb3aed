"""Arms of an experiment differ in what they say that they differ in, and in nothing else."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models.backbone import Backbone
from models.sizing import resolve
from tests.test_configs import composed
from train.config import RunConfig

ARMS = Path(__file__).parents[1] / "configs" / "arm"
LENGTHS = (38, 52)
"""Tokens of a document of iGSM, answered directly and written out."""


def arms(experiment: str, folder: str) -> dict[str, RunConfig]:
    names = sorted(path.stem for path in (ARMS / folder).glob("*.yaml"))
    return {
        name: composed(f"experiment={experiment}", f"arm={folder}/{name}", "hydra.mode=RUN")[0]
        for name in names
    }


def built(config: RunConfig) -> Backbone:
    vocabulary = config.data.build_tokenizer().vocab_size
    with torch.device("meta"):
        return Backbone(resolve(config.backbone, vocabulary))


def test_pondering_arms_train_on_as_many_flops() -> None:
    found = {
        name: config.trainer.max_steps
        * sum(built(config).prefill_cost(n, readouts=n).flops for n in LENGTHS)
        for name, config in arms("ponder", "ponder").items()
    }
    mean = sum(found.values()) / len(found)
    assert found == {name: pytest.approx(mean, rel=0.02) for name in found}


def test_the_wide_arm_decodes_on_as_many_flops_as_pondering() -> None:
    costs = {n: built(c).cost(45).flops for n, c in arms("ponder", "ponder").items()}
    assert costs["wide"] == pytest.approx(costs["ponder"], rel=0.03)
    assert costs["pause"] == pytest.approx(costs["ponder2"])


def test_controls_of_thought_share_all_but_their_thoughts() -> None:
    found = arms("latent_controls", "controls")
    assert [config.backbone.name for config in found.values()] == list(found)
    steps = {config.trainer.max_steps for config in found.values()}
    assert len(steps) == 1
    staged = {name: config for name, config in found.items() if len(config.stages) > 1}
    assert set(found) - set(staged) == {"cot", "no_cot"}
    (first, *others) = staged.values()
    for other in others:
        mine, theirs = asdict(first), asdict(other)
        for plain in (mine, theirs):
            del plain["backbone"]["latent"], plain["backbone"]["name"]
        assert mine == theirs
