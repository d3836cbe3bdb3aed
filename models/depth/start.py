"""What the loops start from.

Legend: B batch, T time, D width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .draws import Draws


class Start(nn.Module, ABC):
    """One way to start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def reset_parameters(self) -> None:
        """Draw the weights anew; most have none."""

    @abstractmethod
    def forward(self, entry_BTD: Tensor, draws: Draws | None) -> Tensor:
        """Return the state before the first loop; `draws` is None at evaluation."""


class InputStart(Start):
    """The prelude's output itself."""

    def forward(self, entry_BTD: Tensor, draws: Draws | None) -> Tensor:
        """Return it."""
        return entry_BTD


class ZeroStart(Start):
    """Zeros."""

    def forward(self, entry_BTD: Tensor, draws: Draws | None) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(entry_BTD)


class NoiseStart(Start):
    """Normal noise cut at three standard deviations, drawn for each token in training.

    Whatever it starts from, a trained loop is to arrive at the same place (path independence,
    Huginn, arXiv 2502.05171). At evaluation every token starts from one draw, made once, so that an
    answer depends neither on the batch nor on whether a token is read or decoded.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("fixed_D", torch.randn(dim, generator=generator).clamp(-3, 3))

    fixed_D: Tensor

    def forward(self, entry_BTD: Tensor, draws: Draws | None) -> Tensor:
        """Draw it, or return the one draw."""
        if draws is None:
            return self.fixed_D.to(entry_BTD.dtype).expand_as(entry_BTD)
        return draws.normal("noise", entry_BTD.shape[1:]).clamp_(-3, 3).to(entry_BTD)


class LearnedStart(Start):
    """One learned vector."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.vector = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw it as an embedding."""
        self.vector.normal_(std=0.02)

    def forward(self, entry_BTD: Tensor, draws: Draws | None) -> Tensor:
        """Return it for every token."""
        return self.vector.to(entry_BTD.dtype).expand_as(entry_BTD)


STARTS: dict[str, type[Start]] = {
    "input": InputStart,
    "zeros": ZeroStart,
    "noise": NoiseStart,
    "learned": LearnedStart,
}


def check_learned_start(start: str, gradient_loops: int | None) -> None:
    """Raise ValueError on a learned start that no gradient reaches."""
    if start == "learned" and gradient_loops is not None:
        raise ValueError(
            f"depth.start=learned never learns behind a window of depth.gradient_loops="
            f"{gradient_loops}: set gradient_loops=null, or another start"
        )
