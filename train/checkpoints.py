"""Save checkpoints beside the training, keep the newest and the best, and go on from one."""

import math
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lightning as L
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from data.atomic import TEMPORARY_SUFFIX
from eval.checkpoint import (
    CheckpointError,
    checkpoint_path,
    checkpoint_step,
    checkpoints,
    damaged,
    remove_checkpoint,
)
from eval.stored import Stored, StoredError

from .module import PretrainModule
from .rewinds import place_before
from .snapshot import Snapshot, restore
from .storage import TensorWriter


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, if any."""
    found = checkpoints(run)
    return found[-1] if found else None


def is_finished(run: Path, max_steps: int) -> bool:
    """Return whether a run folder holds the checkpoint of its last step."""
    latest = latest_checkpoint(run)
    return latest is not None and checkpoint_step(latest) >= max_steps


class CheckpointSaver:
    """Writes checkpoints in a thread of its own, one at a time.

    A save copies what there is into the CPU's memory and returns. The next one, and the end of the
    run, wait for it. Every process comes to the same calls.

    Args:
        run: the run's folder.
        keep_last: newest checkpoints to keep.
        keep_best: further ones to keep, of the smallest validation losses.
        back: steps that the run may have to go back, at least; None is never.
        every: steps between checkpoints.
    """

    def __init__(
        self,
        run: Path,
        keep_last: int,
        keep_best: int = 0,
        back: int | None = None,
        every: int = 1,
    ) -> None:
        self.run, self.keep_last, self.keep_best = run, keep_last, keep_best
        self.back, self.every = back, every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None

    def save(self, trainer: L.Trainer, module: PretrainModule, validation_loss: float) -> None:
        """Begin to save; raises what went wrong with the save before."""
        self.wait()
        if dist.is_initialized() and self._group is None:
            # The thread's own: what it sends must not get between the training's.
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        snapshot = Snapshot.of(trainer, module)
        if math.isfinite(validation_loss):
            snapshot.facts["validation_loss"] = validation_loss
        self._pending = self._pool.submit(self._write, snapshot, trainer.is_global_zero)

    @property
    def failed(self) -> bool:
        """Whether the save that was begun last has come to grief; `wait` says why."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            WriteError: it could not be written (a full disk); what was there before stays.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let the save that is under way finish, whatever becomes of it."""
        self._pool.shutdown()

    def _write(self, snapshot: Snapshot, first: bool) -> None:
        writer = TensorWriter(checkpoint_path(self.run, snapshot.step), snapshot.facts)
        alone = self._group is None
        try:
            save(snapshot.tensors, storage_writer=writer, process_group=self._group, no_dist=alone)
        except CheckpointException as failure:
            if first:
                shutil.rmtree(writer.beside, ignore_errors=True)
            raise next(iter(failure.failures.values()))[0] from None
        if first:
            needed = math.inf
            if self.back is not None:
                needed = place_before(snapshot.step, self.back, self.every)
            drop_old(self.run, self.keep_last, self.keep_best, needed)


def drop_old(run: Path, keep_last: int, keep_best: int, needed: float = math.inf) -> None:
    """Remove all checkpoints but the newest, the best, and those that are needed.

    Args:
        run: the run's folder.
        keep_last: newest checkpoints to keep.
        keep_best: further ones to keep, of the smallest validation losses.
        needed: keep all from this step on.
    """
    found = checkpoints(run)
    scored = [(loss, path) for path in found if (loss := _validation_loss(path)) is not None]
    best = {path for _, path in sorted(scored)[:keep_best]}
    for path in found[:-keep_last]:
        if path not in best and checkpoint_step(path) < needed:
            remove_checkpoint(path)


def _validation_loss(path: Path) -> float | None:
    try:
        return Stored.open(path).facts.get("validation_loss")
    except StoredError:
        return None


def refuse_other_corpus(path: Path, corpus_hash: str) -> None:
    """Check, before a run goes on from a checkpoint, that it is whole and that it belongs here.

    Raises:
        CheckpointError: it is damaged, of an older version, or was trained on another corpus.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path} was written by an older version, from which a run can't go on: evaluate it as "
            f"it is, or remove {path.parents[1]} to train anew"
        )
    try:
        stored = Stored.open(path)
        stored.verify()
    except StoredError as error:
        raise damaged(path, str(error)) from error
    theirs = stored.facts["pauca"]["corpus"]
    if theirs != corpus_hash:
        raise CheckpointError(
            f"{path} was trained on corpus {theirs[:12]}, this run reads {corpus_hash[:12]}: "
            f"restore the corpus, or remove {path.parents[1]} to start anew"
        )


def go_on_from(path: Path, trainer: L.Trainer, module: PretrainModule) -> None:
    """Put a checkpoint, which was found whole, into a run that is about to begin.

    Raises:
        CheckpointError: it doesn't fit this run.
    """
    try:
        restore(Stored.open(path), trainer, module)
    except StoredError as error:
        raise damaged(path, str(error)) from error


def remove_temporaries(run: Path) -> None:
    """Remove what a killed write left behind."""
    for path in list(run.rglob(f"*{TEMPORARY_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
