"""`python -m train.consolidate`: a checkpoint's weights, however they were sharded, as one file."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from data.atomic import write_atomically
from eval.checkpoint import (
    WEIGHTS_PREFIX,
    CheckpointError,
    checkpoint_path,
    checkpoints,
    read_checkpoint,
)
from eval.verb import read_settings, run_verb

HELP = """\
Write the weights of a run's checkpoint, which may lie in many shards, as one safetensors file.

  python -m train.consolidate run=runs/smoke/FOLDER            the newest checkpoint
  python -m train.consolidate run=runs/smoke/FOLDER step=250   the one of a step

The file is model.safetensors in the run's folder; its names are the backbone's own, and its
metadata holds the step and the backbone's settings. Nothing else is needed to build it:
  models.config.backbone_from_dict(json.loads(metadata["backbone"]))
"""

WEIGHTS_FILE = "model.safetensors"


@dataclass
class ConsolidateConfig:
    """Settings of the verb.

    Attributes:
        run: the run's folder.
        step: step of the checkpoint; null is the newest.
    """

    run: str = ""
    step: int | None = None

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if not Path(self.run or "nowhere").is_dir():
            raise ValueError(f"run={self.run} is no folder: give the one that `run: ...` named")
        if self.step is not None and self.step < 1:
            raise ValueError(f"step={self.step} must be at least 1, or null for the newest")


def consolidate(run: Path, step: int | None = None) -> Path:
    """Write the weights of a checkpoint as one file, and return its path.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        WriteError: the file can't be written.
    """
    found = checkpoints(run)
    chosen = found[-1:] if step is None else [x for x in found if x == checkpoint_path(run, step)]
    if not chosen:
        there = ", ".join(path.name for path in found) or "none"
        which = "" if step is None else f" of step {step}"
        raise CheckpointError(f"{run}: there is no checkpoint{which}; there are: {there}")
    content = read_checkpoint(chosen[0])
    weights = {name.removeprefix(WEIGHTS_PREFIX): x for name, x in content["state_dict"].items()}
    metadata = {
        "format": "pt",
        "step": str(content["global_step"]),
        "backbone": json.dumps(content["pauca"]["backbone"], sort_keys=True),
    }
    path = run / WEIGHTS_FILE
    write_atomically(path, save(weights, metadata))
    return path


def _settings(arguments: Sequence[str]) -> ConsolidateConfig:
    settings = read_settings(ConsolidateConfig, arguments)
    settings.validate()
    return settings


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    return run_verb(
        "train.consolidate",
        HELP,
        arguments,
        _settings,
        lambda settings, _: f"weights: {consolidate(Path(settings.run), settings.step)}",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
