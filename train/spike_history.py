"""What tells a spike of gradient norm or loss from noise: settings, and the steps before."""

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

SPIKES = ("none", "skip", "rewind")


@dataclass(frozen=True)
class SpikeConfig:
    """When a step is a spike, and what becomes of it.

    Attributes:
        kind: none does nothing; skip leaves the step's update out; rewind goes back to a checkpoint
            and leaves out the batches since.
        factor: a gradient norm above this many times the median is a spike.
        loss: so is a loss this many nats above the median; None lets losses be.
        window: steps that the medians are over; there is no spike before so many.
        back: steps before the spike that rewind does again, at least.
    """

    kind: str = "none"
    factor: float = 10.0
    loss: float | None = 1.0
    window: int = 100
    back: int = 100


@dataclass
class SpikeHistory:
    """What the decision depends on; the same in all processes, and kept in checkpoints.

    Attributes:
        norms: gradient norms of the stage's newest steps that were no spikes.
        losses: their losses, nats.
        stage: index of the stage that they are of.
        in_a_row: updates left out since the last one that was not.
        skipped: steps (from 1) whose update was left out.
    """

    norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stage: int = 0
    in_a_row: int = 0
    skipped: list[int] = field(default_factory=list)

    def enter(self, stage: int) -> None:
        """Forget the steps of another stage: its losses were others."""
        if stage != self.stage:
            self.stage, self.norms, self.losses = stage, [], []

    def why(self, norm: float, loss: float, config: SpikeConfig) -> str:
        """Say why a step is a spike; empty where it is none."""
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return f"gradient norm {norm:g}, loss {loss:g}"
        if len(self.norms) < config.window:
            return ""
        most = config.factor * statistics.median(self.norms[-config.window :])
        if norm > most:
            return f"gradient norm {norm:g} (limit {most:g})"
        if config.loss is not None and len(self.losses) >= config.window:
            most = config.loss + statistics.median(self.losses[-config.window :])
            if loss > most:
                return f"loss {loss:g} (limit {most:g})"
        return ""

    def take(self, norm: float, loss: float, window: int) -> None:
        """Add a step that is no spike."""
        self.in_a_row = 0
        self.norms = [*self.norms, norm][-window:]
        self.losses = [*self.losses, loss][-window:]

    def leave_out(self, step: int) -> None:
        """Add a step (from 1) whose update is left out."""
        self.in_a_row += 1
        self.skipped.append(step)

    def to_plain(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; its numbers come back bit for bit."""
        return asdict(self)
