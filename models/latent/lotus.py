"""LOTUS: thoughts that are thought side by side, in loops over the padded sequence (2606.31779).

    x_1 = b            x_{r+1} = b + h_r            h_r the hidden state of the thought itself

All thoughts of a document begin as the same learned vector b and are run `loops` times at once; so
they see each other, and earlier ones, as they were a loop ago. What a thought stands for is taught
word by word: with `objective.thoughts` above zero each one predicts, at its own place, the word
that it replaces (the loop-native way to teach thoughts; 1 as published).

The words before don't see thoughts, so looping them too would change nothing: only thoughts are
looped where a state is kept, and their last loop is what later words see.

Legend: B batch, T time, D width, N thoughts.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .fed import FedSlots
from .latent import LatentSite, Reading
from .slots import SlotConfig


@dataclass
class LotusConfig(SlotConfig):
    """Settings of looped thoughts.

    Attributes:
        loops: times that all thoughts are run.
    """

    words_at_own_place: ClassVar[bool] = True
    kind: str = "lotus"
    loops: int = 3

    def build(self, site: LatentSite) -> "Lotus":
        """Make the module; ValueError on impossible settings."""
        self.check_thoughts()
        if self.loops < 1:
            raise ValueError(f"latent.loops={self.loops} must be at least 1")
        return Lotus(site.dim, self.loops)


class Lotus(FedSlots):
    """Loops over thoughts."""

    shift = 0

    def __init__(self, dim: int, loops: int) -> None:
        super().__init__(dim, jacobi=loops - 1)
        self.repeats_passes = loops > 1
        self.start_D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vector as embeddings are drawn."""
        nn.init.normal_(self.start_D, std=0.02)

    def next_input(self, hidden_ND: Tensor, given: Reading) -> Tensor:
        """Return the vector and what the thought was a loop ago."""
        return self.start_D.to(hidden_ND.dtype) + hidden_ND

    def first_input(self, x_BTD: Tensor) -> Tensor:
        """Return the vector."""
        return self.start_D.to(x_BTD.dtype)
