"""Mixture of memories (arXiv 2502.13685): several recurrent states, and a router between them.

Each token goes to the top k of several memories, each with keys and values of its own, and to one
shared memory; what it doesn't choose stays as it is. The memories follow the gated delta rule, one
of the rules that the paper tries. The load is evened out by the router's bias rather than by the
paper's auxiliary loss, and the short convolution over each memory's own tokens is left out: a
block's `canon` convolves what the layer reads.

Legend: B batch, T time, D width, M memories (the shared one last), J chosen, H heads, K key dim,
V value dim, X channels of a memory's keys and values.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..gates import DecayGate
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.normalization import unit_norm
from ..ops.routed_delta import routed_delta, routed_delta_reference
from ..ops.twin import runs_step_by_step
from ..routing import Router
from ..slabs import in_slabs
from .recurrent import RecurrentState, recurrent_call
from .sizes import check_chunk_size, expanded_dim


@dataclass
class MixtureOfMemoriesConfig(MixerConfig):
    """Settings of a mixture of memories.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: key dim of a head; null is dim / num_heads, or the backbone's where that is null.
        expand_v: value dim over key dim.
        num_memories: routed memories.
        top_k: routed memories that each token writes and reads.
        shared_memory: have one more memory that every token writes and reads.
        balance_rate: step of the bias that evens out the load; 0 is none.
        negative_eigenvalues: let beta reach 2, so that a step may reflect (arXiv 2411.12537).
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "mom"
    num_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 1.0
    num_memories: int = 4
    top_k: int = 2
    shared_memory: bool = True
    balance_rate: float = 1e-3
    negative_eigenvalues: bool = True
    chunk_size: int = 64

    def build(self, site: Site) -> "MixtureOfMemories":
        """Make the module; raises ValueError where sizes or numbers of memories don't work out."""
        heads, key_dim = site.heads(self.num_heads, self.head_dim)
        check_chunk_size(self.chunk_size)
        value_dim = expanded_dim("expand_v", self.expand_v, key_dim)
        return MixtureOfMemories(self, site.dim, heads, key_dim, value_dim)


class MixtureOfMemories(Mixer):
    """The gated delta rule over routed memories (arXiv 2502.13685, section 3.2)."""

    folded = ("kv",)

    def __init__(
        self,
        config: MixtureOfMemoriesConfig,
        dim: int,
        heads: int,
        key_dim: int,
        value_dim: int,
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.key_dim, self.value_dim, self.inner = key_dim, value_dim, heads * value_dim
        self.memories = config.num_memories + config.shared_memory
        self.router = Router(dim, config.num_memories, config.top_k, config.balance_rate)
        self.query = nn.Linear(dim, heads * key_dim, bias=False)
        self.kv = nn.Linear(dim, self.memories * heads * (key_dim + value_dim), bias=False)
        self.beta = nn.Linear(dim, heads, bias=False)
        self.decay = DecayGate(dim, heads, decay_range=(0.01, 16.0))
        self.gate = nn.Linear(dim, self.inner, bias=False)
        self.norm = RMSNorm(value_dim)
        self.output = nn.Linear(self.inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights, decays as in Gated DeltaNet; the output starts at zero."""
        for linear in (self.query, self.kv, self.beta, self.gate):
            init_linear(linear)
        init_output(self.output)
        for module in (self.router, self.decay, self.norm):
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
        route = self._route(x_BTD, segments_BT)
        q = unit_norm(self.query(x_BTD).unflatten(-1, (self.heads, -1)))
        beta_BTH = self.beta(x_BTD).sigmoid() * (1 + self.config.negative_eigenvalues)
        gates, more = (self.decay(x_BTD), beta_BTH), {"segments": segments_BT, "state": memory_BHKV}
        if runs_step_by_step():
            k, v = self._chosen_keys_values(x_BTD, route[1])
            out, memory_BHKV = routed_delta_reference(
                q, k, v, *gates, *route, memories=self.memories, **more
            )
        else:
            k, v = self._split(self.kv(x_BTD).unflatten(-1, (self.memories, -1)))
            size = self.config.chunk_size
            out, memory_BHKV = routed_delta(q, k, v, *gates, *route, chunk_size=size, **more)
        gate = self.gate(x_BTD).unflatten(-1, (self.heads, -1))
        mixed = self.norm(out.to(gate.dtype)) * F.silu(gate)
        return self.output(mixed.flatten(2)), memory_BHKV, tail_BWD

    def _route(self, x_BTD: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and indices of the chosen memories `[B, T, J]`, the shared one among them."""
        weights, chosen = self.router(x_BTD, segments_BT)
        if not self.config.shared_memory:
            return weights, chosen
        shared = torch.full_like(chosen[..., :1], self.config.num_memories)
        weights = torch.cat([weights, torch.ones_like(weights[..., :1])], dim=-1)
        return weights, torch.cat([chosen, shared], dim=-1)

    def _split(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Cut `[..., X]` into normalised keys `[..., H, K]` and values `[..., H, V]`."""
        sizes = [self.key_dim, self.value_dim]
        k, v = kv.unflatten(-1, (self.heads, -1)).split(sizes, dim=-1)
        return unit_norm(k), v

    def _chosen_keys_values(self, x_BTD: Tensor, chosen_BTJ: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the chosen memories alone, for the twin."""
        weight_MXD = self.kv.weight.unflatten(0, (self.memories, -1)).to(x_BTD.dtype)
        return self._split((weight_MXD[chosen_BTJ] @ x_BTD[:, :, None, :, None])[..., 0])

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        shape = (self.memories * self.heads, self.key_dim, self.value_dim)
        return RecurrentState.empty(batch, shape, None, device, dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections of the chosen memories alone, and their three products.

        All memories are held and all weights are read.
        """
        chosen = self.config.top_k + self.config.shared_memory
        memory = self.heads * self.key_dim * self.value_dim
        kv = chosen * self.heads * (self.key_dim + self.value_dim)
        width = self.heads * self.key_dim + kv + 2 * self.heads + self.inner
        width += self.config.num_memories
        flops = linear_flops(self.dim, width) + linear_flops(self.inner, self.dim)
        flops += 6 * chosen * memory
        return Cost(flops, parameter_bytes(self), 4 * self.memories * memory)
