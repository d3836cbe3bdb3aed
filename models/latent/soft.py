"""Soft tokens: an expected embedding in place of a sampled token's (CoT2, arXiv 2505.23648).

    x_{t+1} = sum_v softmax(logits(h_t) / temperature)_v E_v

With `objective.thoughts` above zero the distributions are trained on the words that the thoughts
stand for, as in CoT2's supervised stage.

Legend: B batch, T time, D width, N thoughts, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .costs import Sizes
from .fed import FedSlots
from .latent import LatentSite, Reading
from .slots import SlotConfig


@dataclass
class SoftConfig(SlotConfig):
    """Settings of soft tokens.

    Attributes:
        temperature: divides the logits; near 0 a soft token is the likeliest word.
    """

    kind: str = "soft"
    temperature: float = 1.0

    def build(self, site: LatentSite) -> "Soft":
        """Make the module; ValueError on impossible settings."""
        self.check_thoughts()
        if not self.temperature > 0:
            raise ValueError(f"latent.temperature={self.temperature} must be above 0")
        return Soft(site.dim, self.temperature)


class Soft(FedSlots):
    """Feeds expected embeddings back."""

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__(dim)
        self.temperature = temperature

    def next_input(self, hidden_ND: Tensor, given: Reading) -> Tensor:
        """Return the embedding that the next word is expected to have."""
        return given.expected(hidden_ND, self.temperature)

    def first_input(self, x_BTD: Tensor) -> Tensor:
        """Return zeros: every thought is made in turn."""
        return torch.zeros_like(x_BTD[..., :1, :])

    def thought_flops(self, sizes: Sizes) -> float:
        """A readout and an expected embedding."""
        return sizes.readout_flops + sizes.blend_flops
