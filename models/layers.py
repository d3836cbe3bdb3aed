"""Layers that all blocks share: normalisation and the feed-forward network.

Legend: B batch, T time, D width, F hidden width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cost import Cost, linear_flops
from .ops.normalization import rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (arXiv 1910.07467, equation 4)."""

    def __init__(self, dim: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.epsilon = dim, epsilon
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis, of size `dim`."""
        return rms_norm(x, self.weight, self.epsilon)


class SwiGLU(nn.Module):
    """Gated feed-forward network: `W_down (silu(W_gate x) * W_up x)` (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero, so a new block is the identity."""
        init_linear(self.gate_up)
        init_output(self.output)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply to each position alone."""
        if torch.is_grad_enabled():  # gradients of two products need not be copied into one
            gate, up = (F.linear(x_BTD, weight) for weight in self.gate_up.weight.chunk(2))
        else:
            gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.output(F.silu(gate) * up)

    def cost(self) -> Cost:
        """Cost of one token."""
        weights = self.gate_up.weight.numel() + self.output.weight.numel()
        flops = linear_flops(self.dim, 2 * self.hidden) + linear_flops(self.hidden, self.dim)
        return Cost(flops=flops, weight_bytes=4 * weights)


@torch.no_grad()
def init_linear(linear: nn.Linear) -> None:
    """Draw a weight uniformly with variance `1 / fan_in`, so outputs keep their inputs' scale."""
    bound = math.sqrt(3 / linear.in_features)
    linear.weight.uniform_(-bound, bound)


@torch.no_grad()
def init_output(linear: nn.Linear) -> None:
    """Start an output projection at zero: each block begins as the identity."""
    linear.weight.zero_()


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights when each is read once, float32."""
    return 4 * sum(p.numel() for p in module.parameters())
