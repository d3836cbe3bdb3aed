"""What the cost of a latent scheme is made of.

Legend: none; this file counts, it moves no tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..cost import Cost


@dataclass(frozen=True)
class Sizes:
    """What the cost of a thought goes by.

    Attributes:
        dim: model width.
        vocab_size: rows of the embedding.
    """

    dim: int
    vocab_size: int

    @property
    def readout_flops(self) -> int:
        """FLOPs of a position's logits."""
        return 2 * self.dim * self.vocab_size

    @property
    def blend_flops(self) -> int:
        """FLOPs of an expected embedding, its logits not counted."""
        return 2 * self.dim * self.vocab_size

    @property
    def blend_bytes(self) -> int:
        """Bytes of the weights that an expected embedding reads: norm, head and embedding."""
        return 4 * (self.dim + 2 * self.dim * self.vocab_size)


@dataclass(frozen=True)
class Fitting:
    """What it costs to infer a document's latent vectors, beside reading it.

    Attributes:
        cost: FLOPs, and block passes that must wait for one another.
        passes: positions run, each as often as it was.
        latent_steps: steps of the vectors' own positions.
    """

    cost: Cost = field(default_factory=Cost)
    passes: int = 0
    latent_steps: int = 0


@dataclass(frozen=True)
class CostAt:
    """Cost of one position that sees so many, or of reading so many at once: of the depth alone.

    Attributes:
        whole: through all calls.
        some: through these layers alone, each once.
    """

    whole: Callable[[int], Cost]
    some: Callable[[range, int], Cost]

    def __call__(self, positions: int) -> Cost:
        """Cost through all calls."""
        return self.whole(positions)
