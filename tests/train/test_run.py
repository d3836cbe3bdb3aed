"""Whole runs of every kind of backbone: they learn, and switches do what they say."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from models.config import BackboneConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.mamba2 import Mamba2Config
from tests.train.runs import LOOPED, losses, small_backbone, train, with_trainer
from train.config import RunConfig

BACKBONES = {
    "attention": small_backbone(),
    "gated delta": small_backbone(layout="gdn", mixers={"gdn": GatedDeltaNetConfig()}),
    "mamba": small_backbone(
        layout="mamba2 attn",
        num_layers=2,
        mixers={"mamba2": Mamba2Config(), "attn": AttentionConfig()},
    ),
    "looped": small_backbone(depth=LOOPED),
}


@pytest.fixture
def determinism() -> Iterator[None]:
    """Put back what deterministic=true switches on for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", BACKBONES)
def test_deterministic_kernels_are_enough_for_every_backbone(
    name: str, run_at: Callable[..., RunConfig], determinism: None
) -> None:
    """And the loss falls."""
    config = run_at(backbone=BACKBONES[name], deterministic=True)
    seen = losses(train(with_trainer(config, max_steps=24)))
    assert torch.are_deterministic_algorithms_enabled()
    assert sum(seen[-3:]) / 3 < seen[0] - 1


def test_the_seed_decides(run_at: Callable[..., RunConfig]) -> None:
    """Initialisation and order: the same twice, another with another seed."""
    runs = [losses(train(with_trainer(run_at(seed=seed), max_steps=4))) for seed in (5, 6)]
    assert runs[0][1:] != runs[1][1:]


def test_what_random_numbers_were_drawn_before_changes_nothing(
    run_at: Callable[..., RunConfig], tmp_path: Path
) -> None:
    first = losses(train(with_trainer(run_at(), max_steps=4)))
    torch.manual_seed(99)
    second = losses(train(with_trainer(run_at(runs=str(tmp_path / "again")), max_steps=4)))
    assert first == second


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["attention", "looped"])
def test_compiled_blocks_train_as_plain_ones(
    name: str, run_at: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """To rounding, from checkpoints that both can read."""
    backbone: BackboneConfig = BACKBONES[name]
    config = with_trainer(run_at(backbone=backbone), max_steps=4)
    plain = train(config)
    compiled = train(
        with_trainer(run_at(backbone=backbone, runs=str(tmp_path / "c")), max_steps=4, compile=True)
    )
    assert compiled.name == plain.name
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)
