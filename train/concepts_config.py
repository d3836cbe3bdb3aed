"""Settings of a teacher's concepts."""

import math
from dataclasses import dataclass


@dataclass
class ConceptsConfig:
    """How the autoencoder of a teacher is trained (`python -m train.concepts`).

    Attributes:
        layer: layers of the teacher below what is encoded; null is half of them.
        num_concepts: concepts that are told apart.
        active: concepts that stand for one hidden state, at most.
        steps: optimiser steps.
        rows: rows of the corpus that a step reads.
        lr: peak learning rate of Adam; it falls to zero over the last fifth.
        dead_after: steps without being active once after which a concept is dead.
        auxiliary: weight of the error that dead concepts make together, which revives them.
        validation_rows: rows of the validation split that it is measured on.
    """

    layer: int | None = None
    num_concepts: int = 512
    active: int = 16
    steps: int = 500
    rows: int = 16
    lr: float = 2e-3
    dead_after: int = 50
    auxiliary: float = 0.03125
    validation_rows: int = 64

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        names = ("num_concepts", "active", "steps", "rows", "dead_after", "validation_rows")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"concepts.{name}={getattr(self, name)} must be at least 1")
        if self.active > self.num_concepts:
            raise ValueError(
                f"concepts.active={self.active} must be at most concepts.num_concepts="
                f"{self.num_concepts}"
            )
        if not 0 < self.lr < math.inf:
            raise ValueError(f"concepts.lr={self.lr} must be a number above 0")
        if not 0 <= self.auxiliary < math.inf:
            raise ValueError(f"concepts.auxiliary={self.auxiliary} must be at least 0")

    def resolve_layer(self, num_layers: int) -> int:
        """Return the layers below; ValueError where the teacher has fewer."""
        layer = max(1, num_layers // 2) if self.layer is None else self.layer
        if not 1 <= layer <= num_layers:
            raise ValueError(
                f"concepts.layer={layer} must lie between 1 and the teacher's backbone.num_layers="
                f"{num_layers}"
            )
        return layer
