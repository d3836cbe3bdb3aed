"""What happens around each training step: records, checkpoints, stopping, progress."""

import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from data.batch import Batch
from data.module import CorpusModule

from .checkpoints import CheckpointSaver, go_on_from, latest_checkpoint
from .closing import Closing
from .interrupts import Interrupted, StopRequest
from .module import PretrainModule
from .records import MetricsWriter
from .sharding import whole


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient is not a finite number; the message says where and what is left."""


def _summed(trainer: L.Trainer, *values: float) -> list[float]:
    """Sum values over the ranks; all of them must come here."""
    if trainer.world_size == 1:
        return list(values)
    mine = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    total = trainer.strategy.reduce(mine, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total.tolist()


def _corpus_module(trainer: L.Trainer) -> CorpusModule:
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(data, CorpusModule)
    return data


class Recorder(Closing):
    """Writes metrics.csv, logs the same numbers, and stops the run at a non-finite loss.

    Every rank takes part in the sums; the first one writes.

    Args:
        run: the run's folder.
        validate_every: steps between validations; 0 is none.
        saver: writes checkpoints; what it is at when the run ends is part of what is left.

    Attributes:
        validation_loss: of the step that was recorded last; NaN where it wasn't scored.
        gradient_norm: of the step under way, before it is clipped.
        cause: where a number that is none came from, in words.
    """

    def __init__(self, run: Path, validate_every: int, saver: CheckpointSaver) -> None:
        self.run, self.validate_every, self.saver = run, validate_every, saver
        self.writer: MetricsWriter | None = None
        self.validation_loss = math.nan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file, cut back to the step that the run goes on from."""
        if trainer.is_global_zero:
            self.writer = MetricsWriter(self.run / "metrics.csv", steps_done=trainer.global_step)
            self._began = time.perf_counter() - self.writer.seconds
        self._reset()

    def _reset(self) -> None:
        self._loss, self._tokens, self.gradient_norm = 0.0, 0, math.nan
        self._measured: dict[str, float] = {}
        self._auxiliary: float | None = None
        self._notes: dict[str, float] = {}
        self.cause = ""

    def note(self, name: str, value: float) -> None:
        """Put a number that someone else measured beside the step under way."""
        self._notes[name] = value

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """Measure the gradient before it is clipped."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient_norm = float(whole(torch.nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Add the micro-batch up; at the end of a step, write it."""
        loss: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._loss += float(loss.detach())
        self._tokens += int((batch.segments_BT >= 0).sum())
        assert isinstance(pl_module, PretrainModule)
        for name, value in pl_module.net.measured.items():
            share = float(value) / trainer.accumulate_grad_batches
            self._measured[name] = self._measured.get(name, 0.0) + share
        auxiliary = pl_module.net.auxiliary
        if auxiliary is not None:
            self._auxiliary = (self._auxiliary or 0.0) + float(auxiliary)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._end_step(trainer, pl_module)
            self._reset()

    def _end_step(self, trainer: L.Trainer, module: PretrainModule) -> None:
        step, data = trainer.global_step, _corpus_module(trainer)
        loss, tokens = _summed(trainer, self._loss / trainer.world_size, self._tokens)
        if not self._notes.get("skipped"):
            self._check_finite(loss, data, step - 1)
        row: dict[str, Any] = {
            "step": step,
            "stage": module.plan.stages[module.plan.place(step - 1).stage].name,
            "loss": loss,
            "learning_rate": module.optim.lr * module.plan.learning_rate_share(step - 1),
            "gradient_norm": self.gradient_norm,
            "loops": module.loops_at(step - 1),
        }
        for name, mine in self._measured.items():
            (row[name],) = _summed(trainer, mine / trainer.world_size)
        if self._auxiliary is not None:
            (row["auxiliary_loss"],) = _summed(trainer, self._auxiliary)
        if self.validate_every and step % self.validate_every == 0:
            row |= self._validate(trainer, module, data)
        row |= self._notes
        self.validation_loss = row.get("validation_loss", math.nan)
        if self.writer is not None:
            self._write(self.writer, trainer.loggers, row, round(tokens))

    def _validate(
        self, trainer: L.Trainer, module: PretrainModule, data: CorpusModule
    ) -> dict[str, float]:
        """Score the held-out documents, each rank its share of them; none is no loss at all."""
        batches = data.validation_batches(trainer.global_step - 1)
        found = {
            name: _summed(
                trainer, sum(module.validation_loss(x, loops) for x in batches), len(batches)
            )
            for name, loops in _depths(module).items()
        }
        losses = {name: total for name, (total, count) in found.items() if count}
        return losses | self._health(trainer, module, batches)

    def _health(
        self, trainer: L.Trainer, module: PretrainModule, batches: list[Batch]
    ) -> dict[str, float]:
        """Measure the loops on every row, each rank its share."""
        if not module.net.backbone.depth.adjustable:
            return {}
        totals: dict[str, float] = {}
        rows = [int((batch.places_B >= 0).sum()) for batch in batches]
        for batch, own in zip(batches, rows, strict=True):
            for name, value in module.loop_health(batch).items():
                totals[name] = totals.get(name, 0.0) + value * own
        count = sum(rows)
        summed = {name: _summed(trainer, total, count) for name, total in totals.items()}
        return {name: total / every for name, (total, every) in summed.items() if every}

    def _write(
        self, writer: MetricsWriter, loggers: list[Logger], row: dict[str, Any], tokens: int
    ) -> None:
        writer.tokens += tokens
        row["tokens"] = writer.tokens
        for logger in loggers:
            numbers = {key: row[key] for key in row if key not in ("step", "stage")}
            logger.log_metrics(numbers, row["step"])
        writer.write(row | {"seconds": f"{time.perf_counter() - self._began:.6f}"})

    def _check_finite(self, loss: float, data: CorpusModule, step: int) -> None:
        if math.isfinite(loss) and math.isfinite(self.gradient_norm):
            return
        rows = data.steps_from(step).indices(step)
        self.saver.close()
        good = latest_checkpoint(self.run)
        cause = f" ({self.cause})" if self.cause else ""
        raise NonFiniteLoss(
            f"step {step + 1}: loss {loss}, gradient norm {self.gradient_norm}{cause}; the batch is"
            f" rows {', '.join(map(str, rows[:8]))}{' ...' if len(rows) > 8 else ''} of "
            f"{data.corpus.path}/train; last good checkpoint: {good or 'none yet'}"
        )

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _depths(module: PretrainModule) -> dict[str, int | None]:
    """Loop counts to validate at: the default, and half and twice as many where that can be."""
    depth = module.net.backbone.depth
    if not depth.adjustable:
        return {"validation_loss": None}
    loops = depth.default_loops
    return {
        "validation_loss": loops,
        "validation_loss_fewer_loops": max(1, loops // 2),
        "validation_loss_more_loops": 2 * loops,
    }


class Checkpointer(Closing):
    """Goes on from a checkpoint; saves every so many steps, at the end, and when asked to stop.

    Args:
        saver: writes checkpoints.
        every: steps between checkpoints.
        request: becomes true when a signal asks the run to stop.
        recorder: knows the step's validation loss.
        latest: the checkpoint to go on from; None begins anew.
    """

    def __init__(
        self,
        saver: CheckpointSaver,
        every: int,
        request: StopRequest,
        recorder: Recorder,
        latest: Path | None,
    ) -> None:
        self.saver, self.every, self.request = saver, every, request
        self.recorder, self.latest = recorder, latest
        self._saved = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to signals from here on: all processes have met."""
        self.request.listen()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the checkpoint back, once weights are in their shards and there is an optimiser."""
        assert isinstance(pl_module, PretrainModule)
        if self.latest is not None:
            go_on_from(self.latest, trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run goes on from, so that it is not saved again."""
        self._saved = trainer.global_step
        self.request.listen()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when due; stop when asked to, or when a save has failed."""
        step = trainer.global_step
        within_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        if within_step or step == self._saved:
            return
        asked = self.request.signum
        # A signal, or a full disk, may reach one rank only; all stop at the same step.
        ends = asked is not None or self.saver.failed
        stopping = trainer.strategy.reduce_boolean_decision(ends, all=False)
        if stopping or step % self.every == 0 or step == trainer.max_steps:
            assert isinstance(pl_module, PretrainModule)
            self.saver.save(trainer, pl_module, self.recorder.validation_loss)
            self._saved = step
        if stopping or step == trainer.max_steps:
            self.saver.wait()
        if stopping:
            raise Interrupted(
                asked or signal.SIGTERM,
                f"stopped at step {step}, saved; the same command goes on from there",
            )

    def close(self) -> None:
        """Let what is being saved get to the disk, and end the writing thread."""
        self.saver.close()


class ProgressBar(Closing):
    """One line on standard error: step, loss, tokens a second, time left; silent when piped."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._progress: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        if not sys.stderr.isatty() or trainer.global_rank:
            return
        columns = ("[bold]{task.description}", "loss {task.fields[loss]:.4f}")
        self._progress = Progress(
            TextColumn(columns[0]),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(columns[1]),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(
            self.label, total=trainer.max_steps, completed=trainer.global_step, loss=math.nan
        )
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        if self._progress is not None:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            self._progress.update(
                self._task, completed=trainer.global_step, loss=float(loss.detach())
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
