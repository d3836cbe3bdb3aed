"""What a training step leaves to chance, as a pure function of the run's seed and of where it is.

So a resumed run draws what an uninterrupted one draws, and a row the same on any process.

Legend: B batch.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def key_of(*parts: object) -> int:
    """Hash what a draw depends on to a seed: seeds side by side must not give draws alike."""
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Draws:
    """Where a training step is.

    Attributes:
        seed: the run's.
        stage: number of the stage.
        step: step of the stage.
        steps: steps of the stage.
        rows: rows of the global batch.
        places_B: which of them the rows at hand are; None is all, in order.
    """

    seed: int
    stage: int
    step: int
    steps: int = 1
    rows: int = 1
    places_B: Tensor | None = None

    @property
    def progress(self) -> float:
        """Share of the stage that is done."""
        return self.step / max(1, self.steps)

    def key(self, what: str) -> int:
        """A key of the step for one kind of draw."""
        return key_of(what, self.seed, self.stage, self.step)

    def row_key(self, what: str, row: int) -> int:
        """A key of one row of the global batch, for one kind of draw."""
        return key_of(what, self.seed, self.stage, self.step, row)

    def normal(self, what: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers for the rows at hand, `[B, *shape]`, each row's own anywhere."""
        rows = []
        for row in self.own():
            generator = torch.Generator().manual_seed(self.row_key(what, row))
            rows.append(torch.randn(shape, generator=generator))
        return torch.stack(rows)

    def own(self) -> list[int]:
        """Which rows of the global batch are at hand."""
        return list(range(self.rows)) if self.places_B is None else self.places_B.tolist()
