"""Gated DeltaNet (arXiv 2412.06464): a linear-attention layer under the gated delta rule.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..gates import DecayGate
from ..mixer import MixerConfig, Site
from ..ops.delta import delta_rule
from .carry import read_scan
from .delta_layer import DeltaLayer, DeltaSizes
from .sizes import check_chunk_size, expanded_dim


@dataclass
class GatedDeltaNetConfig(MixerConfig):
    """Settings of Gated DeltaNet.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        num_key_heads: heads of queries and keys, each of which serves as many heads of values
            (Qwen3-Next); null is num_heads.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        conv_width: width of the short convolution on queries, keys and values; 0 is none.
        negative_eigenvalues: let beta reach 2, so that a step may reflect (arXiv 2411.12537): what
            parity and permutations need.
        norm_epsilon: added to the mean square by the norm of the outputs.
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "gdn"
    num_heads: int | None = None
    num_key_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 2.0
    conv_width: int = 4
    negative_eigenvalues: bool = True
    norm_epsilon: float = 1e-6
    chunk_size: int = 64

    def build(self, site: Site) -> "GatedDeltaNet":
        """Make the module; raises ValueError where head sizes don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        check_chunk_size(self.chunk_size)
        key_heads = heads if self.num_key_heads is None else self.num_key_heads
        if key_heads < 1 or heads % key_heads:
            raise ValueError(
                f"num_key_heads={key_heads} doesn't divide the {heads} heads: choose a divisor"
            )
        sizes = DeltaSizes(
            site.dim,
            heads,
            key_dim,
            value_dim,
            key_heads=key_heads,
            conv_width=self.conv_width,
            epsilon=self.norm_epsilon,
        )
        return GatedDeltaNet(self, sizes)


class GatedDeltaNet(DeltaLayer):
    """`S = alpha (I - beta k k^T) S + beta k v^T`, gated output (arXiv 2412.06464, equation 10).

    Decays begin as in fla and OLMo-Hybrid.
    """

    def __init__(self, config: GatedDeltaNetConfig, sizes: DeltaSizes) -> None:
        super().__init__(sizes)
        self.config = config
        self.beta = nn.Linear(sizes.dim, sizes.heads, bias=False)
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
        return self._finish(out, F.silu(self.gate(x_BTD))), memory_BHKV, tail_BWD

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, convolution, and three products with the state."""
        return self._cost(linear_flops(self.sizes.dim, 2 * self.sizes.heads + self.sizes.inner))
