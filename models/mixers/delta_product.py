"""Gated DeltaProduct (arXiv 2502.10297): several delta-rule steps for each token.

Legend: B batch, T time, D width, P Householder steps, H heads, K key dim, V value dim, W filter
width.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..gates import DecayGate
from ..mixer import MixerConfig, Site
from ..ops.delta_product import delta_product
from .carry import read_scan
from .delta_layer import DeltaLayer, DeltaSizes
from .sizes import check_chunk_size, expanded_dim


@dataclass
class GatedDeltaProductConfig(MixerConfig):
    """Settings of Gated DeltaProduct.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        num_householder: steps of each token, every one with its own key, value and beta; 1 is
            Gated DeltaNet.
        conv_width: width of the short convolution on queries, keys and values; 0 is none.
        negative_eigenvalues: let beta reach 2, so that a step may reflect (arXiv 2411.12537).
        chunk_size: steps handled by one triangular solve.
    """

    kind: str = "delta_product"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 2.0
    num_householder: int = 2
    conv_width: int = 4
    negative_eigenvalues: bool = True
    chunk_size: int = 64

    def build(self, site: Site) -> "GatedDeltaProduct":
        """Make the module; raises ValueError where sizes don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        check_chunk_size(self.chunk_size)
        if self.num_householder < 1:
            raise ValueError(f"num_householder={self.num_householder} must be at least 1 step")
        sizes = DeltaSizes(
            site.dim,
            heads,
            key_dim,
            value_dim,
            key_heads=heads,
            writes=self.num_householder,
            conv_width=self.conv_width,
        )
        return GatedDeltaProduct(self, sizes)


class GatedDeltaProduct(DeltaLayer):
    """`S = prod_i (I - beta_i k_i k_i^T) alpha S + ...`, gated output (2502.10297, section 3)."""

    def __init__(self, config: GatedDeltaProductConfig, sizes: DeltaSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self.beta = nn.Linear(sizes.dim, sizes.writes * sizes.heads, bias=False)
        self.decay = DecayGate(sizes.dim, sizes.heads, decay_range=(0.01, 16.0))
        self.gate = nn.Linear(sizes.dim, sizes.inner, bias=False)
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
        steps = (self.sizes.writes, self.sizes.heads)
        beta_BTX = self.beta(x_BTD).sigmoid() * (1 + self.config.negative_eigenvalues)
        inputs = (
            k.unflatten(2, steps),
            v.unflatten(2, steps),
            self.decay(x_BTD),
            beta_BTX.unflatten(-1, steps),
        )
        fixed = {"segments": segments_BT, "chunk_size": self.config.chunk_size}

        def scan(queries: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            return delta_product(queries, *inputs, state=memory, **fixed)

        out, memory_BHKV = read_scan(self.carried, scan, q, memory_BHKV, shared)
        return self._finish(out, F.silu(self.gate(x_BTD))), memory_BHKV, tail_BWD

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, convolution, two products for each step, one to read."""
        sizes = self.sizes
        return self._cost(linear_flops(sizes.dim, (sizes.writes + 1) * sizes.heads + sizes.inner))
