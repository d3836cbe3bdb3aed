"""SwiGLU: `W_down (silu(W_gate x) * W_up x)` (arXiv 2002.05202).

Legend: B batch, T time, D width, F hidden width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import init_linear, init_output, parameter_bytes
from .mlp import MLP, Inner, MLPConfig


@dataclass
class SwiGLUConfig(MLPConfig):
    """A gated network; its hidden width is backbone.mlp_hidden."""

    kind: str = "swiglu"

    def build(self, dim: int, hidden: int) -> "SwiGLU":
        """Make the module."""
        return SwiGLU(dim, hidden)


class SwiGLU(MLP):
    """Gated feed-forward network: `W_down (silu(W_gate x) * W_up x)` (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.hidden, self.inner_width = dim, hidden, 2 * hidden
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero, so a new block is the identity."""
        init_linear(self.gate_up)
        init_output(self.output)

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None = None, inner: Inner | None = None
    ) -> Tensor:
        """Apply to each position alone."""
        if inner is not None:
            gate, up = inner(self.gate_up(x_BTD)).chunk(2, dim=-1)
        elif torch.is_grad_enabled() and not self.gate_up._forward_hooks:
            # The gradients of two products need not be copied into one.
            gate, up = (F.linear(x_BTD, weight) for weight in self.gate_up.weight.chunk(2))
        else:
            gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.output(F.silu(gate) * up)

    def cost(self) -> Cost:
        """Cost of one token."""
        flops = linear_flops(self.dim, 2 * self.hidden) + linear_flops(self.hidden, self.dim)
        return Cost(flops=flops, weight_bytes=parameter_bytes(self))
