"""Faults of the world: damaged files, a full disk, a loss that is no number."""

import errno
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data import atomic
from data.corpus import Corpus
from data.make import make_corpus
from data.manifest import json_hash, write_json
from data.order import GlobalOrder
from eval.__main__ import main as evaluate
from eval.checkpoint import (
    CheckpointError,
    checkpoint_path,
    checkpoints,
    load_trained,
    read_checkpoint,
    remove_checkpoint,
)
from tests.train.runs import losses, metrics, refusal, snapshot, train, with_trainer
from train.config import RunConfig
from train.folder import run_folder
from train.module import PretrainModule
from train.optim import OptimConfig
from train.records import MetricsWriter

Capture = pytest.CaptureFixture[str]


def files_of(run: Path) -> dict[str, tuple[int, int]]:
    """What a refused start must leave as it was; the lock is taken and given back."""
    return {name: facts for name, facts in snapshot(run).items() if name != ".lock"}


@pytest.fixture
def half_way(run_at: Callable[..., RunConfig]) -> tuple[RunConfig, Path]:
    """A run whose last checkpoint is gone, so that it goes on from step 8 of 12."""
    config = run_at()
    run = train(config)
    remove_checkpoint(checkpoint_path(run, 12))
    return config, run


@pytest.fixture
def own_corpus(run_at: Callable[..., RunConfig], tmp_path: Path) -> tuple[RunConfig, Path]:
    """A short run's settings, and its corpus, which the test may damage."""
    config = with_trainer(run_at(), max_steps=2)
    return _with_own_corpus(config, tmp_path / "corpora")


def _with_own_corpus(config: RunConfig, root: Path) -> tuple[RunConfig, Path]:
    """Copy the corpus of a run; the shared folder may hold others."""
    shared = make_corpus(config.data, progress=False)
    shutil.copytree(shared, root / shared.name)
    return replace(config, data=replace(config.data, root=str(root))), root / shared.name


def test_a_missing_shard_is_made_again(own_corpus: tuple[RunConfig, Path]) -> None:
    config, corpus = own_corpus
    shard = corpus / "train" / "shard-00000.bin"
    content = shard.read_bytes()
    shard.unlink()
    train(config)
    assert shard.read_bytes() == content


def test_a_flipped_byte_is_found(own_corpus: tuple[RunConfig, Path], capsys: Capture) -> None:
    config, corpus = own_corpus
    shard = corpus / "train" / "shard-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    line = refusal(capsys, "train", lambda: train(config))
    assert "train/shard-00000.bin" in line and "checksum" in line and "python -m data" in line
    assert not Path(config.runs).exists()


def test_an_empty_split_is_named(corpora: Path, own_corpus: tuple[RunConfig, Path]) -> None:
    """Training on a corpus without validation works, and scores nothing; asking for it doesn't."""
    config, _ = own_corpus
    config = with_trainer(config, validate_every=1)
    config = replace(config, data=replace(config.data, num_validation_documents=0))
    run = train(config)
    assert [row["validation_loss"] for row in metrics(run)] == ["", ""]
    made = [path for path in Path(config.data.root).iterdir() if path.name not in _names(corpora)]
    with pytest.raises(ValueError, match=r"'validation' is empty; .*num_validation_documents"):
        Corpus.open(made[0]).split("validation")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_another_corpus_is_refused_on_resume(
    half_way: tuple[RunConfig, Path], tmp_path: Path, capsys: Capture
) -> None:
    """The same settings, but other bytes: an older generator's corpus. Nothing is overwritten."""
    config, run = half_way
    config, corpus = _with_own_corpus(config, tmp_path / "corpora")
    manifest = dict(Corpus.open(corpus).manifest)
    old = manifest.pop("hash")
    manifest["splits"]["train"]["documents"] += 1
    write_json(corpus / "manifest.json", {**manifest, "hash": json_hash(manifest)})
    before = files_of(run)
    line = refusal(capsys, "train", lambda: train(config))
    assert f"was trained on corpus {old[:12]}" in line
    assert f"this run reads {json_hash(manifest)[:12]}" in line
    assert f"restore the corpus, or remove {run}" in line
    assert files_of(run) == before


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a shard cut short": ("model-00000-000.safetensors", lambda content: content[:-1]),
    "a flipped byte": ("model-00000-000.safetensors", flipped),
    "a manifest cut short": ("manifest.json", lambda content: content[:-9]),
    "a flipped byte of the manifest": ("manifest.json", flipped),
    "an empty manifest": ("manifest.json", lambda content: b""),
    "of something else": ("manifest.json", lambda content: b"[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_can_be_removed(
    damage: str, half_way: tuple[RunConfig, Path], capsys: Capture
) -> None:
    config, run = half_way
    path = checkpoint_path(run, 8)
    shutil.copytree(path, checkpoint_path(run, 4))  # stands for an older one
    name, change = DAMAGES[damage]
    (path / name).write_bytes(change((path / name).read_bytes()))
    before = files_of(run)
    line = refusal(capsys, "train", lambda: train(config))
    assert line.startswith(f"{path}: the checkpoint is damaged ({name}, ")
    assert line.endswith("remove it and train again: the run goes on from the one before")
    assert files_of(run) == before
    status = evaluate([f"run={run}", "device=cpu", "eval.items=1"])
    assert status == 1
    assert capsys.readouterr().err.startswith(f"eval: {path}: the checkpoint is damaged (")


def test_without_the_damaged_checkpoint_the_run_goes_on(
    run_at: Callable[..., RunConfig], capsys: Capture
) -> None:
    config = run_at()
    run = train(config)
    whole = metrics(run)
    remove_checkpoint(checkpoint_path(run, 12))
    (checkpoint_path(run, 8) / "optimizer-00000-001.safetensors").unlink()
    line = refusal(capsys, "train", lambda: train(config))
    assert "(optimizer-00000-001.safetensors, it is missing)" in line
    remove_checkpoint(checkpoint_path(run, 8))
    train(config)
    assert metrics(run) == whole


def test_a_run_without_a_checkpoint_cannot_be_evaluated(
    half_way: tuple[RunConfig, Path], tmp_path: Path, capsys: Capture
) -> None:
    _, run = half_way
    for path in checkpoints(run):
        remove_checkpoint(path)
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (run, f"eval: {run}: no checkpoint in checkpoints/; train it first"),
        (tmp_path / "empty", f"eval: run={tmp_path / 'empty'} is no run folder (it has no config"),
        (tmp_path / "nowhere", f"eval: run={tmp_path / 'nowhere'} is no run folder"),
    ):
        assert evaluate([f"run={folder}", "device=cpu"]) in (1, 2)
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        assert err.startswith(message)
    assert not (run / "ledger.parquet").exists()


def test_a_run_that_cannot_be_read_is_refused(half_way: tuple[RunConfig, Path]) -> None:
    _, run = half_way
    for folder, message in (
        (run / "nowhere", "no such folder"),
        (run.parent, "no checkpoint in checkpoints/"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_trained(folder)
    content = read_checkpoint(checkpoint_path(run, 8))
    content["state_dict"]["objective.backbone.norm.weight"] = torch.zeros(3)
    torch.save(content, run / "checkpoints" / "step-0000009.ckpt")
    with pytest.raises(CheckpointError, match="don't fit the backbone of this version"):
        load_trained(run)
    (run / "corpus.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"corpus.json: missing or damaged; start the run"):
        load_trained(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.itms=3"], "eval.itms is not a setting: choose one of tasks, items"),
        (["itms=3"], "itms is not a setting: choose one of run, eval, force"),
        (["eval.items=many"], "eval.items: Value 'many'"),
        (["eval.items=0"], "eval.items=0 must be at least 1"),
        (["eval.tasks.s4.levels=[2]"], "eval.tasks.s4: task=s4 is not a task: use one of parity"),
        (["device=tpu"], "device=tpu is not known: choose auto, cpu or cuda"),
    ],
)
def test_evaluation_settings_are_refused_by_name(
    overrides: list[str], message: str, half_way: tuple[RunConfig, Path], capsys: Capture
) -> None:
    _, run = half_way
    capsys.readouterr()
    assert evaluate([f"run={run}", *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"eval: {message}")


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_of_checkpoints(
    run_at: Callable[..., RunConfig], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before stays, no half of the new one does, and the run goes on later."""
    config = run_at()
    whole = metrics(train(config))
    shutil.rmtree(config.runs)
    original = atomic._write_parts

    def write_parts(file: Any, parts: Any) -> None:
        if "step-0000008" in file.name:
            file.write(b"half")
            full_disk()
        original(file, parts)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_write_parts", write_parts)
        line = refusal(capsys, "train", lambda: train(config))
    run = run_folder(config)
    path = checkpoint_path(run, 8)
    assert re.fullmatch(
        rf"{re.escape(str(path))}.tmp/model-00000-000.safetensors: the disk is full "
        r"\([\d,]+ bytes needed, [\d,]+ free\); "
        "make room, run again",
        line,
    )
    assert checkpoints(run) == [checkpoint_path(run, 4)]
    assert not list(run.rglob("*.tmp"))
    train(config)
    assert metrics(run) == whole


def test_a_disk_that_has_no_room_for_a_line(
    run_at: Callable[..., RunConfig], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_at()
    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", full_disk)
        line = refusal(capsys, "train", lambda: train(config))
    assert line.startswith("No space left on device: make room")
    assert len(losses(train(config))) == 12


def diverge(self: PretrainModule, at: int, where: str) -> None:
    """Spoil the weights, or only a gradient, before a step of the run (from 1)."""
    weight = self.net.backbone.head.weight
    if self.global_step + 1 == at and where == "loss":
        weight.data.fill_(math.inf)
    if self.global_step + 1 == at and where == "gradient":
        handle = weight.register_hook(lambda gradient: gradient * math.nan)
        self.handles = [handle]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(
    where: str,
    run_at: Callable[..., RunConfig],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names the step, its rows and the last good checkpoint, from which the run goes on."""
    config = run_at()
    original = PretrainModule.training_step

    def training_step(self: PretrainModule, batch: Any, batch_idx: int) -> Any:
        diverge(self, 8, where)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "training_step", training_step)
        line = refusal(capsys, "train", lambda: train(config))
    run = run_folder(config)
    corpus = Corpus.open(make_corpus(config.data, progress=False))
    rows = GlobalOrder(corpus.split("train").phases, 4, 0, 0).indices(7)
    number = r"(nan|inf)" if where == "loss" else r"\d+\.\d+"
    head = r"the (gradient of the )?weight backbone\.head\.weight(, before the step)?"
    assert re.fullmatch(
        rf"step 8: loss {number}, gradient norm nan \(first: (nan|inf) in {head} "
        r"\(rank 0, micro-batch 0\)\); the batch is rows "
        rf"{', '.join(map(str, rows))} of {re.escape(str(corpus.path))}/train; "
        rf"last good checkpoint: {re.escape(str(checkpoint_path(run, 4)))}",
        line,
    )
    assert len(metrics(run)) == 7
    assert checkpoints(run) == [checkpoint_path(run, 4)]
    assert len(metrics(train(config))) == 12


def test_a_learning_rate_that_is_far_too_large(
    run_at: Callable[..., RunConfig], capsys: Capture
) -> None:
    config = run_at(optim=OptimConfig("adamw", lr=1e30))
    line = refusal(capsys, "train", lambda: train(config))
    assert re.match(r"step [234]: loss (nan|inf), gradient norm (nan|inf|\d)", line)
    assert line.endswith("last good checkpoint: none yet")


def test_what_an_older_version_saved_can_be_evaluated_but_not_gone_on_from(
    half_way: tuple[RunConfig, Path], capsys: Capture
) -> None:
    config, run = half_way
    path = run / "checkpoints" / "step-0000008.ckpt"
    torch.save(read_checkpoint(checkpoint_path(run, 8)), path)
    now = load_trained(run).backbone.state_dict()
    remove_checkpoint(checkpoint_path(run, 8))
    for name, weight in load_trained(run).backbone.state_dict().items():
        assert torch.equal(weight, now[name]), name
    line = refusal(capsys, "train", lambda: train(config))
    assert line.startswith(f"{path} was written by an older version")
