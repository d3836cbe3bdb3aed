"""HGRN-2: a gated recurrence whose state is expanded by an outer product (arXiv 2404.07904).

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

import math
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
class HGRN2Config(MixerConfig):
    """Settings of HGRN-2.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        state_dim: rows of a head's state (the paper's expansion); null is head_dim.
        lower_bound: least forget gate; null is layer / num_layers.
        chunk_size: tokens handled by one matrix product.
    """

    kind: str = "hgrn2"
    num_heads: int | None = None
    head_dim: int | None = None
    state_dim: int | None = None
    lower_bound: float | None = None
    chunk_size: int = 64

    def build(self, site: Site) -> "HGRN2":
        """Make the module; raises ValueError on impossible heads or bounds."""
        heads, head_dim = site.heads(self.num_heads, self.head_dim)
        state_dim = head_dim if self.state_dim is None else self.state_dim
        if state_dim < 1:
            raise ValueError(f"state_dim={state_dim} must be at least 1")
        check_chunk_size(self.chunk_size)
        bound = site.layer / site.num_layers if self.lower_bound is None else self.lower_bound
        if not 0 <= bound < 1:
            raise ValueError(f"lower_bound={bound} must be at least 0 and below 1")
        return HGRN2(self, site.dim, (heads, state_dim, head_dim), bound)


class HGRN2(Mixer):
    """`S = Diag(f) S + (1 - f) v^T`, `o = S^T q` (arXiv 2404.07904, section 3).

    The forget gate f lies between a lower bound and one, so upper layers can't help but remember
    for long. The paper learns the bounds of all layers together, by a cumulative softmax over the
    layers; a mixer knows its own layer alone, so here the bound is a constant, layer / num_layers:
    what that schedule starts from, where its parameters are zero.
    """

    def __init__(
        self, config: HGRN2Config, dim: int, shape: tuple[int, int, int], bound: float
    ) -> None:
        super().__init__()
        self.config, self.dim, self.bound, self.shape = config, dim, bound, shape
        self.heads, rows, self.head_dim = shape
        self.sizes = [self.heads * rows, self.heads * rows, self.heads * self.head_dim]
        self.qfv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.norm = RMSNorm(self.sizes[2])
        self.output = nn.Linear(self.sizes[2], dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        init_linear(self.qfv)
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
        q, f, v = (
            part.unflatten(-1, (self.heads, -1))
            for part in self.qfv(x_BTD).split(self.sizes, dim=-1)
        )
        key, log_forget = bounded_forget(f, self.bound)
        out, memory_BHKV = decayed_attention(
            F.silu(q),
            key,
            v,
            log_forget,
            scale=1.0,
            segments=segments_BT,
            state=memory_BHKV,
            chunk_size=self.config.chunk_size,
        )
        return self.output(self.norm(out.flatten(2))), memory_BHKV, tail_BWD

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        return RecurrentState.empty(batch, self.shape, None, device, dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, and writing and reading the state."""
        memory = math.prod(self.shape)
        flops = linear_flops(self.dim, sum(self.sizes)) + linear_flops(self.sizes[2], self.dim)
        return Cost(flops + 4 * memory, parameter_bytes(self), 4 * memory)


def bounded_forget(raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return `1 - f` and `log f` of the forget gate `f = bound + (1 - bound) sigmoid(raw)`.

    In float32 or better, and by the logarithm's own function where nothing bounds it: a gate that
    closes must not become `log 0`.
    """
    raw = raw.to(working_dtype(raw.dtype))
    key = (1 - bound) * (-raw).sigmoid()
    if bound == 0:
        return key, F.logsigmoid(raw)
    return key, (bound + (1 - bound) * raw.sigmoid()).log()
