"""What becomes of a step that is no number, or whose gradient or loss is far too large."""

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
from .rewinds import Rewinds, Rewound, nearest, place_before
from .spike_history import SpikeConfig

MOST_IN_A_ROW = 10
"""Updates that may be left out one after the other: more of them are no spike."""


class TooManySpikes(ArithmeticError):
    """One update after the other was left out; the message says what to do."""


class SpikeGuard(L.Callback):
    """Leaves spikes out or goes back before them, where asked to; says where a NaN came from.

    Stands behind the recorder, which has measured the gradient then. All processes decide alike:
    on the norm over all of them, and on the loss of any.

    Args:
        run: the run's folder.
        config: when an update is left out.
        recorder: knows the gradient norm, and is told what was decided.
        every: steps between checkpoints.
        rewinds: where the run went back before.
        alert: tells people of a step that is no number, was left out, or gone back from; of the
            first two once in so many steps as the median is over.
    """

    def __init__(
        self,
        run: Path,
        config: SpikeConfig,
        every: int,
        recorder: Recorder,
        rewinds: Rewinds,
        alert: Alert,
    ) -> None:
        self.run, self.config, self.every = run, config, every
        self.recorder, self.rewinds, self.alert = recorder, rewinds, alert
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
            Rewound: the run is to go on from an earlier step.
            TooManyRewinds: it went back there often enough.
        """
        assert isinstance(pl_module, PretrainModule)
        norm, loss = self.recorder.gradient_norm, 0.0
        if self.config.kind != "none":
            loss = float(trainer.strategy.reduce(self._loss, reduce_op="mean"))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            self.recorder.cause = self._trace(trainer, pl_module, norm)
        if self.config.kind != "none":
            self._judge(trainer, pl_module, norm, loss)

    def _judge(self, trainer: L.Trainer, module: PretrainModule, norm: float, loss: float) -> None:
        step, history = trainer.global_step + 1, module.spikes
        history.enter(module.plan.place(step - 1).stage)
        why = history.why(norm, loss, self.config)
        if why and self.recorder.cause:
            why = f"{why}; {self.recorder.cause}"
        if self.config.kind == "rewind" and why:
            self._rewind(trainer, module, why)
        elif why:
            self._skip(step, why, module)
        else:
            history.take(norm, loss, self.config.window)
        if self.config.kind == "skip":
            self.recorder.note("skipped", int(bool(why)))

    def _skip(self, step: int, why: str, module: PretrainModule) -> None:
        """Leave a step's update out: no gradients, no update of any kind."""
        module.spikes.leave_out(step)
        if module.spikes.in_a_row > MOST_IN_A_ROW:
            raise TooManySpikes(
                f"step {step}: {why}, and the updates of the {MOST_IN_A_ROW} steps before were "
                "left out too: this is no spike; lower the learning rate, raise "
                "trainer.spike_factor, or set trainer.spike=none"
            )
        module.leave_out()
        if not self.recorder.cause:  # else it was told already
            text = f"{why}; its update was left out ({len(module.spikes.skipped)} so far)"
            self._tell(step, "spike", text)

    def _tell(self, step: int, title: str, text: str) -> None:
        """Send an alert, unless one of this kind went out in the newest window of steps."""
        last = self._told.get(title)
        if last is None or step - last >= self.config.window:
            self._told[title] = step
            self.alert(title, f"step {step}: {text}")

    def _rewind(self, trainer: L.Trainer, module: PretrainModule, why: str) -> None:
        """End this training; all processes begin again at the same place."""
        step = trainer.global_step + 1
        self.recorder.saver.wait()
        wanted = place_before(step - 1, self.config.back, self.every)
        to = trainer.strategy.broadcast(nearest(self.run, wanted))
        rewind = self.rewinds.back(step, to, module.plan, why)
        if trainer.is_global_zero:
            self.alert("rewound", str(Rewound(rewind)))
        raise Rewound(rewind)

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
