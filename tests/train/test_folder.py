"""A run's folder: found again by what determines its losses, and full of what made them."""

import copy
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.corpus import Corpus
from models.backbone import Backbone
from models.config import backbone_from_dict
from tests.train.conftest import RunFactory
from tests.train.runs import LOOPED, metrics, small_backbone, train, with_trainer
from train import precision as precision_module
from train.checkpoints import is_finished
from train.config import ParallelConfig, RunConfig
from train.folder import loss_hash, run_folder
from train.precision import resolve_accelerator, resolve_precision

# Everything else determines losses, beyond rounding.
FREE = (
    *("experiment_name", "runs", "parallel.", "logger.", "eval.", "study."),
    *("concepts.", "returns"),
    *("data.name", "data.root", "data.workers", "data.verify"),
    *("trainer.compile", "trainer.checkpoint_every", "trainer.keep_"),
    *("trainer.validate_every", "trainer.validation_rows"),
    *("trainer.log_every", "trainer.stall_seconds"),
    *("trainer.spike_", "trainer.rewind_steps"),  # trainer.spike=none makes no use of them
)
USED = {"skip": ("spike_",), "rewind": ("spike_", "rewind_steps", "checkpoint_every")}
OTHERS = {"parallel.accelerator": "auto", "trainer.precision": "bf16"}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Callable[[Any], None], Any]]:
    """Every setting: its key, a function that sets it, what it is."""
    if is_dataclass(value):
        entries = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, dict):
        entries = [*value.items()]
    else:
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    for name, entry in entries:
        path = f"{key}.{name}".removeprefix(".")
        if is_dataclass(entry) or (isinstance(entry, dict | list) and entry):
            yield from leaves(entry, path)
        else:
            yield path, _setter(value, name), entry


def _setter(owner: Any, name: str) -> Callable[[Any], None]:
    if is_dataclass(owner):
        return lambda new: setattr(owner, name, new)
    return lambda new: owner.__setitem__(int(name) if isinstance(owner, list) else name, new)


def another(key: str, value: Any) -> Any:
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else 7


@pytest.fixture
def config(run_at: Callable[..., RunConfig]) -> RunConfig:
    return run_at(backbone=small_backbone(depth=LOOPED))


def test_the_name_follows_what_determines_the_losses(config: RunConfig) -> None:
    """Each setting in turn is changed; parallelism, loggers, paths and evaluation are free."""
    base = loss_hash(config)
    keys = [key for key, _, _ in leaves(config)]
    assert len(keys) > 60
    for index, key in enumerate(keys):
        changed = copy.deepcopy(config)
        _, change, value = list(leaves(changed))[index]
        change(another(key, value))
        assert (loss_hash(changed) == base) == key.startswith(FREE), key


@pytest.mark.parametrize("kind", USED)
def test_what_spikes_are_told_by_counts_where_it_is_used(kind: str, run_at: RunFactory) -> None:
    base = with_trainer(run_at(), spike=kind)
    for name in ("spike_factor", "spike_loss", "spike_window", "rewind_steps", "checkpoint_every"):
        changed = with_trainer(base, **{name: 1 + getattr(base.trainer, name)})
        assert (loss_hash(changed) != loss_hash(base)) == name.startswith(USED[kind]), name


def test_the_name_says_what_people_look_for(config: RunConfig) -> None:
    folder = run_folder(replace(config, seed=3))
    assert folder.parent == Path(config.runs) / "test"
    assert folder.name == f"transformer-s3-{loss_hash(replace(config, seed=3))}"
    assert not is_finished(folder, 1)


def test_a_folder_holds_one_precision(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` means what this machine makes of it."""
    names = {}
    for fast in (False, True):
        monkeypatch.setattr(precision_module, "cpu_is_fast_at_bf16", lambda fast=fast: fast)
        names[fast] = run_folder(with_trainer(config, precision="auto")).name
    assert names[False] == run_folder(with_trainer(config, precision="32")).name
    assert names[True] == run_folder(with_trainer(config, precision="bf16")).name
    assert names[False] != names[True]


def test_precision_and_device_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("32", "cuda") == "32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    for capability, expected in (((7, 5), "32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert resolve_precision("auto", "cuda") == expected
    assert resolve_precision("auto", "cpu") in ("32", "bf16")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda a=available: a)
        assert resolve_accelerator("auto") == ("cuda" if available else "cpu")
    assert resolve_accelerator("cpu") == "cpu"
    with pytest.raises(ValueError, match="accelerator=cuda, but torch sees no GPU: choose cpu"):
        resolve_accelerator("cuda")


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_it_holds_what_made_it(precision: str, config: RunConfig, corpus_path: Path) -> None:
    config = with_trainer(config, max_steps=3, precision=precision)
    run = train(config)
    written = yaml.safe_load((run / "config.yaml").read_text())
    plain = asdict(config)
    assert written.pop("corpus") == str(corpus_path)
    backbone = written.pop("backbone")
    assert written == {key: plain[key] for key in plain if key != "backbone"}
    resolved = backbone_from_dict(backbone)
    assert resolved.vocab_size == Corpus.open(corpus_path).tokenizer.vocab_size
    facts = json.loads((run / "environment.json").read_text())
    assert facts["precision"] == precision
    assert shlex.split(facts["command"])[1:] == sys.orig_argv[1:]
    corpus = json.loads((run / "corpus.json").read_text())
    assert corpus == Corpus.open(corpus_path).manifest
    assert all(float(row["loss"]) > 0 for row in metrics(run))


def test_cost_json_counts_what_was_trained(config: RunConfig, corpus_path: Path) -> None:
    """By hand: three forward passes of every document read, at the loops of each step."""
    run = train(config)
    cost = json.loads((run / "cost.json").read_text())
    written = yaml.safe_load((run / "config.yaml").read_text())
    backbone = Backbone(backbone_from_dict(written["backbone"]))
    rows = Corpus.open(corpus_path).split("train")
    assert cost["parameters"] == sum(p.numel() for p in backbone.parameters())
    assert cost["non_embedding_parameters"] == cost["parameters"] - 16 * backbone.config.vocab_size
    per_document = 0.0
    loops = [int(row["loops"]) for row in metrics(run)]
    for count in loops:
        for length in rows.document_lengths.tolist():
            cost_of_one = backbone.prefill_cost(length, count, readouts=length)
            per_document += 3 * cost_of_one.flops * 4 / rows.num_rows
    assert cost["train_flops"] == pytest.approx(per_document)
    assert cost["mean_train_loops"] == pytest.approx(sum(loops) / len(loops))
    assert cost["train_tokens"] == pytest.approx(12 * 4 * rows.num_tokens / rows.num_rows, abs=1)
    assert cost["peak_learning_rate"] == max(float(r["learning_rate"]) for r in metrics(run))


@pytest.mark.parametrize("threads", [0, 1])
def test_threads_change_no_setting_of_the_run(
    config: RunConfig, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    parallel = ParallelConfig(accelerator="cpu", threads=threads)
    train(with_trainer(replace(config, parallel=parallel), max_steps=1))
    assert asked == [threads] * threads
