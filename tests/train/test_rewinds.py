"""A run goes back before a spike, reads on behind the batches that led to it, and ends the same."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.checkpoint import checkpoint_step, checkpoints, read_checkpoint
from tests.train.conftest import RunFactory
from tests.train.runs import SMALL, Killed, launch, losses, metrics, train, with_trainer
from train.config import RunConfig
from train.folder import run_folder
from train.module import PretrainModule
from train.rewinds import Rewind, Rewinds, TooManyRewinds, nearest, place_before
from train.stage import StageConfig, StagePlan


class BadBatches:
    """Makes the gradients of some batches (by their place in the order, from 0) huge, or NaN.

    Attributes:
        read: which batch each step (from 0) read last.
    """

    def __init__(self, batches: dict[int, float]) -> None:
        self.batches, self.original = batches, PretrainModule.training_step
        self.read: dict[int, int] = {}

    def patch(self, monkeypatch: pytest.MonkeyPatch, killed_at: int | None = None) -> None:
        """`killed_at` counts steps as they are run, from 1."""
        ran = 0

        def training_step(module: PretrainModule, batch: Any, batch_idx: int) -> torch.Tensor:
            nonlocal ran
            ran += 1
            if ran == killed_at:
                raise Killed
            step, data = module.global_step, module.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            self.read[step] = step + data.moved(step)
            return self.batches.get(self.read[step], 1.0) * self.original(module, batch, batch_idx)

        monkeypatch.setattr(PretrainModule, "training_step", training_step)


def rewinding(config: RunConfig, **changes: Any) -> RunConfig:
    settings = {"spike": "rewind", "spike_factor": 20.0, "spike_loss": None, "spike_window": 3}
    settings |= {"rewind_steps": 4, "checkpoint_every": 3, "keep_last": 1}
    return with_trainer(config, **settings | changes)


def trained(config: RunConfig, bad: BadBatches, killed_at: int | None = None) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        bad.patch(patch, killed_at)
        if killed_at is None:
            return train(config)
        with pytest.raises(Killed):
            train(config)
        return run_folder(config)


def test_a_run_goes_back_and_reads_on_behind_the_spike(
    run_at: RunFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Step 10 spikes: back to step 3, which is four steps before and more, without seven batches.

    Then step 7 reads a batch that is no number: back to the beginning.
    """
    bad = BadBatches({9: 1e4, 13: math.nan})
    run = trained(rewinding(run_at(runs=str(tmp_path / "whole"))), bad)
    first, second = json.loads((run / "rewinds.json").read_text())["rewinds"]
    assert (first["step"], first["to"], first["moved"]) == (10, 3, 7)
    assert (second["step"], second["to"], second["moved"]) == (7, 0, 14)
    assert bad.read == {step: step + 14 for step in range(12)}
    said = capfd.readouterr().err
    assert "step 10: gradient norm" in said and "back to step 3\n" in said
    assert "first: " in second["why"] and "back to step 0\n" in said
    assert [int(row["step"]) for row in metrics(run)] == list(range(1, 13))
    cost = json.loads((run / "cost.json").read_text())
    plain = json.loads((train(run_at()) / "cost.json").read_text())
    assert cost["lost_steps"] == 7 + 7
    assert cost["train_flops"] == pytest.approx(plain["train_flops"] * (12 + 14) / 12)
    # As if it had read those batches from the start.
    config = rewinding(run_at(runs=str(tmp_path / "moved")))
    Rewinds((Rewind(1, 0, 0, 0, 14, "planned"),)).write(run_folder(config))
    assert losses(trained(config, BadBatches({}))) == losses(run)


@pytest.mark.parametrize(
    "killed_at", [12, *(pytest.param(at, marks=pytest.mark.nightly) for at in (9, 15))]
)
def test_killed_around_it_the_run_ends_the_same(
    killed_at: int, run_at: RunFactory, tmp_path: Path
) -> None:
    """After it went back; nightly also before it spikes, and with a newer checkpoint since."""
    bad = BadBatches({9: 1e4})
    whole = trained(rewinding(run_at(runs=str(tmp_path / "whole"))), bad)
    config = rewinding(run_at())
    trained(config, bad, killed_at)
    run = trained(config, bad)
    assert metrics(run) == metrics(whole)
    assert (run / "rewinds.json").read_text() == (whole / "rewinds.json").read_text()
    mine, theirs = (read_checkpoint(checkpoints(each)[-1]) for each in (run, whole))
    assert mine["pauca"]["spikes"] == theirs["pauca"]["spikes"]
    for name, weight in mine["state_dict"].items():
        assert torch.equal(weight, theirs["state_dict"][name]), name


def test_what_it_may_go_back_to_is_kept(run_at: RunFactory) -> None:
    run = trained(rewinding(run_at(), rewind_steps=5), BadBatches({}))
    assert [checkpoint_step(path) for path in checkpoints(run)] == [6, 9, 12]
    assert not (run / "rewinds.json").exists()


def test_going_back_again_and_again_is_refused(run_at: RunFactory) -> None:
    bad = BadBatches(dict.fromkeys((5, 9, 13, 17), 1e4))
    with pytest.raises(TooManyRewinds, match=r"^step 4: .* back to step 0 3 times already: .*low"):
        trained(rewinding(run_at()), bad)


def test_places_are_of_regular_checkpoints_and_of_the_stage(tmp_path: Path) -> None:
    """Data move within the stage that spiked; the last return says by how much, where it holds."""
    assert [place_before(step, 4, 3) for step in (3, 6, 7, 9, 10)] == [0, 0, 3, 3, 6]
    assert nearest(tmp_path, 6) == 0
    for step in (5, 9):
        (tmp_path / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
    assert [nearest(tmp_path, step) for step in (0, 3, 8, 9)] == [0, 5, 5, 9]
    plan = StagePlan([StageConfig(steps=10), StageConfig()], 40)
    rewinds = Rewinds()
    for step, to in ((20, 15), (22, 15), (14, 6)):
        rewinds = rewinds.after(rewinds.back(step, to, plan, "spikes"))
    assert [(r.stage, r.first, r.moved) for r in rewinds.records] == [
        (1, 15, 5),
        (1, 15, 12),
        (1, 10, 4),
    ]
    assert [rewinds.moved(1, step) for step in (10, 14, 15, 39)] == [4, 4, 4, 4]
    assert rewinds.moved(0, 8) == 0
    early = Rewinds(rewinds.records[:1])
    assert [early.moved(1, step) for step in (14, 15)] == [0, 5]


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_two_processes_go_back_together(tmp_path: Path) -> None:
    """On spikes that are only noise, called so: both find the same, and what one process finds."""
    command = ("experiment=smoke", *SMALL, "optim=adamw", "trainer.max_steps=30", "parallel=cpu")
    command += ("trainer.spike=rewind", "trainer.spike_factor=1.06", "trainer.spike_loss=null")
    command += ("trainer.spike_window=5", "trainer.rewind_steps=3", "trainer.checkpoint_every=2")
    found = []
    for processes, strategy in ((1, "auto"), (2, "fsdp2"), (2, "ddp")):
        folder = tmp_path / f"{strategy}-{processes}"
        folder.mkdir()
        where = (f"parallel.devices={processes}", f"parallel.strategy={strategy}")
        status, _, said = launch("train", *command, *where, cwd=folder)
        assert status == 0, said
        (run,) = (folder / "runs" / "smoke").iterdir()
        rewinds = Rewinds.read(run).records
        found.append(([(r.step, r.to, r.moved) for r in rewinds], losses(run)))
    assert found[0][0], "nothing spiked: the test proves nothing"
    for places, values in found[1:]:
        assert places == found[0][0]
        assert values == pytest.approx(found[0][1], rel=1e-5)
