"""A projection through a narrow waist, for gates that need few weights.

Legend: D input width, R rank, X output width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cost import linear_flops
from .layers import init_linear

Activation = Callable[[Tensor], Tensor]


class LowRank(nn.Module):
    """`W_up f(W_down x) + b`.

    Args:
        dim: input width.
        rank: width of the waist.
        channels: output width.
        bias: whether there is a b.
        activation: f; None is the identity.

    Raises:
        ValueError: on a rank below one.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        channels: int,
        bias: bool = False,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank of a gate is {rank}, but must be at least 1")
        self.activation = activation
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, channels, bias=bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw both matrices; the bias starts at zero."""
        for linear in (self.down, self.up):
            init_linear(linear)
        if self.up.bias is not None:
            self.up.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        waist = self.down(x)
        return self.up(waist if self.activation is None else self.activation(waist))

    @property
    def flops(self) -> int:
        """FLOPs of one token."""
        rank = self.down.out_features
        return linear_flops(self.down.in_features, rank) + linear_flops(rank, self.up.out_features)
