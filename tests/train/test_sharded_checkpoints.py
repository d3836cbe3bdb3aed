"""What two shards saved, any number of processes go on from."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors import safe_open
from safetensors.torch import load_file

from data.atomic import WriteError
from eval.checkpoint import (
    CheckpointError,
    checkpoint_path,
    checkpoints,
    load_trained,
    remove_checkpoint,
)
from eval.stored import MANIFEST, Stored
from models.backbone import Backbone
from models.config import backbone_from_dict
from tests.train.conftest import RunFactory
from tests.train.runs import SMALL, launch, metrics, refusal, train, with_trainer
from tests.train.test_cutting import assert_equal_up_to_rounding
from tests.train.test_faults import files_of, flipped
from train.checkpoints import CheckpointSaver
from train.consolidate import consolidate, main
from train.pretrain import pretrain
from train.schema import register_schemas, to_config
from train.storage import TensorWriter

COMMAND = (
    *("experiment=smoke", *SMALL, "optim=adamw", "backbone=looped", "depth=looped"),
    *("backbone.depth.loops=2", "backbone.depth.max_loops=3", "parallel.accelerator=cpu"),
    *("trainer.max_steps=12", "trainer.checkpoint_every=4", "trainer.validate_every=4"),
    *("trainer.keep_last=3", "parallel.accumulate=1"),
)
TWO_SHARDS = ("parallel.strategy=fsdp2", "parallel.devices=2", "parallel.recompute=blocks")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two shards, whose checkpoints of steps 4, 8 and 12 are kept."""
    folder = tmp_path_factory.mktemp("sharded")
    status, out, err = launch("train", *COMMAND, *TWO_SHARDS, cwd=folder)
    assert status == 0, err
    return folder / out.splitlines()[-1].removeprefix("run: ")


def copy_at_eight(sharded: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Copy the run as it was at step 8; return it, and the command that goes on with it."""
    run = folder / "runs" / "smoke" / sharded.name
    shutil.copytree(sharded, run)
    remove_checkpoint(checkpoint_path(run, 12))
    corpora = f"data.root={sharded.parents[2] / 'corpora'}"
    return run, (*COMMAND, corpora, f"runs={folder / 'runs'}")


def train_here(command: tuple[str, ...]) -> Path:
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        return pretrain(*to_config(compose("train", list(command))))


def go_on(sharded: Path, folder: Path, *parallel: str) -> Path:
    """Go on from step 8, in a copy, with other processes; without any named, in this one."""
    run, command = copy_at_eight(sharded, folder)
    if parallel:
        status, _, err = launch("train", *command, *parallel, cwd=folder)
        assert status == 0, err
    else:
        assert train_here(command) == run
    return run


def assert_same_end(run: Path, other: Path) -> None:
    assert_equal_up_to_rounding(metrics(run), metrics(other))
    mine, theirs = (load_trained(each).backbone.state_dict() for each in (run, other))
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_one_process_goes_on_from_two_shards(sharded: Path, tmp_path: Path) -> None:
    stored = Stored.open(checkpoint_path(sharded, 8))
    assert stored.facts["processes"] == 2
    parts = [len(tensor.chunks) for tensor in stored.tensors.values()]
    assert {name.split("-")[1] for name in stored.files} == {"00000", "00001"}
    assert max(parts) == 2
    alone = go_on(sharded, tmp_path)
    assert Stored.open(checkpoint_path(alone, 12)).facts["processes"] == 1
    assert_same_end(alone, sharded)


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("strategy", "devices"), [("fsdp2", 4), ("ddp", 2), ("fsdp2", 2)])
def test_others_go_on_from_two_shards(
    strategy: str, devices: int, sharded: Path, tmp_path: Path
) -> None:
    parallel = (f"parallel.strategy={strategy}", f"parallel.devices={devices}")
    assert_same_end(go_on(sharded, tmp_path, *parallel), sharded)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_consolidated_weights_are_the_shards(
    sharded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"run={sharded}"]) == 0
    path = sharded / "model.safetensors"
    assert capsys.readouterr().out == f"weights: {path}\n"
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["step"] == "12"
    backbone = Backbone(backbone_from_dict(json.loads(facts["backbone"])))
    backbone.load_state_dict(load_file(path))
    for name, weight in load_trained(sharded).backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], weight), name
    consolidate(sharded, 8)
    earlier = Stored.open(checkpoint_path(sharded, 8)).read("model")
    for name, weight in load_file(path).items():
        assert torch.equal(earlier[f"objective.backbone.{name}"], weight), name
    path.unlink()
    assert main([f"run={sharded}", "step=5"]) == 1
    assert "no checkpoint of step 5; there are: step-0000004" in capsys.readouterr().err


def write_flipped(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes()))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (write_flipped, "its checksum is another"),
    "cut short": (cut_short, r"\d+ bytes instead of \d+"),
    "missing": (Path.unlink, "(it is missing|FileNotFoundError)"),
}
WEIGHTS, AVERAGES = "model-00001-000.safetensors", "optimizer-00001-001.safetensors"
"""What the second of two processes saved."""


def damaged(run: Path, name: str, damage: str) -> re.Pattern[str]:
    """Damage a file of the run's newest checkpoint; return what a refusal of it says."""
    newest = checkpoints(run)[-1]
    change, how = DAMAGES[damage]
    change(newest / name)
    said = rf"{re.escape(str(newest))}: the checkpoint is damaged \({name}, {how}\); remove it and"
    return re.compile(said)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_damaged_shard_is_refused_by_name(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one process, by two, and by what reads weights alone."""
    run, command = copy_at_eight(sharded, tmp_path)
    for name, damage in ((WEIGHTS, "cut short"), (AVERAGES, "flipped"), (AVERAGES, "missing")):
        path = checkpoint_path(run, 8) / name
        whole = path.read_bytes()
        said, before = damaged(run, name, damage), files_of(run)
        assert said.match(refusal(capsys, "train", lambda: train_here(command)))
        assert files_of(run) == before
        path.write_bytes(whole)

    said, before = damaged(run, WEIGHTS, "flipped"), files_of(run)
    status, out, err = launch("train", *command, *TWO_SHARDS, cwd=tmp_path)
    (line,) = err.splitlines()
    assert (status, out) == (2, "") and said.match(line.removeprefix("train: "))
    for read in (consolidate, load_trained):
        with pytest.raises(CheckpointError, match=said):
            read(run)
    assert files_of(run) == before


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_two_processes_refuse_any_damage_and_go_on_from_the_one_before(
    sharded: Path, tmp_path: Path
) -> None:
    """Neither waits for the other: the one that reads ends both."""
    run, command = copy_at_eight(sharded, tmp_path)
    replicas = ("parallel.strategy=ddp", "parallel.devices=2")
    for name, damage, parallel in (
        (WEIGHTS, "cut short", replicas),
        (WEIGHTS, "missing", TWO_SHARDS),
        (AVERAGES, "flipped", replicas),
        (MANIFEST, "missing", TWO_SHARDS),
    ):
        path = checkpoint_path(run, 8) / name
        whole = path.read_bytes()
        said, before = damaged(run, name, damage), files_of(run)
        status, _, err = launch("train", *command, *parallel, cwd=tmp_path)
        (line,) = err.splitlines()
        assert status == 2 and said.match(line.removeprefix("train: "))
        assert files_of(run) == before
        path.write_bytes(whole)
    remove_checkpoint(checkpoint_path(run, 8))
    status, _, err = launch("train", *command, *TWO_SHARDS, cwd=tmp_path)
    assert status == 0 and "from step 4 to step 12" in err
    assert_same_end(run, sharded)


def test_the_best_are_kept_beside_the_newest(run_at: RunFactory) -> None:
    """Only what was scored can be among the best."""
    config = with_trainer(run_at(), checkpoint_every=2, validate_every=4, keep_last=1, keep_best=2)
    run = train(config)
    losses = {int(row["step"]): row["validation_loss"] for row in metrics(run)}
    best = sorted((4, 8, 12), key=lambda step: float(losses[step]))[:2]
    assert checkpoints(run) == [checkpoint_path(run, step) for step in sorted({*best, 12})]


def test_training_goes_on_while_a_checkpoint_is_written(
    run_at: RunFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is under way at most; what goes wrong with it ends the run."""
    written, original = threading.Event(), TensorWriter.write_data
    under_way: list[int] = []

    def slowly(self: TensorWriter, *given: object) -> object:
        under_way.append(self.facts["step"])
        if self.facts["step"] == 4:
            assert written.wait(60), "training waits for its checkpoint"
        if self.facts["step"] == 8:
            raise WriteError("no room")
        return original(self, *given)  # pyright: ignore[reportArgumentType]

    save = CheckpointSaver.save

    def at_eight(self: CheckpointSaver, trainer: object, *given: object) -> None:
        if under_way == [4]:
            assert not checkpoint_path(self.run, 4).exists()
            written.set()
        save(self, trainer, *given)  # pyright: ignore[reportArgumentType]

    config = run_at()
    with monkeypatch.context() as patch:
        patch.setattr(TensorWriter, "write_data", slowly)
        patch.setattr(CheckpointSaver, "save", at_eight)
        assert refusal(capsys, "train", lambda: train(config)) == "no room"
    (run,) = (Path(config.runs) / "test").iterdir()
    assert checkpoints(run) == [checkpoint_path(run, 4)]
    assert not list(run.rglob("*.tmp"))
    assert under_way == [4, 8]
    assert len(metrics(train(config))) == 12
