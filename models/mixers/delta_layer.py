"""What layers around a delta rule share: the projections before it, norm and gate after it.

    q, k, v = silu(conv(W x)),  q and k of length one        y = W_o (norm(o) * gate)

The rule itself and its gates are each mixer's own. Source: DeltaNet (arXiv 2406.06484,
section 3.3), whose layer Gated DeltaNet, DeltaProduct, KDA and Gated DeltaNet-2 keep.

Legend: B batch, T time, D width, G key heads, H heads, P writes of a token, K key dim, V value dim,
W filter width, X = H * V.
"""

from abc import abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convolution import ShortConvolution
from ..cost import Cost, linear_flops
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer
from ..ops.normalization import unit_norm
from ..slabs import in_slabs
from .carry import Carry
from .recurrent import RecurrentState, recurrent_call


@dataclass(frozen=True)
class DeltaSizes:
    """What a delta layer measures.

    Attributes:
        dim: width D of its inputs and outputs.
        heads: matrices of memory H.
        key_dim: rows K of each.
        value_dim: columns V of each.
        key_heads: heads of queries and keys G; each serves H / G consecutive matrices.
        writes: keys and values of each token P.
        conv_width: width of the short convolution; 0 is none.
        epsilon: added to the mean square by the norm of the outputs.
    """

    dim: int
    heads: int
    key_dim: int
    value_dim: int
    key_heads: int
    writes: int = 1
    conv_width: int = 4
    epsilon: float = 1e-6

    @property
    def parts(self) -> list[int]:
        """Widths of queries and keys together, and of values."""
        keys = (1 + self.writes) * self.key_heads * self.key_dim
        return [keys, self.writes * self.heads * self.value_dim]

    @property
    def inner(self) -> int:
        """Width X of the outputs of all heads."""
        return self.heads * self.value_dim

    @property
    def memory(self) -> int:
        """Numbers in all matrices of memory."""
        return self.heads * self.key_dim * self.value_dim


class DeltaLayer(Mixer):
    """A mixer around a delta rule; a subclass adds gates and runs the rule in `_mix`."""

    def __init__(self, sizes: DeltaSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.qkv = nn.Linear(sizes.dim, sum(sizes.parts), bias=False)
        self.conv = ShortConvolution(sum(sizes.parts), sizes.conv_width, silu=True)
        self.carried: Carry | None = None

    def _add_output(self) -> None:
        """Add norm and output projection, the last parts of a layer, and draw all weights."""
        self.norm = RMSNorm(self.sizes.value_dim, self.sizes.epsilon)
        self.output = nn.Linear(self.sizes.inner, self.sizes.dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner projections, then all other parts; the output starts at zero."""
        linears = [part for part in self.children() if isinstance(part, nn.Linear)]
        for linear in linears:
            if linear is not self.output:
                init_linear(linear)
        init_output(self.output)
        parts: list[Any] = [part for part in self.children() if part not in linears]
        for part in parts:
            part.reset_parameters()

    @in_slabs
    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: RecurrentState | None = None,
        shared: MutableMapping[str, Any] | None = None,
    ) -> tuple[Tensor, RecurrentState | None]:
        """Mix over time; see `Mixer.forward`."""
        return recurrent_call(partial(self._mix, shared=shared), x_BTD, segments_BT, state)

    def carry(self, key: str) -> bool:
        """Read also the memory of the last call under `key`; see `Mixer.carry`."""
        self.carried, self.shares = Carry(self.sizes.heads, key), True
        return True

    @abstractmethod
    def _mix(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        memory_BHKV: Tensor | None,
        tail_BWD: Tensor | None,
        shared: MutableMapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return outputs, memory and the convolution's tail."""

    def _project(
        self, x_BTD: Tensor, segments_BT: Tensor | None, tail_BWD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return q `[B, T, H, K]`, k `[B, T, P*H, K]`, v `[B, T, P*H, V]`, and the next tail."""
        sizes = self.sizes
        qkv, tail_BWD = self.conv(self.qkv(x_BTD), segments_BT, tail_BWD)
        qk, v = qkv.split(sizes.parts, dim=-1)
        qk = unit_norm(qk.unflatten(-1, (-1, sizes.key_dim)))
        q, k = qk.split([sizes.key_heads, sizes.writes * sizes.key_heads], dim=2)
        if sizes.key_heads != sizes.heads:
            q, k = (x.repeat_interleave(sizes.heads // sizes.key_heads, dim=2) for x in (q, k))
        return q, k, v.unflatten(-1, (-1, sizes.value_dim)), tail_BWD

    def _finish(self, out_BTHV: Tensor, gate_BTX: Tensor | None) -> Tensor:
        """Normalise each head, multiply by the gate (if any), project back: `[B, T, D]`."""
        mixed_BTX = self.norm(out_BTHV).flatten(2)
        return self.output(mixed_BTX if gate_BTX is None else mixed_BTX * gate_BTX)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        shape = (self.sizes.heads, self.sizes.key_dim, self.sizes.value_dim)
        return RecurrentState.empty(batch, shape, self.conv, device, dtype)

    @property
    def _scan_flops(self) -> int:
        return (4 * self.sizes.writes + 2) * self.sizes.memory

    @property
    def carried_flops(self) -> int:
        """FLOPs of scanning an earlier loop again, for one token."""
        return 0 if self.carried is None else self._scan_flops

    def _cost(self, gates: int) -> Cost:
        """Cost of one token whose gates take this many FLOPs.

        A write takes two products with the memory (what it holds under the key, and the change),
        the query one.
        """
        sizes = self.sizes
        flops = linear_flops(sizes.dim, sum(sizes.parts)) + linear_flops(sizes.inner, sizes.dim)
        flops += gates + self.conv.flops + self._scan_flops
        held = sizes.memory + self.conv.state_size
        return Cost(flops, parameter_bytes(self), 4 * held)
