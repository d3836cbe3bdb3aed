"""CODI: thoughts that are taught by the same model's written steps (arXiv 2502.21074).

Each training step reads every document twice: with its steps written out, as the teacher, and with
thoughts in their place, as the student. Where the answer begins, the student's hidden states are
drawn to the teacher's, in every layer:

    loss = CE_student + teacher CE_teacher + distill mean_l SmoothL1(h_l, stop(t_l)) / std(t_l)

Thoughts are fed back through a two-layer perceptron, as in `feedback`.
"""

from dataclasses import dataclass
from typing import ClassVar

from .feedback import FeedbackConfig


@dataclass
class DistilledConfig(FeedbackConfig):
    """Settings of distilled thoughts; the stage's `thinking.steps` says what the student must do
    without: null is all steps, as published.

    Attributes:
        teacher: weight of the teacher's cross-entropy.
        distill: weight of the distance between hidden states.
    """

    needs_written: ClassVar[bool] = True
    kind: str = "distilled"
    projection: str = "mlp"
    teacher: float = 1.0
    distill: float = 1.0

    def check_thoughts(self) -> None:
        """Raise ValueError where a number can't be."""
        super().check_thoughts()
        for name in ("teacher", "distill"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"latent.{name}={getattr(self, name)} must be a finite number of at least 0"
                )
