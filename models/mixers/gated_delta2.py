"""Gated DeltaNet-2 (arXiv 2605.22791): what a token erases and what it writes are gated apart.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..low_rank import LowRank
from ..mixer import MixerConfig, Site
from ..ops.delta import erase_write
from .carry import read_scan
from .delta_layer import DeltaLayer, DeltaSizes
from .kda import ChannelDecay, channel_gate_rank
from .sizes import check_chunk_size, expanded_dim


@dataclass
class GatedDeltaNet2Config(MixerConfig):
    """Settings of Gated DeltaNet-2.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        gate_rank: rank of the projections to decays and to the output gate; null is head_dim.
        conv_width: width of the short convolution on queries, keys and values; 0 is none.
        lower_bound: the least log decay of a token, reached through a sigmoid; null is a softplus,
            unbounded.
        negative_eigenvalues: let the erase gate reach 2, so that a step may reflect
            (arXiv 2411.12537).
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "gdn2"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 1.0
    gate_rank: int | None = None
    conv_width: int = 4
    lower_bound: float | None = None
    negative_eigenvalues: bool = False
    chunk_size: int = 64

    def build(self, site: Site) -> "GatedDeltaNet2":
        """Make the module; raises ValueError where sizes or the bound don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        check_chunk_size(self.chunk_size)
        rank = channel_gate_rank(self.gate_rank, self.lower_bound, key_dim)
        sizes = DeltaSizes(
            site.dim, heads, key_dim, value_dim, key_heads=heads, conv_width=self.conv_width
        )
        return GatedDeltaNet2(self, sizes, rank)


class GatedDeltaNet2(DeltaLayer):
    """`S = (I - k (b * k)^T) Diag(alpha) S + k (w * v)^T`, gated output (arXiv 2605.22791).

    The erase gate b has a number for each key channel, the write gate w one for each value channel;
    equal numbers throughout make it Kimi Delta Attention, from which decays and output gate are.
    """

    def __init__(self, config: GatedDeltaNet2Config, sizes: DeltaSizes, rank: int) -> None:
        super().__init__(sizes)
        self.config = config
        self.erase = nn.Linear(sizes.dim, sizes.heads * sizes.key_dim, bias=False)
        self.write = nn.Linear(sizes.dim, sizes.inner, bias=False)
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
        erase = self.erase(x_BTD).sigmoid() * (1 + self.config.negative_eigenvalues)
        write = self.write(x_BTD).sigmoid()
        inputs = (k, k * erase.view_as(k), v * write.view_as(v), self.decay(x_BTD))
        fixed = {"segments": segments_BT, "chunk_size": self.config.chunk_size}

        def scan(queries: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            return erase_write(queries, *inputs, state=memory, **fixed)

        out, memory_BHKV = read_scan(self.carried, scan, q, memory_BHKV, shared)
        return self._finish(out, self.gate(x_BTD).sigmoid()), memory_BHKV, tail_BWD

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, gates, convolution, three products with the state."""
        gates = linear_flops(self.sizes.dim, self.erase.out_features + self.write.out_features)
        return self._cost(gates + self.decay.projection.flops + self.gate.flops)
