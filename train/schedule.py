"""Learning-rate schedules as pure functions of the step."""

from dataclasses import dataclass


@dataclass
class ScheduleConfig:
    """Warm-up, stable, decay (arXiv 2404.06395), in fractions of a stage's steps.

    Attributes:
        warmup: share of steps that rise linearly from zero.
        decay: share of steps, at the end, that fall linearly.
        final: share of the peak that is left at the end.
    """

    warmup: float = 0.05
    decay: float = 0.4
    final: float = 0.0

    def validate(self, key: str) -> None:
        """Raise ValueError, naming the key, where shares can't be."""
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise ValueError(
                f"{key}.warmup={self.warmup} and {key}.decay={self.decay} must be shares of the "
                "stage that add up to at most 1"
            )
        if not 0 <= self.final <= 1:
            raise ValueError(f"{key}.final={self.final} must lie in [0, 1]")


def warmup_stable_decay(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step` (from 0) of a stage of `steps`."""
    rise = (step + 1) / max(config.warmup * steps, 1)
    fall = (steps - step) / max(config.decay * steps, 1)
    return min(1.0, rise, config.final + (1 - config.final) * min(1.0, fall))
