"""Filler tokens: a dot in every thought's place (arXiv 2404.15758).

A control like pause tokens, with a word of the vocabulary instead of a vector of its own.

Legend: B batch, T time, D width.
"""

from dataclasses import dataclass

from torch import Tensor

from .latent import LatentSite, Reading
from .slots import FixedSlots, SlotConfig


@dataclass
class FillerConfig(SlotConfig):
    """Settings of filler tokens."""

    kind: str = "filler"

    def build(self, site: LatentSite) -> "Filler":
        """Make the module; ValueError on impossible settings."""
        self.check_thoughts()
        return Filler()


class Filler(FixedSlots):
    """The token in a thought's place, which a corpus makes a dot, is read as it is."""

    def slot_inputs(self, given: Reading, x_BTD: Tensor) -> Tensor:
        """Return the embedded tokens."""
        return x_BTD
