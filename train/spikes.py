"""What becomes of a step whose gradient is no number, or far larger than those before it."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from data.batch import Batch

from .callbacks import Recorder
from .folder import write_json
from .logging import Alert
from .module import PretrainModule
from .provenance import find_non_finite
from .spike_history import SpikeConfig

MOST_IN_A_ROW = 10
"""Updates that may be left out one after the other: more of them are no spike."""


class TooManySpikes(ArithmeticError):
    """One update after the other was left out; the message says what to do."""


class SpikeGuard(L.Callback):
    """Leaves out updates that spike, where asked to; says where a non-finite one came from.

    Stands behind the recorder, which has measured the gradient then. All processes decide alike:
    on the norm over all of them, and on the loss of any.

    Args:
        run: the run's folder.
        config: when an update is left out.
        recorder: knows the gradient norm, and is told what was decided.
        alert: tells people of a step that is no number, or was left out; of each kind once in so
            many steps as the median is over.
    """

    def __init__(self, run: Path, config: SpikeConfig, recorder: Recorder, alert: Alert) -> None:
        self.run, self.config, self.recorder, self.alert = run, config, recorder, alert
        self._batches: list[Batch] = []
        self._loss = torch.zeros(())
        self._told: dict[str, int] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the step's micro-batches, in case that it has to be run again."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._loss = [], torch.zeros((), device=pl_module.device)
        self._batches.append(batch)

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Add the loss up."""
        self._loss = self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """Decide.

        Raises:
            TooManySpikes: so many updates were left out that something else is wrong.
        """
        assert isinstance(pl_module, PretrainModule)
        norm = self.recorder.gradient_norm
        finite = math.isfinite(norm)
        if self.config.kind != "none":
            own = not bool(self._loss.isfinite())
            finite = not trainer.strategy.reduce_boolean_decision(own, all=False) and finite
        if not finite:
            self.recorder.cause = self._trace(trainer, pl_module, norm)
        if self.config.kind != "none":
            self._skip(trainer.global_step + 1, norm, finite, pl_module)

    def _skip(self, step: int, norm: float, finite: bool, module: PretrainModule) -> None:
        """Leave a step's update out where it spikes: no gradients, no update of any kind."""
        history = module.spikes
        limit = history.limit(self.config)
        spikes = not finite or norm > limit
        history.take(step, norm, spikes, self.config.window)
        if self.config.kind != "none":
            self.recorder.note("skipped", int(spikes))
        if not spikes:
            return
        if history.in_a_row > MOST_IN_A_ROW:
            cause = f"; {self.recorder.cause}" if self.recorder.cause else ""
            raise TooManySpikes(
                f"step {step}: gradient norm {norm:g} (limit {limit:g}), and the updates of the "
                f"{MOST_IN_A_ROW} steps before were left out too{cause}: this is no spike; lower "
                "the learning rate, raise trainer.spike_factor, or set trainer.spike=none"
            )
        module.leave_out()
        if finite:  # else it was told already
            text = f"gradient norm {norm:g} (limit {limit:g}); its update was left out"
            self._tell(step, "spike", f"{text} ({len(history.skipped)} so far)")

    def _tell(self, step: int, title: str, text: str) -> None:
        """Send an alert, unless one of this kind went out in the newest window of steps."""
        last = self._told.get(title)
        if last is None or step - last >= self.config.window:
            self._told[title] = step
            self.alert(title, f"step {step}: {text}")

    def _trace(self, trainer: L.Trainer, module: PretrainModule, norm: float) -> str:
        """Find the first place that was not finite; write it down, and return it in words."""
        findings = find_non_finite(trainer, module, self._batches)
        step = trainer.global_step + 1
        cause = f"first: {findings[0]}" if findings else "finite when the step was run again"
        if trainer.is_global_zero:
            facts: dict[str, Any] = {"step": step, "gradient_norm": str(norm)}
            facts["found"] = [finding.as_dict() for finding in findings]
            write_json(self.run / f"nonfinite-{step:07d}.json", facts)
            self._tell(step, "not finite", f"gradient norm {norm}; {cause}")
        return cause
