"""Data-dependent decay: per head (Mamba-2, the gated delta family) or per key channel (GLA).

Legend: B batch, T time, D width, H heads, X channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import init_linear
from .low_rank import LowRank
from .ops.chunks import working_dtype


class DecayRate(nn.Module):
    """Per-head decay rate `A` and time-step bias of a discretised state space.

    Initialised as Mamba-2 (arXiv 2405.21060): `A ~ U(decay_range)`, time steps by `draw_time_bias`.
    Rates are stored as logarithms in float32 and never below log 0.01, so that bfloat16 can't turn
    one into -inf.

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
        draw_time_bias(self.time_bias)

    def forward(self, raw_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time step `softplus(raw + bias)` and the log decay `-A * time step`."""
        time_step = softplus_step(raw_BTH, self.time_bias)
        return time_step, -self.log_rate.to(time_step.dtype).exp() * time_step


@torch.no_grad()
def draw_time_bias(bias: Tensor) -> None:
    """Draw time steps log-uniformly from [1e-3, 0.1], at least 1e-4; store softplus' inverse."""
    low, high = math.log(1e-3), math.log(0.1)
    time_step = bias.uniform_(low, high).exp().clamp(min=1e-4)
    bias.copy_(time_step + torch.log(-torch.expm1(-time_step)))


def softplus_step(raw: Tensor, bias: Tensor) -> Tensor:
    """Time step `softplus(raw + bias)`, in float32 or better."""
    dtype = working_dtype(raw.dtype)
    return F.softplus(raw.to(dtype) + bias.to(dtype))


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


class LowRankDecay(LowRank):
    """Log decay of each channel: `g = logsigmoid(W2 W1 x + b) / temperature` (arXiv 2312.06635).

    Args:
        dim: width of the input.
        rank: width between W1 and W2.
        channels: width of the output.
        temperature: the larger, the slower all channels forget.
    """

    def __init__(self, dim: int, rank: int, channels: int, temperature: float) -> None:
        super().__init__(dim, rank, channels, bias=True)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return `g_BTX <= 0` of `x_BTD`, in float32 or better."""
        raw = super().forward(x)
        return F.logsigmoid(raw.to(working_dtype(raw.dtype))) / self.temperature
