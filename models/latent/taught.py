"""Settings of schemes that learn from a frozen teacher's concepts."""

import math
from dataclasses import dataclass

from .latent import LatentConfig

LABELS = ("attribution", "activation")


@dataclass
class TaughtConfig(LatentConfig):
    """Settings of a scheme that is taught which concepts a frozen teacher has at each token.

    Attributes:
        teacher: folder of the teacher's concepts, as `python -m train.concepts` names it. Training
            needs one; a trained backbone does without.
        num_concepts: concepts C that are told apart: as many as the teacher's autoencoder has.
        weight: of the loss that teaches them; 0 trains without a teacher.
        labels: how the teacher's concepts are ranked: by attribution (activation times gradient of
            the teacher's loss) or by activation.
        num_labels: concepts that a token is labelled with, at most.
    """

    teacher: str | None = None
    num_concepts: int = 512
    weight: float = 0.1
    labels: str = "attribution"
    num_labels: int = 4

    def check_labels(self) -> None:
        """Raise ValueError where labels can't be so."""
        if not 1 <= self.num_labels <= self.num_concepts:
            raise ValueError(
                f"latent.num_labels={self.num_labels} must lie between 1 and latent.num_concepts="
                f"{self.num_concepts}"
            )
        if self.labels not in LABELS:
            raise ValueError(
                f"latent.labels={self.labels} is not known: choose {' or '.join(LABELS)}"
            )
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"latent.weight={self.weight} must be a finite number of at least 0")
