"""Whole runs of every kind of backbone: they learn, and switches do what they say."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch._dynamo.utils import counters

from models.config import BackboneConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.mamba2 import Mamba2Config
from tests.train.runs import LOOPED, losses, small_backbone, train, with_trainer
from train.callbacks import NonFiniteLoss
from train.config import RunConfig
from train.optim import OptimConfig

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


@pytest.mark.parametrize("stopped", [False, True])
def test_the_progress_bar_comes_and_goes(
    stopped: bool,
    run_at: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a terminal; nothing of it is left when an error ends the run."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    shown: list[Progress] = []
    original = Progress.start
    monkeypatch.setattr(Progress, "start", lambda self: (shown.append(self), original(self))[1])
    config = with_trainer(run_at(), max_steps=3)
    if stopped:
        config = replace(config, optim=OptimConfig("adamw", lr=1e30))
        with pytest.raises(NonFiniteLoss):
            train(with_trainer(config, max_steps=12))
    else:
        train(config)
    (bar,) = shown
    assert not bar.live.is_started
    err = capsys.readouterr().err
    assert "transformer s0" in err and "loss" in err
    assert stopped or "3/3" in err


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
    torch.compiler.reset()
    counters.clear()
    compiled = train(
        with_trainer(run_at(backbone=backbone, runs=str(tmp_path / "c")), max_steps=4, compile=True)
    )
    assert compiled.name == plain.name
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert not counters["graph_break"]
