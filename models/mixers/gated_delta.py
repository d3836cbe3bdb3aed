"""Gated DeltaNet (arXiv 2412.06464): a linear-attention layer under the gated delta rule.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convolution import ShortConvolution
from ..cost import Cost, linear_flops
from ..gates import DecayGate
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.delta import delta_rule
from ..ops.normalization import unit_norm
from .recurrent import RecurrentState, recurrent_call


@dataclass
class GatedDeltaNetConfig(MixerConfig):
    """Settings of Gated DeltaNet.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        conv_width: width of the short convolution on queries, keys and values; 0 is none.
        negative_eigenvalues: let beta reach 2, so that a step may reflect (arXiv 2411.12537): what
            parity and permutations need.
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "gdn"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 2.0
    conv_width: int = 4
    negative_eigenvalues: bool = True
    chunk_size: int = 64

    def build(self, site: Site) -> "GatedDeltaNet":
        """Make the module; raises ValueError where head sizes don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        value_dim = self.expand_v * key_dim
        if value_dim < 1 or value_dim != int(value_dim):
            raise ValueError(
                f"expand_v={self.expand_v} times head_dim={key_dim} is not a whole number"
            )
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1 token")
        return GatedDeltaNet(self, site.dim, heads, key_dim, int(value_dim))


class GatedDeltaNet(Mixer):
    """`S = alpha (I - beta k k^T) S + beta k v^T`, gated output (arXiv 2412.06464, equation 10)."""

    def __init__(
        self, config: GatedDeltaNetConfig, dim: int, heads: int, key_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.key_dim, self.value_dim = key_dim, value_dim
        self.sizes = [heads * size for size in (key_dim, key_dim, value_dim)]
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), config.conv_width)
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.decay = DecayGate(dim, self.heads, decay_range=(0.01, 16.0))
        self.gate = nn.Linear(dim, self.sizes[2], bias=False)
        self.norm = RMSNorm(self.value_dim)
        self.output = nn.Linear(self.sizes[2], dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights; decays as in fla and OLMo-Hybrid; the output starts at zero."""
        for linear in (self.qkv, self.beta, self.gate):
            init_linear(linear)
        init_output(self.output)
        for module in (self.conv, self.decay, self.norm):
            module.reset_parameters()

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: RecurrentState | None = None,
    ) -> tuple[Tensor, RecurrentState | None]:
        """Mix over time; see `Mixer.forward`."""
        return recurrent_call(self._mix, x_BTD, segments_BT, state)

    def _mix(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        memory_BHKV: Tensor | None,
        tail_BWD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        qkv, tail_BWD = self.conv(self.qkv(x_BTD), segments_BT, tail_BWD)
        if self.config.conv_width:
            qkv = F.silu(qkv)
        qk, v = qkv.split([2 * self.sizes[0], self.sizes[2]], dim=-1)
        q, k = unit_norm(qk.unflatten(-1, (-1, self.key_dim))).chunk(2, dim=2)
        beta_BTH = self.beta(x_BTD).sigmoid() * (1 + self.config.negative_eigenvalues)
        out, memory_BHKV = delta_rule(
            q,
            k,
            v.unflatten(-1, (self.heads, -1)),
            self.decay(x_BTD),
            beta_BTH,
            segments=segments_BT,
            state=memory_BHKV,
            chunk_size=self.config.chunk_size,
        )
        gate = self.gate(x_BTD).unflatten(-1, (self.heads, -1))
        mixed = self.norm(out) * F.silu(gate)
        return self.output(mixed.flatten(2)), memory_BHKV, tail_BWD

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        shape = (self.heads, self.key_dim, self.value_dim)
        return RecurrentState.empty(batch, shape, self.conv, device, dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, convolution, and three products with the state."""
        memory = self.heads * self.key_dim * self.value_dim
        width = sum(self.sizes) + 2 * self.heads + self.sizes[2]
        flops = linear_flops(self.dim, width) + linear_flops(self.sizes[2], self.dim)
        flops += 6 * memory + self.conv.flops
        return Cost(flops, parameter_bytes(self), 4 * (memory + self.conv.state_size))
