"""A run's checkpoints as the evaluation reads them: found by step, loaded without unpickling."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.atomic import TEMPORARY_SUFFIX
from data.tokenizer import Tokenizer, tokenizer_from_spec
from models.backbone import Backbone
from models.config import backbone_from_dict

from .stored import MODEL, Stored, StoredError

CHECKPOINT_FOLDER = "checkpoints"
CORPUS_FILE = "corpus.json"
_NAME = re.compile(r"step-(\d+)(\.ckpt)?")  # a file is an older version's
WEIGHTS_PREFIX = "objective.backbone."


class CheckpointError(ValueError):
    """A run that can't be evaluated; the message is one line with the way out."""


@dataclass
class Trained:
    """A backbone as its run left it.

    Attributes:
        backbone: with its weights, on the CPU.
        tokenizer: the one that it was trained with.
        step: steps that it was trained for.
        identity: changes whenever the weights do.
        levels: levels of each task that it was trained on.
        fills: whether it was trained to fill answers in, rather than to write them.
    """

    backbone: Backbone
    tokenizer: Tokenizer
    step: int
    identity: str
    levels: dict[str, set[int]]
    fills: bool = False


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run folder, oldest first."""
    folder = run / CHECKPOINT_FOLDER
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=checkpoint_step)


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step stands: a folder, see `eval.stored`."""
    return run / CHECKPOINT_FOLDER / f"step-{step:07d}"


def checkpoint_step(path: Path) -> int:
    """Return the step of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def load_trained(run: Path) -> Trained:
    """Load the newest checkpoint of a run folder.

    Raises:
        CheckpointError: there is no such folder, checkpoint or corpus description, or the
            checkpoint is damaged.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder; give the folder that `run: ...` named")
    found = checkpoints(run)
    if not found:
        raise CheckpointError(
            f"{run}: no checkpoint in {CHECKPOINT_FOLDER}/; train it first, with the command in "
            "its environment.json, or give another run"
        )
    corpus, content = corpus_manifest(run), read_checkpoint(found[-1])
    return Trained(
        _backbone(found[-1], content).eval(),
        tokenizer_from_spec(corpus["tokenizer"]["spec"]),
        checkpoint_step(found[-1]),
        content["identity"],
        _trained_levels(corpus),
        content["pauca"].get("fill", False),
    )


def _backbone(path: Path, content: dict[str, Any]) -> Backbone:
    backbone = Backbone(backbone_from_dict(content["pauca"]["backbone"]))
    weights = {
        name.removeprefix(WEIGHTS_PREFIX): weight for name, weight in content["state_dict"].items()
    }
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the weights don't fit the backbone of this version of the code; check out "
            "the revision in the run's environment.json, or train again"
        ) from error
    return backbone


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's weights and notes; nothing in it is run.

    That is `state_dict`, `pauca` (the module's notes), `global_step` and `identity`, which changes
    whenever the weights do.

    Raises:
        CheckpointError: it is damaged, or no run of ours wrote it.
    """
    if path.is_file():
        return _read_file(path)
    try:
        stored = Stored.open(path)
        stored.verify(MODEL)
        weights, facts = stored.read(MODEL), stored.facts
        return {
            "state_dict": weights,
            "pauca": facts["pauca"],
            "global_step": facts["step"],
            "identity": stored.identity,
        }
    except (StoredError, KeyError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> CheckpointError:
    """Return the error of a checkpoint that isn't as it was written."""
    return CheckpointError(
        f"{path}: the checkpoint is damaged ({why}); remove it and train again: the run goes on "
        "from the one before"
    )


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint."""
    if path.is_file():
        path.unlink()
        return
    gone = path.with_name(path.name + TEMPORARY_SUFFIX)  # a half of it must not look like a whole
    path.rename(gone)
    shutil.rmtree(gone)


def _read_file(path: Path) -> dict[str, Any]:
    """Read what older versions wrote: one file of torch's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not {"pauca", "state_dict"} <= content.keys():
            raise ValueError("its parts are missing")
    except Exception as error:
        raise damaged(path, type(error).__name__) from error
    return {**content, "identity": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def corpus_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of the corpus that a run was trained on.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = run / CORPUS_FILE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: missing or damaged; start the run's own command again, it is written anew"
        ) from error


def _trained_levels(corpus: dict[str, Any]) -> dict[str, set[int]]:
    levels: dict[str, set[int]] = {}
    for source in corpus["definition"]["sources"].values():
        scheduled = [step["levels"] or [] for step in source.get("schedule", [])]
        levels.setdefault(source["task"], set()).update(source["levels"], *scheduled)
    return levels
