"""ReLU squared: `W_down relu(W_up x)^2` (Primer, arXiv 2109.08668; Nemotron-H, RWKV-7).

Legend: B batch, T time, D width, F hidden width.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import init_linear, init_output, parameter_bytes
from .mlp import MLP, Inner, MLPConfig


@dataclass
class ReLU2Config(MLPConfig):
    """A network without gates; its hidden width is backbone.mlp_hidden."""

    kind: str = "relu2"

    def build(self, dim: int, hidden: int) -> "ReLU2":
        """Make the module."""
        return ReLU2(dim, hidden)


class ReLU2(MLP):
    """`W_down relu(W_up x)^2` (arXiv 2109.08668, section 4)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.hidden, self.inner_width = dim, hidden, hidden
        self.up = nn.Linear(dim, hidden, bias=False)
        self.output = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero, so a new block is the identity."""
        init_linear(self.up)
        init_output(self.output)

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None = None, inner: Inner | None = None
    ) -> Tensor:
        """Apply to each position alone."""
        hidden = self.up(x_BTD)
        return self.output(F.relu(hidden if inner is None else inner(hidden)).square())

    def cost(self) -> Cost:
        """Cost of one token."""
        flops = linear_flops(self.dim, self.hidden) + linear_flops(self.hidden, self.dim)
        return Cost(flops=flops, weight_bytes=parameter_bytes(self))
