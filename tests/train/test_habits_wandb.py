"""Alerts and artifacts in real offline W&B runs, and the command that sends them later."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.conftest import RunFactory
from tests.train.runs import refusal, train, with_trainer
from tests.train.test_habits import Spiky, skipping
from tests.train.test_logging import alone, assert_said, connections, offline_runs
from train.artifacts import KEPT_FILE
from train.config import RunConfig
from train.folder import run_folder
from train.logging import LoggerConfig
from train.sync import main as sync

__all__ = ["alone", "connections"]


def test_artifacts_are_kept_once_and_sent_by_one_command(
    run_at: RunFactory,
    alone: None,
    connections: list[bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sending needs a key, and says so; without one nothing reaches the network."""
    config: RunConfig = run_at(logger=LoggerConfig("wandb", artifacts="all"))
    run = train(with_trainer(config, max_steps=2))
    first, second = offline_runs(run)
    kept = second / f"run-{run.name}.wandb"
    assert_said(second, run, b"checkpoint-" + run.name.encode(), b"records", b"cost")
    before = kept.read_bytes()
    train(with_trainer(config, max_steps=2))
    assert offline_runs(run) == [first, second] and kept.read_bytes() == before
    assert (run / KEPT_FILE).exists()

    capsys.readouterr()
    assert sync([f"runs={run.parent}", "dry=true"]) == 0
    lines = [f"would send {path.resolve()}" for path in (first, second)]
    assert capsys.readouterr().out.splitlines() == [*lines, f"not synced: {run.parent}"]
    assert sync([f"runs={run.parent}"]) == 1
    assert "train.sync: wandb sync ended with status" in capsys.readouterr().err
    for path in (first, second):
        next(path.glob("*.wandb")).with_suffix(".wandb.synced").touch()
    assert sync([f"runs={run.parent}"]) == 0
    assert "there is nothing to send" in capsys.readouterr().out
    assert sync(["runs=nowhere"]) == 2
    assert connections == []


def test_an_alert_says_where_it_is_no_number(
    run_at: RunFactory,
    alone: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Spiky({2: math.nan}).patch(monkeypatch)
    config = replace(run_at(logger=LoggerConfig("wandb")))
    line = refusal(capsys, "train", lambda: train(config))
    assert re.match(r"step 2: loss nan, gradient norm nan \(first: nan in the loss", line)
    run: Path = run_folder(config)
    (folder,) = offline_runs(run)
    assert_said(folder, run, b"not finite", b"step 2: gradient norm nan; first: nan in the loss")


def test_an_alert_says_that_an_update_was_left_out_but_not_of_each(
    run_at: RunFactory, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window is three steps."""
    Spiky({5: 1e4, 6: 1e4, 8: 1e4}).patch(monkeypatch)
    run = train(skipping(run_at(logger=LoggerConfig("wandb")), max_steps=8))
    (folder,) = offline_runs(run)
    assert_said(folder, run, b"spike", b"step 5: gradient norm ", b"step 8: gradient norm ")
    assert_said(folder, run, b"left out (1 so far)", b"left out (3 so far)")
    assert b"left out (2 so far)" not in next(folder.glob("*.wandb")).read_bytes()
