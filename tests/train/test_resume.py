"""A run that was stopped in any way goes on with the very same numbers."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from eval.checkpoint import checkpoints, read_checkpoint, remove_checkpoint
from models.latent.feedback import FeedbackConfig
from tests.train.runs import (
    GATED,
    LOOPED,
    ROUTED,
    VECTORS,
    Killed,
    metrics,
    small_backbone,
    small_run,
    snapshot,
    train,
    with_trainer,
)
from train.checkpoints import CheckpointSaver
from train.config import ParallelConfig, RunConfig
from train.interrupts import Interrupted
from train.lock import locked
from train.module import PretrainModule
from train.objective_config import ObjectiveConfig
from train.optim import OptimConfig
from train.schedule import ScheduleConfig
from train.stage import StageConfig
from train.thinking import ThinkingConfig

ACCUMULATED = ParallelConfig(accelerator="cpu", accumulate=2)
CASES: dict[str, dict[str, Any]] = {
    "transformer": {},
    "looped, accumulated": {
        "backbone": small_backbone(name="looped", depth=LOOPED),
        "parallel": ACCUMULATED,
    },
    "gated, the gate alone last": {
        "backbone": small_backbone(name="gated", depth=GATED),
        "stages": [
            StageConfig("loops", 6),
            StageConfig(
                "gate", objective=ObjectiveConfig(over="gate"), trainable=["depth.halting"]
            ),
        ],
    },
    "routed": {"backbone": small_backbone(name="routed", depth=ROUTED)},
    "latent vectors": {"backbone": small_backbone(name="vectors", latent=VECTORS)},
    "two stages, adamw": {
        "stages": [
            StageConfig("head", 6, trainable=["head", "norm"]),
            StageConfig("all", None, schedule=ScheduleConfig(warmup=0.2)),
        ],
        "optim": OptimConfig(kind="adamw", lr=0.01),
    },
    "a curriculum of thoughts": {
        "backbone": small_backbone(name="thinking", latent=FeedbackConfig(thoughts=2)),
        "stages": [
            StageConfig("written", 4, thinking=ThinkingConfig(0, 0)),
            StageConfig("some", 4, thinking=ThinkingConfig(1, 1, earlier=0.3)),
            StageConfig("all", None, thinking=ThinkingConfig(None), fresh_optimizer=True),
        ],
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> dict[str, Path]:
    """Give each case's run as it is when nothing stops it."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        name: train(small_run(folder / str(index), corpora, **changes))
        for index, (name, changes) in enumerate(CASES.items())
    }


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: int, micro_batch: int, act: Callable[[], None]
) -> None:
    """Do something once, when a micro-batch (from 0) of a step of the run (from 1) begins."""
    original = PretrainModule.training_step
    done: list[int] = []

    def training_step(self: PretrainModule, batch: Any, batch_idx: int) -> Tensor:
        within = batch_idx % self.trainer.accumulate_grad_batches
        if not done and (self.global_step + 1, within) == (step, micro_batch):
            done.append(step)
            act()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", training_step)


def kill() -> None:
    raise Killed


def assert_same_run(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    mine, theirs = (read_checkpoint(checkpoints(folder)[-1]) for folder in (run, other))
    assert mine["global_step"] == theirs["global_step"] == len(metrics(run))
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in mine["state_dict"].items():
        assert torch.equal(weight, theirs["state_dict"][name]), name


@pytest.mark.parametrize("step", [1, 4, 5, 7, 12])
@pytest.mark.parametrize("case", CASES)
def test_killed_and_started_again_it_ends_the_same(
    case: str,
    step: int,
    whole: dict[str, Path],
    run_at: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first checkpoint (1, 4), right after one (5), at the stages' border (7), late."""
    config = run_at(**CASES[case])
    with monkeypatch.context() as patch:
        at_step(patch, step, config.parallel.accumulate - 1, kill)
        with pytest.raises(Killed):
            train(config)
    run = next((Path(config.runs) / "test").iterdir())
    assert len(metrics(run)) == step - 1
    assert bool(checkpoints(run)) == (step > 4)
    assert train(config) == run
    assert_same_run(run, whole[case])


def test_killed_while_it_saves_it_ends_the_same(
    whole: dict[str, Path], run_at: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step stands in metrics.csv already, its checkpoint is half a file."""
    config = run_at()
    original = CheckpointSaver.save

    def killed(self: CheckpointSaver, trainer: L.Trainer, *given: Any) -> None:
        if trainer.global_step == 8:
            half = self.run / "checkpoints" / "step-0000008.tmp"
            half.mkdir()
            (half / "model-00000-000.safetensors").write_bytes(b"half")
            raise Killed
        original(self, trainer, *given)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointSaver, "save", killed)
        with pytest.raises(Killed):
            train(config)
    run = train(config)
    assert_same_run(run, whole["transformer"])
    assert not list(run.rglob("*.tmp"))


def test_a_line_that_the_kill_cut_short_is_written_again(
    whole: dict[str, Path], run_at: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_at()
    with monkeypatch.context() as patch:
        at_step(patch, 8, 0, kill)
        with pytest.raises(Killed):
            train(config)
    run = next((Path(config.runs) / "test").iterdir())
    with (run / "metrics.csv").open("a") as file:
        file.write("8,pretrain,5.1")
    train(config)
    assert metrics(run) == metrics(whole["transformer"])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("case", ["transformer", "looped, accumulated"])
def test_asked_to_stop_it_saves_and_goes_on(
    case: str,
    signum: signal.Signals,
    whole: dict[str, Path],
    run_at: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal between the micro-batches of a step ends the run after that step, saved."""
    config = run_at(**CASES[case])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with monkeypatch.context() as patch:
        at_step(patch, 6, 0, lambda: os.kill(os.getpid(), signum))
        with pytest.raises(Interrupted, match="stopped at step 6, saved; the same command") as stop:
            train(config)
    assert stop.value.signum == signum
    assert before == {number: signal.getsignal(number) for number in before}
    run = next((Path(config.runs) / "test").iterdir())
    assert [path.name for path in checkpoints(run)] == ["step-0000004", "step-0000006"]
    train(config)
    assert_same_run(run, whole[case])


def test_a_finished_run_is_not_touched(run_at: Callable[..., RunConfig]) -> None:
    config = with_trainer(run_at(), max_steps=3)
    run = train(config)
    before = snapshot(run)
    assert train(config) == run
    other_place = replace(config, parallel=ACCUMULATED)
    assert train(with_trainer(other_place, keep_last=1, validate_every=1)) == run
    assert snapshot(run) == before


def test_only_the_newest_checkpoints_are_kept(whole: dict[str, Path]) -> None:
    names = [path.name for path in checkpoints(whole["transformer"])]
    assert names == ["step-0000008", "step-0000012"]


def test_validation_stands_beside_the_step_whose_weights_it_scores(
    whole: dict[str, Path],
) -> None:
    scored = [int(row["step"]) for row in metrics(whole["transformer"]) if row["validation_loss"]]
    assert scored == [4, 8, 12]


def test_two_processes_never_share_a_run(run_at: Callable[..., RunConfig]) -> None:
    config = with_trainer(run_at(), max_steps=1)
    run = train(config)
    for path in checkpoints(run):
        remove_checkpoint(path)
    message = re.escape(f"{run}: another process is training this run")
    with locked(run), pytest.raises(ValueError, match=message):
        train(config)
