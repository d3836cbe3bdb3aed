"""Gated linear attention (arXiv 2312.06635): each key channel forgets as fast as the input says.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width, R rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convolution import ShortConvolution
from ..cost import Cost, linear_flops
from ..gates import LowRankDecay
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.decay import decayed_attention
from ..slabs import in_slabs
from .recurrent import RecurrentState, recurrent_call
from .sizes import check_chunk_size, expanded_dim


@dataclass
class GatedLinearAttentionConfig(MixerConfig):
    """Settings of gated linear attention.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_k: key dim over head_dim.
        expand_v: value dim over head_dim.
        gate_rank: rank of the projection to log decays.
        gate_temperature: divides the log decays: the larger, the slower heads forget.
        conv_width: width of a short convolution on queries, keys and values; 0 is none.
        chunk_size: tokens handled by one matrix product.
    """

    kind: str = "gla"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    gate_temperature: float = 16.0
    conv_width: int = 0
    chunk_size: int = 64

    def build(self, site: Site) -> "GatedLinearAttention":
        """Make the module; raises ValueError where head sizes or the gate don't work out."""
        heads, head_dim = site.heads(self.num_heads, self.head_dim)
        check_chunk_size(self.chunk_size)
        if self.gate_rank < 1:
            raise ValueError(f"gate_rank={self.gate_rank} must be at least 1")
        if self.gate_temperature <= 0:
            raise ValueError(f"gate_temperature={self.gate_temperature} must be above 0")
        key_dim = expanded_dim("expand_k", self.expand_k, head_dim)
        value_dim = expanded_dim("expand_v", self.expand_v, head_dim)
        return GatedLinearAttention(self, site.dim, heads, key_dim, value_dim)


class GatedLinearAttention(Mixer):
    """`S = Diag(alpha) S + k v^T`, `alpha = sigmoid(W2 W1 x + b)^(1/16)` (2312.06635, section 4).

    Rank, temperature and widths as in the paper; the short convolution is an option of fla.
    """

    def __init__(
        self,
        config: GatedLinearAttentionConfig,
        dim: int,
        heads: int,
        key_dim: int,
        value_dim: int,
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.key_dim, self.value_dim = key_dim, value_dim
        self.sizes = [heads * size for size in (key_dim, key_dim, value_dim)]
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = ShortConvolution(sum(self.sizes), config.conv_width, silu=True)
        self.decay = LowRankDecay(dim, config.gate_rank, self.sizes[0], config.gate_temperature)
        self.gate = nn.Linear(dim, self.sizes[2], bias=False)
        self.norm = RMSNorm(value_dim)
        self.output = nn.Linear(self.sizes[2], dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        for linear in (self.qkv, self.gate):
            init_linear(linear)
        init_output(self.output)
        for module in (self.conv, self.decay, self.norm):
            module.reset_parameters()

    @in_slabs
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
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.split(self.sizes, dim=-1))
        out, memory_BHKV = decayed_attention(
            q,
            k,
            v,
            self.decay(x_BTD).unflatten(-1, (self.heads, -1)),
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
        """Cost of one token: projections, convolution, and writing and reading the state."""
        memory = self.heads * self.key_dim * self.value_dim
        flops = linear_flops(self.dim, sum(self.sizes) + self.sizes[2]) + self.decay.flops
        flops += linear_flops(self.sizes[2], self.dim) + 4 * memory + self.conv.flops
        return Cost(flops, parameter_bytes(self), 4 * (memory + self.conv.state_size))
