"""Kimi Delta Attention (arXiv 2510.26692): the gated delta rule with a decay for each key channel.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..gates import draw_time_bias
from ..low_rank import LowRank
from ..mixer import MixerConfig, Site
from ..ops.chunks import working_dtype
from ..ops.delta import delta_rule
from .carry import read_scan
from .delta_layer import DeltaLayer, DeltaSizes
from .sizes import check_chunk_size, expanded_dim


@dataclass
class KimiDeltaConfig(MixerConfig):
    """Settings of Kimi Delta Attention.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        gate_rank: rank of the projections to decays and to the output gate; null is head_dim.
        conv_width: width of the short convolution on queries, keys and values; 0 is none.
        lower_bound: the least log decay of a token, reached through a sigmoid, which half-precision
            kernels need (the published models of this form take -5); null is a softplus, unbounded.
        negative_eigenvalues: let beta reach 2, so that a step may reflect (arXiv 2411.12537); Kimi
            doesn't.
        norm_epsilon: added to the mean square by the norm of the outputs.
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "kda"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 1.0
    gate_rank: int | None = None
    conv_width: int = 4
    lower_bound: float | None = None
    negative_eigenvalues: bool = False
    norm_epsilon: float = 1e-6
    chunk_size: int = 64

    def build(self, site: Site) -> "KimiDeltaAttention":
        """Make the module; raises ValueError where sizes or the bound don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        check_chunk_size(self.chunk_size)
        rank = channel_gate_rank(self.gate_rank, self.lower_bound, key_dim)
        sizes = DeltaSizes(
            site.dim,
            heads,
            key_dim,
            value_dim,
            key_heads=heads,
            conv_width=self.conv_width,
            epsilon=self.norm_epsilon,
        )
        return KimiDeltaAttention(self, sizes, rank)


def channel_gate_rank(gate_rank: int | None, lower_bound: float | None, key_dim: int) -> int:
    """Return the rank of the gates.

    Raises:
        ValueError: on a rank below one, or a bound that isn't below zero.
    """
    if gate_rank is not None and gate_rank < 1:
        raise ValueError(f"gate_rank={gate_rank} must be at least 1, or null for head_dim")
    if lower_bound is not None and not lower_bound < 0:
        raise ValueError(f"lower_bound={lower_bound} must be below 0, or null for no bound")
    return key_dim if gate_rank is None else gate_rank


class ChannelDecay(nn.Module):
    """Log decay of each key channel: `g = -A_h softplus(W2 W1 x + bias)` (2510.26692, section 4).

    With a lower bound, `g = bound * sigmoid(A_h (W2 W1 x + bias))`. A begins as U(1, 16), or 1 with
    a bound; the bias as Mamba-2's time steps. Rates are stored as logarithms.
    """

    def __init__(self, sizes: DeltaSizes, rank: int, lower_bound: float | None) -> None:
        super().__init__()
        self.heads, self.lower_bound = sizes.heads, lower_bound
        channels = sizes.heads * sizes.key_dim
        self.projection = LowRank(sizes.dim, rank, channels)
        self.log_rate = nn.Parameter(torch.empty(sizes.heads))
        self.time_bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw projections, rates and time steps anew."""
        self.projection.reset_parameters()
        if self.lower_bound is None:
            self.log_rate.uniform_(1.0, 16.0).log_()
        else:
            self.log_rate.zero_()
        draw_time_bias(self.time_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return `g <= 0`, `[B, T, H, K]`, in float32 or better."""
        raw = self.projection(x_BTD)
        dtype = working_dtype(raw.dtype)
        raw = (raw.to(dtype) + self.time_bias.to(dtype)).unflatten(-1, (self.heads, -1))
        rate_H1 = self.log_rate.to(dtype).exp()[:, None]
        if self.lower_bound is None:
            return -rate_H1 * F.softplus(raw)
        return self.lower_bound * (rate_H1 * raw).sigmoid()


class KimiDeltaAttention(DeltaLayer):
    """`S = (I - beta k k^T) Diag(alpha) S + beta k v^T`, gated output (2510.26692, equation 1)."""

    def __init__(self, config: KimiDeltaConfig, sizes: DeltaSizes, rank: int) -> None:
        super().__init__(sizes)
        self.config = config
        self.beta = nn.Linear(sizes.dim, sizes.heads, bias=False)
        self.decay = ChannelDecay(sizes, rank, config.lower_bound)
        self.gate = LowRank(sizes.dim, rank, sizes.inner, bias=True)
        self._add_output()

    def _mix(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        memory_BHKV: Tensor | None,
        tail_BWD: Tensor | None,
        shared: MutableMapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, v, tail_BWD = self._project(x_BTD, segments_BT, tail_BWD)
        inputs = (
            k,
            v,
            self.decay(x_BTD),
            self.beta(x_BTD).sigmoid() * (1 + self.config.negative_eigenvalues),
        )
        fixed = {"segments": segments_BT, "chunk_size": self.config.chunk_size}

        def scan(queries: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            return delta_rule(queries, *inputs, state=memory, **fixed)

        out, memory_BHKV = read_scan(self.carried, scan, q, memory_BHKV, shared)
        return self._finish(out, self.gate(x_BTD).sigmoid()), memory_BHKV, tail_BWD

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, gates, convolution, three products with the state."""
        beta = linear_flops(self.sizes.dim, self.sizes.heads)
        return self._cost(beta + self.decay.projection.flops + self.gate.flops)
