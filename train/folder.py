"""A run's folder: its name, and the files that say what it is."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from operator import getitem
from pathlib import Path
from typing import Any

import torch

from data.atomic import write_atomically

from .config import RunConfig
from .precision import resolve_accelerator, resolve_precision
from .teacher import teacher_hash

_PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "wandb", "numpy", "polars")
# Where a run goes and who is told; and what changes a loss by no more than rounding.
_NOT_LOSS_DETERMINING = (
    *("experiment_name", "runs", "parallel", "logger", "eval", "study", "returns", "concepts"),
    *("data.name", "data.root", "data.workers", "data.verify"),
    *("trainer.compile", "trainer.checkpoint_every", "trainer.keep_last"),
    "trainer.keep_best",
    *("trainer.validate_every", "trainer.validation_rows"),
    *("trainer.log_every", "trainer.stall_seconds"),
)
_OF_SPIKES = ("spike", "spike_factor", "spike_loss", "spike_window")


def run_folder(config: RunConfig) -> Path:
    """Return `runs/<experiment>/<backbone>-s<seed>-<hash>`.

    The hash covers what determines the losses: not parallelism, loggers, validation, evaluation or
    paths. So the same command finds its own folder again.
    """
    name = f"{config.backbone.name}-s{config.seed}-{loss_hash(config)}"
    return Path(config.runs) / config.experiment_name / name


def loss_hash(config: RunConfig) -> str:
    """Return eight hex digits over the loss-determining settings.

    The precision counts as this machine resolves it, so that a folder holds one precision only. A
    teacher counts by what it is, and not by where it lies.

    Raises:
        ValueError: a teacher is named, and isn't there.
    """
    plain = asdict(config)
    taught_by = teacher_hash(config.backbone.latent)
    if taught_by is not None:
        plain["backbone"]["latent"]["teacher"] = taught_by
    accelerator = resolve_accelerator(config.parallel.accelerator)
    plain["trainer"]["precision"] = resolve_precision(config.trainer.precision, accelerator)
    for path in _NOT_LOSS_DETERMINING:
        *parents, last = path.split(".")
        del reduce(getitem, parents, plain)[last]
    if config.trainer.spike == "none":  # then they change nothing, and older runs had none
        for name in _OF_SPIKES:
            del plain["trainer"][name]
    if config.trainer.spike == "rewind":  # it goes back to a step with a checkpoint
        plain["trainer"]["checkpoint_every"] = config.trainer.checkpoint_every
    else:
        del plain["trainer"]["rewind_steps"]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; the file is complete or absent."""
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def environment(precision: str, accelerator: str) -> dict[str, Any]:
    """Return what a reader needs to reproduce the run: code, versions, device."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": _device_name(accelerator),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device_name(accelerator: str) -> str:
    if accelerator == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} CPU"


def git_revision() -> str:
    """Return the revision of the code that runs, "-dirty" where it was changed since."""
    root = Path(__file__).parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
