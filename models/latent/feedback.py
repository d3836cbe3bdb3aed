"""Coconut: the last hidden state becomes the next input embedding (arXiv 2412.06769, section 3).

    x_{t+1} = f(h_t)        h_t the normalised hidden state of the position before

`f` is the identity (Coconut), or a two-layer perceptron with a norm (CODI, arXiv 2502.21074). With
`jacobi` all thoughts are made side by side, in rounds (PCCoT, arXiv 2506.18582).

Legend: B batch, T time, D width, N thoughts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import RMSNorm
from .fed import FedSlots
from .latent import LatentSite, Reading
from .slots import SlotConfig

PROJECTIONS = ("none", "mlp")


@dataclass
class FeedbackConfig(SlotConfig):
    """Settings of fed-back hidden states.

    Attributes:
        jacobi: rounds in which all thoughts of a document are made anew side by side, from what
            the round before left; null is one thought after the other. As many rounds as thoughts
            are the same.
        projection: what is between a hidden state and the input: none, or mlp.
    """

    kind: str = "feedback"
    jacobi: int | None = None
    projection: str = "none"

    def build(self, site: LatentSite) -> "Feedback":
        """Make the module; ValueError on impossible settings."""
        self.check_thoughts()
        if self.jacobi is not None and self.jacobi < 1:
            raise ValueError(
                f"latent.jacobi={self.jacobi} must be at least 1 round, or null for one thought "
                "after the other"
            )
        if self.projection not in PROJECTIONS:
            raise ValueError(
                f"latent.projection={self.projection} is not known: choose none or mlp"
            )
        return Feedback(site.dim, self)


class Feedback(FedSlots):
    """Feeds hidden states back."""

    def __init__(self, dim: int, config: FeedbackConfig) -> None:
        super().__init__(dim, config.jacobi)
        self.start_D = nn.Parameter(torch.empty(dim)) if config.jacobi else None
        self.into: nn.Sequential | None = None
        if config.projection == "mlp":
            self.into = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
            self.norm = RMSNorm(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vector that thoughts begin as, and the perceptron, anew."""
        if self.start_D is not None:
            nn.init.normal_(self.start_D, std=0.02)
        if self.into is not None:
            for layer in self.into:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            self.norm.reset_parameters()

    def next_input(self, hidden_ND: Tensor, given: Reading) -> Tensor:
        """Return the hidden states, projected where that is asked for."""
        return hidden_ND if self.into is None else self.norm(self.into(hidden_ND))

    def first_input(self, x_BTD: Tensor) -> Tensor:
        """Return the learned start of Jacobi rounds; zeros where every thought is made in turn."""
        if self.start_D is None:
            return torch.zeros_like(x_BTD[..., :1, :])
        return self.start_D.to(x_BTD.dtype)
