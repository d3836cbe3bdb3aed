"""Save a run's checkpoints: written beside and renamed, old ones removed."""

import os
from collections.abc import Callable
from pathlib import Path

from data.atomic import TEMPORARY_SUFFIX
from eval.checkpoint import checkpoint_path, checkpoints


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, if any."""
    found = checkpoints(run)
    return found[-1] if found else None


def save_checkpoint(save: Callable[[Path], None], run: Path, step: int, keep_last: int) -> None:
    """Write a checkpoint beside its place, rename it there, then drop all but the newest.

    Raises:
        OSError: where it can't be written (a full disk); nothing half-written is left.
    """
    path = checkpoint_path(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for old in checkpoints(run)[:-keep_last]:
        old.unlink()


def remove_temporaries(run: Path) -> None:
    """Remove what a killed write left behind."""
    for path in run.rglob(f"*{TEMPORARY_SUFFIX}"):
        if path.is_file():
            path.unlink()
