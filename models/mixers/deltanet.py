"""DeltaNet (arXiv 2406.06484): a linear-attention layer that corrects what its memory says.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..mixer import MixerConfig, Site
from ..ops.chunks import working_dtype
from ..ops.delta import delta_rule
from .carry import read_scan
from .delta_layer import DeltaLayer, DeltaSizes
from .sizes import check_chunk_size, expanded_dim


@dataclass
class DeltaNetConfig(MixerConfig):
    """Settings of DeltaNet.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        conv_width: width of the short convolution on queries, keys and values; 0 is none.
        use_gate: multiply the outputs by `silu(W x)`, as Gated DeltaNet does; the paper doesn't.
        negative_eigenvalues: let beta reach 2, so that a step may reflect (arXiv 2411.12537).
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "deltanet"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 1.0
    conv_width: int = 4
    use_gate: bool = False
    negative_eigenvalues: bool = False
    chunk_size: int = 64

    def build(self, site: Site) -> "DeltaNet":
        """Make the module; raises ValueError where head sizes don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        check_chunk_size(self.chunk_size)
        sizes = DeltaSizes(
            site.dim, heads, key_dim, value_dim, key_heads=heads, conv_width=self.conv_width
        )
        return DeltaNet(self, sizes)


class DeltaNet(DeltaLayer):
    """`S = (I - beta k k^T) S + beta k v^T`: nothing decays (arXiv 2406.06484, section 2.2)."""

    def __init__(self, config: DeltaNetConfig, sizes: DeltaSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self.beta = nn.Linear(sizes.dim, sizes.heads, bias=False)
        self.gate = nn.Linear(sizes.dim, sizes.inner, bias=False) if config.use_gate else None
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
        beta_BTH = self.beta(x_BTD).sigmoid() * (1 + self.config.negative_eigenvalues)
        inputs = (k, v, v.new_zeros(beta_BTH.shape, dtype=working_dtype(v.dtype)), beta_BTH)
        fixed = {"segments": segments_BT, "chunk_size": self.config.chunk_size}

        def scan(queries: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            return delta_rule(queries, *inputs, state=memory, **fixed)

        out, memory_BHKV = read_scan(self.carried, scan, q, memory_BHKV, shared)
        gate = None if self.gate is None else F.silu(self.gate(x_BTD))
        return self._finish(out, gate), memory_BHKV, tail_BWD

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, convolution, and three products with the state."""
        gated = self.sizes.inner if self.gate is not None else 0
        return self._cost(linear_flops(self.sizes.dim, self.sizes.heads + gated))
