"""RetNet's multi-scale retention: linear attention whose heads forget at fixed rates.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.chunks import working_dtype
from ..ops.decay import decayed_attention
from ..ops.normalization import rms_norm
from ..ops.turning import position_angles, turn_pairs
from ..slabs import in_slabs
from .recurrent import RecurrentState, positions_read, recurrent_call
from .sizes import check_chunk_size, expanded_dim


@dataclass
class RetNetConfig(MixerConfig):
    """Settings of retention.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        rope_base: base of the rotary positions of queries and keys; null is none.
        chunk_size: tokens handled by one matrix product.
    """

    kind: str = "retnet"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 2.0
    rope_base: float | None = 10000.0
    chunk_size: int = 64

    def build(self, site: Site) -> "RetNet":
        """Make the module; raises ValueError where head sizes don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        if self.rope_base is not None and key_dim % 2:
            raise ValueError(
                f"head_dim={key_dim} is odd: rotary positions turn pairs; choose an even head_dim "
                "or rope_base=null"
            )
        check_chunk_size(self.chunk_size)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        return RetNet(self, site.dim, heads, key_dim, value_dim)


class RetNet(Mixer):
    """`S = gamma_h S + k v^T`, `gamma_h = 1 - 2^(-5-h)` (arXiv 2307.08621, equations 6 and 8)."""

    def __init__(
        self, config: RetNetConfig, dim: int, heads: int, key_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.key_dim, self.value_dim = key_dim, value_dim
        self.sizes = [heads * size for size in (key_dim, key_dim, value_dim)]
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.gate = nn.Linear(dim, self.sizes[2], bias=False)
        self.output = nn.Linear(self.sizes[2], dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        for linear in (self.qkv, self.gate):
            init_linear(linear)
        init_output(self.output)

    @in_slabs
    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: RecurrentState | None = None,
    ) -> tuple[Tensor, RecurrentState | None]:
        """Mix over time; see `Mixer.forward`."""
        mix = partial(self._mix, positions_read(x_BTD, segments_BT, state))
        return recurrent_call(mix, x_BTD, segments_BT, state)

    def _mix(
        self,
        positions_BT: Tensor,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        memory_BHKV: Tensor | None,
        tail_BWD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        qk, v = self.qkv(x_BTD).split([2 * self.sizes[0], self.sizes[2]], dim=-1)
        qk, v = qk.unflatten(-1, (-1, self.key_dim)), v.unflatten(-1, (self.heads, -1))
        if self.config.rope_base is not None:
            angles = position_angles(positions_BT, self.key_dim // 2, self.config.rope_base)
            qk = turn_pairs(qk, angles)
        q, k = qk.chunk(2, dim=2)
        out, memory_BHKV = decayed_attention(
            q,
            k,
            v,
            self._log_decay(v).expand(v.shape[:3]),
            segments=segments_BT,
            state=memory_BHKV,
            chunk_size=self.config.chunk_size,
        )
        # Without a learned scale, as in the authors' code: the gate and the output have one.
        out = rms_norm(out, out.new_ones(self.value_dim), 1e-6)
        gate = self.gate(x_BTD).unflatten(-1, (self.heads, -1))
        return self.output((out * F.silu(gate)).flatten(2)), memory_BHKV, tail_BWD

    def _log_decay(self, v: Tensor) -> Tensor:
        """`log gamma_h`, shape `[H]`."""
        heads = torch.arange(self.heads, device=v.device, dtype=working_dtype(v.dtype))
        return torch.log1p(-(2.0 ** (-5 - heads)))

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        shape = (self.heads, self.key_dim, self.value_dim)
        return RecurrentState.empty(batch, shape, None, device, dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, and writing and reading the state."""
        memory = self.heads * self.key_dim * self.value_dim
        flops = linear_flops(self.dim, sum(self.sizes) + self.sizes[2])
        flops += linear_flops(self.sizes[2], self.dim) + 4 * memory
        return Cost(flops, parameter_bytes(self), 4 * memory)
