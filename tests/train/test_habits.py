"""What a long run needs: it notices that it stands still, spikes, or is no number any more."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eval.checkpoint import checkpoints, read_checkpoint
from tests.train.conftest import RunFactory
from tests.train.runs import (
    ROOT,
    Killed,
    environment,
    metrics,
    refusal,
    start,
    train,
    wait_for_rows,
    with_trainer,
)
from tests.train.test_launch import TWO, wait_until, workers
from train.config import RunConfig
from train.folder import run_folder
from train.heartbeat import STALLED, Beat, describe_stall, read_beats, stall_file
from train.module import PretrainModule
from train.provenance import Watch
from train.spike_history import SpikeConfig, SpikeHistory

HANGS = """
import sys, time
from pathlib import Path
from train.heartbeat import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), 0, 2, float(sys.argv[2]), lambda title, line: print(title))
watchdog.start(6)
time.sleep(1)
watchdog.arm()
watchdog.move(7, "backward")
def here_it_hangs(): time.sleep(60)
here_it_hangs()
"""


def test_a_process_that_stands_still_says_where_and_ends(tmp_path: Path) -> None:
    """Not before its first step has ended; and the alert goes out before it ends."""
    command = [sys.executable, "-c", HANGS, str(tmp_path), "0.5"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == STALLED
    assert re.fullmatch(
        r"train: no step has ended for trainer.stall_seconds=0.5: rank 0 of 2 is last, at step 8 "
        r"\(backward for \d+ s\); nothing was heard of rank 1; where each thread stands: .*stall\n",
        ended.stderr,
    )
    assert "here_it_hangs" in stall_file(tmp_path, 0).read_text()
    (beat,) = read_beats(tmp_path, 2)
    assert (beat.step, beat.phase) == (7, "backward")


def test_the_last_one_is_named() -> None:
    beats = [Beat(0, 9, "backward", 100.0, 160.0), Beat(1, 8, "forward", 90.0, 100.0)]
    line = describe_stall(beats, 2, 60, 160.0)
    assert "rank 1 of 2 is last, at step 9 (forward for 70 s, silent for 60 s)" in line


def test_a_run_that_moves_is_left_alone(run_at: RunFactory) -> None:
    config = with_trainer(run_at(), stall_seconds=30.0)
    run = train(config)
    (beat,) = read_beats(run, 1)
    assert beat.step == 12
    assert not (run / "stall").exists()


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_others_end_where_one_hangs_and_the_run_goes_on(tmp_path: Path) -> None:
    command = (*TWO, "trainer.max_steps=120", "trainer.checkpoint_every=10")
    process = start(
        "train", *command, "parallel.restarts=1", "trainer.stall_seconds=6", cwd=tmp_path
    )
    try:
        wait_for_rows(tmp_path / "runs" / "smoke", 30, process)
        (run,) = (tmp_path / "runs" / "smoke").iterdir()
        hung = workers(process)[-1]
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: stall_file(run, 0).exists())
        os.kill(hung, signal.SIGKILL)
        _, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "rank 1 of 2 is last, at step" in err
    assert len(metrics(run)) == 120


class Spiky:
    """Makes the gradients of some steps (from 1) far larger, or no numbers."""

    def __init__(self, steps: dict[int, float]) -> None:
        self.steps, self.original = steps, PretrainModule.training_step

    def patch(self, monkeypatch: pytest.MonkeyPatch, killed_at: int | None = None) -> None:
        def training_step(module: PretrainModule, batch: Any, batch_idx: int) -> torch.Tensor:
            if module.global_step + 1 == killed_at:
                raise Killed
            factor = self.steps.get(module.global_step + 1, 1.0)
            return factor * self.original(module, batch, batch_idx)

        monkeypatch.setattr(PretrainModule, "training_step", training_step)


def skipping(config: RunConfig, **changes: Any) -> RunConfig:
    return with_trainer(config, spike="skip", spike_factor=20.0, spike_window=3, **changes)


def test_updates_of_spikes_are_left_out_and_a_resumed_run_ends_the_same(
    run_at: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one, one that is no number; killed between them, with the history in a checkpoint."""
    spiky = Spiky({5: 1e4, 7: math.nan, 10: 1e4})
    with monkeypatch.context() as patch:
        spiky.patch(patch)
        whole = train(skipping(run_at(runs=str(tmp_path / "whole")), checkpoint_every=3))
    config = skipping(run_at(), checkpoint_every=3)
    with monkeypatch.context() as patch:
        spiky.patch(patch, killed_at=9)
        with pytest.raises(Killed):
            train(config)
    with monkeypatch.context() as patch:
        spiky.patch(patch)
        run = train(config)
    for folder in (whole, run):
        skipped = [int(row["step"]) for row in metrics(folder) if row["skipped"] == "1"]
        assert skipped == [5, 7, 10]
    assert metrics(run) == metrics(whole)
    mine, theirs = (read_checkpoint(checkpoints(each)[-1]) for each in (run, whole))
    assert mine["pauca"]["spikes"] == theirs["pauca"]["spikes"]
    assert mine["pauca"]["spikes"]["skipped"] == [5, 7, 10]
    for name, weight in mine["state_dict"].items():
        assert weight.isfinite().all() and torch.equal(weight, theirs["state_dict"][name]), name
    assert (run / "nonfinite-0000007.json").exists()


def test_what_has_no_spikes_trains_the_same(run_at: RunFactory, tmp_path: Path) -> None:
    """And its folder is another one only where spikes are left out."""
    plain = train(run_at())
    config = skipping(run_at(runs=str(tmp_path / "skip")))
    run = train(config)
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(plain)]
    assert {row["skipped"] for row in metrics(run)} == {"0"}
    assert run.name != plain.name
    assert run_folder(with_trainer(run_at(), spike_factor=3.0)).name == plain.name


def test_too_many_in_a_row_are_no_spike(
    run_at: RunFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Spiky(dict.fromkeys(range(1, 13), math.inf)).patch(monkeypatch)
    line = refusal(capsys, "train", lambda: train(skipping(run_at())))
    assert line.startswith("step 11: gradient norm nan") and "this is no spike; lower" in line


def test_the_limit_is_of_the_newest_norms() -> None:
    history, config = SpikeHistory(), SpikeConfig("skip", 2.0, 0.5, 3)
    for norm in (9.0, 1.0, 2.0):
        assert history.why(1e9, 1e9, config) == ""
        history.take(norm, 5.0, 3)
    assert history.why(4.0, 5.5, config) == ""
    assert history.why(4.1, 5.5, config) == "gradient norm 4.1 (limit 4)"
    assert history.why(4.0, 5.6, config) == "loss 5.6 (limit 5.5)"
    assert history.why(4.0, 5.6, replace(config, loss=None)) == ""
    history.leave_out(4)
    history.take(1.0, 4.0, 3)
    assert (history.norms, history.in_a_row, history.skipped) == ([1.0, 2.0, 1.0], 0, [4])
    assert history.why(2.1, 4.0, config) == "gradient norm 2.1 (limit 2)"
    assert SpikeHistory(**json.loads(json.dumps(history.to_plain()))) == history
    history.enter(1)
    assert history.why(1e9, 1e9, config) == "", "another stage has other losses"
    assert "nan" in history.why(math.nan, 1.0, config)


class Breaks(nn.Module):
    """Is no number in its own forward or backward pass."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.where == "forward":
            return x + (x - x) / 0.0
        return x + (x - x.detach()).abs().sqrt() if self.where == "backward" else x


@pytest.mark.parametrize(
    ("where", "phase", "module"),
    [
        ("forward", "forward", "2"),
        ("backward", "backward", "2"),
        ("weights", "weights", "1.weight"),
        ("nowhere", None, None),
    ],
)
def test_the_first_module_that_is_no_number_is_named(
    where: str, phase: str | None, module: str | None
) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Breaks(where), nn.Linear(4, 4))
    if where == "weights":
        nn.init.constant_(net[1].weight, math.inf)  # pyright: ignore[reportArgumentType]
    watch = Watch(net, 0, 0)
    with watch.hooked():
        net(torch.randn(2, 4)).sum().backward()
    watch.gradients()
    found = watch.first
    assert (found and found.phase, found and found.module) == (phase, module)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in net.modules())


def test_gauges_stand_beside_the_steps_that_are_due(run_at: RunFactory) -> None:
    run = train(with_trainer(run_at(), log_every=3, max_steps=7))
    text = (run / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    for row in rows:
        due = int(row["step"]) % 3 == 0
        for name in ("update_ratio_matrices", "update_ratio_rest", "tokens_per_second"):
            assert bool(row[name]) == due
            assert not due or float(row[name]) > 0
        assert row["mfu"] == row["tokens_per_joule"] == "", "a CPU states no peak and has no meter"
    assert float(rows[2]["update_ratio_matrices"]) < 1
