"""Pause tokens: a learned vector in every thought's place (arXiv 2310.02226).

The control for thoughts that carry something: the same places, the same passes, no content.

Legend: B batch, T time, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .latent import LatentSite, Reading
from .slots import FixedSlots, SlotConfig


@dataclass
class PauseConfig(SlotConfig):
    """Settings of pause tokens."""

    kind: str = "pause"

    def build(self, site: LatentSite) -> "Pause":
        """Make the module; ValueError on impossible settings."""
        self.check_thoughts()
        return Pause(site.dim)


class Pause(FixedSlots):
    """One vector, drawn like an embedding, in all places."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pause_D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vector as embeddings are drawn."""
        nn.init.normal_(self.pause_D, std=0.02)

    def slot_inputs(self, given: Reading, x_BTD: Tensor) -> Tensor:
        """Return the vector."""
        return self.pause_D.to(x_BTD.dtype)
