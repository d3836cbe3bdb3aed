"""Save a run's checkpoints: written beside and renamed, old ones removed."""

import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from data.atomic import TEMPORARY_SUFFIX, write_atomically
from eval.checkpoint import checkpoint_path, checkpoint_step, checkpoints, read_checkpoint


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, if any."""
    found = checkpoints(run)
    return found[-1] if found else None


def is_finished(run: Path, max_steps: int) -> bool:
    """Return whether a run folder holds the checkpoint of its last step."""
    latest = latest_checkpoint(run)
    return latest is not None and checkpoint_step(latest) >= max_steps


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it there.

    Lightning's own way leads through the system's temporary folder, often a small disk of its own.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the file; raises `WriteError` (a full disk) with nothing half-written left."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getbuffer())


def save_checkpoint(trainer: L.Trainer, run: Path, step: int, keep_last: int) -> None:
    """Save a run, then drop all checkpoints but the newest; every rank must come here.

    Raises:
        ValueError: where it can't be written (a full disk); what was there stays.
    """
    trainer.save_checkpoint(checkpoint_path(run, step))
    if trainer.is_global_zero:
        for old in checkpoints(run)[:-keep_last]:
            old.unlink()


def refuse_other_corpus(path: Path, corpus_hash: str) -> None:
    """Check, before a run goes on from a checkpoint, that it can be read and that it belongs here.

    Raises:
        ValueError: the file is damaged, or it was trained on another corpus.
    """
    theirs = read_checkpoint(path)["pauca"]["corpus"]
    if theirs != corpus_hash:
        raise ValueError(
            f"{path} was trained on corpus {theirs[:12]}, this run reads {corpus_hash[:12]}: "
            f"restore the corpus, or remove {path.parents[1]} to start anew"
        )


def remove_temporaries(run: Path) -> None:
    """Remove what a killed write left behind."""
    for path in run.rglob(f"*{TEMPORARY_SUFFIX}"):
        if path.is_file():
            path.unlink()
