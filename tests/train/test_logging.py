"""W&B through Lightning, for real: offline into the run's folder, or one line of refusal."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import wandb

from eval.checkpoint import remove_checkpoint
from tests.train.runs import Killed, refusal, train, with_trainer
from train.config import RunConfig
from train.folder import run_folder
from train.logging import LoggerConfig, loggers_of

pytestmark = pytest.mark.filterwarnings("ignore:.*anonymous.*")


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What anyone tried to say to the network, all of which leads to a server in this process."""
    heard: list[bytes] = []

    class Listener(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard.append(self.request.recv(100))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        for variable in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, address)
            monkeypatch.setenv(variable.lower(), address)
        yield heard
        server.shutdown()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nobody ever logged in."""
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def offline_runs(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def assert_said(folder: Path, run: Path, *said: bytes) -> None:
    """The record of a run says all that; W&B's own process may write it a moment later."""
    (record,) = folder.glob("run-*.wandb")
    assert record.name == f"run-{run.name}.wandb"
    until = time.monotonic() + 30
    while not all(part in record.read_bytes() for part in said) and time.monotonic() < until:
        time.sleep(0.05)
    assert [part for part in said if part not in record.read_bytes()] == []


def test_offline_it_writes_into_the_run_and_says_nothing_to_the_network(
    run_at: Callable[..., RunConfig],
    alone: None,
    connections: list[bytes],
    tmp_path: Path,
) -> None:
    """Two parts of one run share its id; the group is the experiment's name."""
    config = with_trainer(run_at(logger=LoggerConfig("wandb")), max_steps=4, checkpoint_every=2)
    run = train(config)
    remove_checkpoint(run / "checkpoints" / "step-0000004")
    train(config)
    first, second = offline_runs(run)
    for folder in (first, second):
        name = run.name.encode()
        assert_said(folder, run, b"test", b"pauca", name, b"validation_loss", b"gradient_norm")
    assert wandb.run is None
    assert connections == []
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", ".cache", ".config", ".local"}


def test_a_run_after_another_gets_its_own(run_at: Callable[..., RunConfig]) -> None:
    """As in a sweep, whose runs share a process."""
    config = with_trainer(run_at(logger=LoggerConfig("wandb", group="mine")), max_steps=1)
    for seed in (0, 1):
        run = train(replace(config, seed=seed))
        (folder,) = offline_runs(run)
        assert_said(folder, run, b"mine", f"s{seed}".encode())


def test_a_run_that_fails_is_closed_too(tmp_path: Path) -> None:
    with (
        pytest.raises(Killed),
        loggers_of(LoggerConfig("wandb"), tmp_path / "name", "group", {}) as (logger,),
    ):
        logger.log_metrics({"loss": 1.0}, 1)
        raise Killed
    assert wandb.run is None
    with loggers_of(LoggerConfig("wandb"), tmp_path / "unused", "group", {}):
        pass
    assert not (tmp_path / "unused").exists()


def test_online_without_a_key_is_one_line(
    run_at: Callable[..., RunConfig],
    alone: None,
    connections: list[bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = run_at(logger=LoggerConfig("wandb", mode="online"))
    line = refusal(capsys, "train", lambda: train(config))
    assert line.startswith("W&B: No API key configured. Use `wandb login` to log in.")
    assert line.endswith("choose logger.mode=offline")
    run = run_folder(config)
    assert not (run / "metrics.csv").exists() and not (run / "checkpoints").exists()
    assert connections == []


def test_without_a_logger_there_is_only_our_own_record(run_at: Callable[..., RunConfig]) -> None:
    run = train(with_trainer(run_at(), max_steps=2))
    assert {path.name for path in run.iterdir()} == {
        *("checkpoints", "config.yaml", "corpus.json", "cost.json", "environment.json"),
        *("metrics.csv", ".lock", "heartbeat"),
    }
    facts = json.loads((run / "environment.json").read_text())
    assert facts.keys() >= {"command", "git", "python", "packages", "device", "precision"}
    assert facts["precision"] == "32"
