"""What all blocks share: normalisation, and how weights begin."""

import math

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def init_linear(linear: nn.Linear) -> None:
    """Draw a weight uniformly with variance `1 / fan_in`, so outputs keep their inputs' scale."""
    bound = math.sqrt(3 / linear.in_features)
    linear.weight.uniform_(-bound, bound)


@torch.no_grad()
def init_output(linear: nn.Linear) -> None:
    """Start an output projection at zero: each block begins as the identity."""
    linear.weight.zero_()


def draw_outputs(module: nn.Module) -> None:
    """Draw a module's output projections (linear layers named `output`) as inner weights are."""
    for name, part in module.named_modules():
        if name.split(".")[-1] == "output" and isinstance(part, nn.Linear):
            init_linear(part)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights when each is read once, float32."""
    return 4 * sum(p.numel() for p in module.parameters())
