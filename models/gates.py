"""Data-dependent decay, shared by Mamba-2 and the gated delta family.

Legend: B batch, T time, D width, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import init_linear


class DecayRate(nn.Module):
    """Per-head decay rate `A` and time-step bias of a discretised state space.

    Initialised as Mamba-2 (arXiv 2405.21060): `A ~ U(decay_range)`, and a time step drawn
    log-uniformly from [1e-3, 0.1], at least 1e-4, stored through the inverse of softplus. Stored as
    logarithms in float32 and never below log 0.01, so that bfloat16 can't turn a rate into -inf.

    Args:
        heads: number of heads.
        decay_range: bounds of A.
    """

    def __init__(self, heads: int, decay_range: tuple[float, float]) -> None:
        super().__init__()
        self.decay_range = decay_range
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.time_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw rates and time steps anew."""
        self.log_rate.uniform_(*self.decay_range).clamp_(min=0.01).log_()
        low, high = math.log(1e-3), math.log(0.1)
        time_step = self.time_bias.uniform_(low, high).exp().clamp(min=1e-4)
        self.time_bias.copy_(time_step + torch.log(-torch.expm1(-time_step)))

    def forward(self, raw_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time step `softplus(raw + bias)` and the log decay `-A * time step`."""
        dtype = torch.float32 if raw_BTH.dtype != torch.float64 else torch.float64
        time_step = F.softplus(raw_BTH.to(dtype) + self.time_bias.to(dtype))
        return time_step, -self.log_rate.to(dtype).exp() * time_step


class DecayGate(nn.Module):
    """Log decay read from the input: `g = -A softplus(W x + bias)`, per head."""

    def __init__(self, dim: int, heads: int, decay_range: tuple[float, float]) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, heads, bias=False)
        self.rate = DecayRate(heads, decay_range)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projection, rates and time steps anew."""
        init_linear(self.projection)
        self.rate.reset_parameters()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return `g_BTH <= 0`."""
        return self.rate(self.projection(x_BTD))[1]
