"""Lightning attention as in MiniMax-01: linear attention with ALiBi's slopes as fixed decays.

Legend: B batch, T time, D width, H heads, K head dim, W filter width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.chunks import working_dtype
from ..ops.decay import decayed_attention
from ..slabs import in_slabs
from .recurrent import RecurrentState, recurrent_call
from .sizes import check_chunk_size


@dataclass
class LightningConfig(MixerConfig):
    """Settings of Lightning attention.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        chunk_size: tokens handled by one matrix product.
    """

    kind: str = "lightning"
    num_heads: int | None = None
    head_dim: int | None = None
    chunk_size: int = 64

    def build(self, site: Site) -> "Lightning":
        """Make the module; raises ValueError where heads don't work out."""
        check_chunk_size(self.chunk_size)
        return Lightning(self, site, *site.heads(self.num_heads, self.head_dim))


class Lightning(Mixer):
    """`S = exp(-slope) S + k v^T` on `silu` of q, k and v (MiniMax-01, arXiv 2501.08313).

    Head h of layer l of L forgets at `slope = 2^(-8 (h+1) / H) (1 - l / (L-1+1e-5) + 1e-5)`, so
    later layers remember longer. These are the slopes of MiniMax's code.
    """

    def __init__(self, config: LightningConfig, site: Site, heads: int, head_dim: int) -> None:
        super().__init__()
        self.config, self.dim, self.heads, self.head_dim = config, site.dim, heads, head_dim
        self.depth_factor = 1 - site.layer / (site.num_layers - 1 + 1e-5) + 1e-5
        self.inner = heads * head_dim
        self.qkv = nn.Linear(site.dim, 3 * self.inner, bias=False)
        self.norm = RMSNorm(self.inner)
        self.gate = nn.Linear(site.dim, self.inner, bias=False)
        self.output = nn.Linear(self.inner, site.dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        for linear in (self.qkv, self.gate):
            init_linear(linear)
        self.norm.reset_parameters()
        init_output(self.output)

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
        qkv = F.silu(self.qkv(x_BTD))
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        out, memory_BHKV = decayed_attention(
            q,
            k,
            v,
            -self._slopes(v).expand(v.shape[:3]),
            scale=1.0,
            segments=segments_BT,
            state=memory_BHKV,
            chunk_size=self.config.chunk_size,
        )
        mixed = self.norm(out.flatten(2)) * self.gate(x_BTD).sigmoid()
        return self.output(mixed), memory_BHKV, tail_BWD

    def _slopes(self, v: Tensor) -> Tensor:
        """How fast each head of this layer forgets, shape `[H]`."""
        heads = torch.arange(1, self.heads + 1, device=v.device, dtype=working_dtype(v.dtype))
        return 2.0 ** (-8 * heads / self.heads) * self.depth_factor

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        shape = (self.heads, self.head_dim, self.head_dim)
        return RecurrentState.empty(batch, shape, None, device, dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, and writing and reading the state."""
        memory = self.inner * self.head_dim
        flops = linear_flops(self.dim, 4 * self.inner) + linear_flops(self.inner, self.dim)
        return Cost(flops + 4 * memory, parameter_bytes(self), 4 * memory)
