"""What tells a spike of the gradient norm from ordinary noise: settings, and the norms before."""

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

SPIKES = ("none", "skip")


@dataclass(frozen=True)
class SpikeConfig:
    """When an update is left out.

    Attributes:
        kind: none leaves nothing out; skip leaves out the update of a step that spikes.
        factor: a norm above this many times the median is a spike.
        window: norms that the median is taken over; there is no spike before so many steps.
    """

    kind: str = "none"
    factor: float = 10.0
    window: int = 100


@dataclass
class SpikeHistory:
    """What the decision depends on; the same in all processes, and kept in checkpoints.

    Attributes:
        norms: gradient norms of the newest steps that were no spikes.
        in_a_row: updates left out since the last one that was not.
        skipped: steps (from 1) whose update was left out.
    """

    norms: list[float] = field(default_factory=list)
    in_a_row: int = 0
    skipped: list[int] = field(default_factory=list)

    def limit(self, config: SpikeConfig) -> float:
        """Return the largest norm that is no spike."""
        if len(self.norms) < config.window:
            return math.inf
        return config.factor * statistics.median(self.norms[-config.window :])

    def take(self, step: int, norm: float, spikes: bool, window: int) -> None:
        """Add a step."""
        if spikes:
            self.in_a_row += 1
            self.skipped.append(step)
        else:
            self.in_a_row = 0
            self.norms = [*self.norms, norm][-window:]

    def to_plain(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; its numbers come back bit for bit."""
        return asdict(self)
