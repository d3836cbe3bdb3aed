"""RWKV-7's time mixing (arXiv 2503.14456): a delta rule whose erase and write keys differ.

    S_t = Diag(w) S_{t-1} - (kk * a) (kk^T S_{t-1}) + k v^T
    kk = (k * k_k) / |k * k_k|,  w = exp(-e^(-1/2) sigmoid(..)) in (0.545, 1),  a = sigmoid(..)

Legend: B batch, T time, D width, H heads, K head dim, X = H * K.
"""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import init_output, parameter_bytes
from ..low_rank import LowRank
from ..mixer import Mixer, MixerConfig, Site
from ..ops.chunks import working_dtype
from ..ops.convolution import next_tail
from ..ops.delta import dplr
from ..ops.normalization import unit_norm
from ..slabs import Outputs, fits_one_slab, read_in_slabs
from .recurrent import RecurrentState, recurrent_call
from .rwkv7_start import draw_low_rank, draw_orthogonal, first_values
from .sizes import check_chunk_size

INPUTS = "rwkvag"
"""What is read from each token and the one before it: receptance, decay, key, value, rate, gate."""


@dataclass
class RWKV7Config(MixerConfig):
    """Settings of RWKV-7.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        decay_rank: rank of the projection to decays; null grows with the root of the width.
        rate_rank: rank of the projection to in-context learning rates; null as above.
        value_rank: rank of the projection that mixes in the first layer's values; null as above.
        gate_rank: rank of the output gate; null as above.
        chunk_size: tokens handled by one triangular solve.
    """

    kind: str = "rwkv7"
    num_heads: int | None = None
    head_dim: int | None = None
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None
    chunk_size: int = 64

    def build(self, site: Site) -> "RWKV7":
        """Make the module; raises ValueError where heads or ranks don't work out."""
        heads, head_dim = site.heads(self.num_heads, self.head_dim)
        check_chunk_size(self.chunk_size)
        for name in ("decay_rank", "rate_rank", "value_rank", "gate_rank"):
            rank = getattr(self, name)
            if rank is not None and rank < 1:
                raise ValueError(f"{name}={rank} must be at least 1, or null to derive it")
        return RWKV7(self, site, heads, head_dim)


def rank_for(dim: int, factor: float) -> int:
    """Rank of a gate at this width, a multiple of 32: `factor * sqrt(dim)`, as in RWKV's code."""
    return max(32, round(factor * dim**0.5 / 32) * 32)


class RWKV7(Mixer):
    """Token shift, the recurrence above, a norm of each head, a bonus for the token itself, a gate.

    The first layer of this mixer hands its values on; later ones mix them into their own. Source:
    arXiv 2503.14456, section 4 and appendix; initial values as in RWKV's public training code.
    """

    shares = True

    def __init__(self, config: RWKV7Config, site: Site, heads: int, head_dim: int) -> None:
        super().__init__()
        self.config, self.site, self.heads, self.head_dim = config, site, heads, head_dim
        dim, inner = site.dim, heads * head_dim
        self.shift = nn.ParameterDict({name: torch.empty(dim) for name in INPUTS})
        self.receptance, self.key, self.value = (
            nn.Linear(dim, inner, bias=False) for _ in range(3)
        )
        rank = config.decay_rank or rank_for(dim, 2.5)
        self.decay = LowRank(dim, rank, inner, bias=True, activation=torch.tanh)
        self.rate = LowRank(dim, config.rate_rank or rank_for(dim, 2.5), inner, bias=True)
        rank = config.value_rank or rank_for(dim, 1.7)
        self.first_value = None if site.first else LowRank(dim, rank, inner, bias=True)
        rank = config.gate_rank or rank_for(dim, 5.0)
        self.gate = LowRank(dim, rank, inner, activation=torch.sigmoid)
        self.unit_key, self.rate_key, self.bonus = (
            nn.Parameter(torch.empty(inner)) for _ in range(3)
        )
        self.norm_scale, self.norm_shift = (nn.Parameter(torch.empty(inner)) for _ in range(2))
        self.output = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the values that RWKV's code starts from: they decide whether it learns."""
        values = first_values(self.site, self.heads, self.head_dim)
        for name, mix in self.shift.items():
            mix.copy_(values.shift[name])
        for linear, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            draw_orthogonal(linear.weight, gain)
        init_output(self.output)
        draw_low_rank(self.decay, values.decay)
        draw_low_rank(self.rate, values.rate)
        draw_low_rank(self.gate, None)
        if self.first_value is not None:
            draw_low_rank(self.first_value, values.first_value)
        self.unit_key.copy_(values.unit_key)
        self.rate_key.fill_(1.02)
        self.bonus.fill_(-0.04)
        self.norm_scale.fill_(((self.site.layer + 1) / self.site.num_layers) ** 0.7)
        self.norm_shift.zero_()

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: RecurrentState | None = None,
        shared: MutableMapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, RecurrentState | None]:
        """Mix over time; see `Mixer.forward`.

        `shared[site.name]` holds the values of the first layer of this name, in this pass.

        Raises:
            ValueError: in a later layer that is run without them.
        """
        if fits_one_slab(x_BTD):
            return recurrent_call(partial(self._mix, shared=shared), x_BTD, segments_BT, state)
        name, first = self.site.name, self.first_value is None

        def read(inputs: Outputs, segments: Tensor | None, before: Any) -> tuple[Outputs, Any]:
            x, *given = inputs
            own = {name: given[0]} if given else {}
            y, after = recurrent_call(partial(self._mix, shared=own), x, segments, before)
            return (y, own[name]) if first else (y,), after

        handed = [] if first or not shared or name not in shared else [shared[name]]
        inputs = (x_BTD, *handed)
        (y_BTD, *made), state = read_in_slabs(self, read, inputs, segments_BT, state)
        if made and shared is not None:
            shared[name] = made[0]
        return y_BTD, state

    def _mix(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        memory_BHKV: Tensor | None,
        tail_BWD: Tensor | None,
        shared: MutableMapping[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        before_BTD = token_before(x_BTD, segments_BT, tail_BWD)
        if tail_BWD is not None:
            tail_BWD = next_tail(x_BTD, 2, segments_BT, tail_BWD).to(tail_BWD.dtype)
        change_BTD = before_BTD - x_BTD
        at = {name: x_BTD + change_BTD * mix.to(x_BTD) for name, mix in self.shift.items()}
        r, k, raw = self.receptance(at["r"]), self.key(at["k"]), self.decay(at["w"])
        v = self._shared_value(self.value(at["v"]), at["v"], shared)
        rate = self.rate(at["a"]).sigmoid()
        unit = unit_norm(self._by_head(k * self.unit_key.to(k)), epsilon=1e-12)
        k = k * (1 + (rate - 1) * self.rate_key.to(k))
        r, k, v, rate, raw = (self._by_head(x) for x in (r, k, v, rate, raw))
        out, memory_BHKV = dplr(
            r,
            k,
            v,
            -unit,
            unit * rate,
            -math.exp(-0.5) * raw.to(working_dtype(raw.dtype)).sigmoid(),
            scale=1.0,
            segments=segments_BT,
            state=memory_BHKV,
            chunk_size=self.config.chunk_size,
        )
        return self._finish(out, r, k, v, self.gate(at["g"])), memory_BHKV, tail_BWD

    def _shared_value(
        self, v_BTX: Tensor, x_BTD: Tensor, shared: MutableMapping[str, Tensor] | None
    ) -> Tensor:
        """Hand the first layer's values on; in later layers move towards them."""
        if self.first_value is None:
            if shared is not None:
                shared[self.site.name] = v_BTX
            return v_BTX
        if shared is None or self.site.name not in shared:
            raise ValueError(
                f"layer {self.site.layer} of rwkv7 needs the values of the first layer named "
                f"{self.site.name!r}: hand on the dictionary `shared` that it filled"
            )
        return torch.lerp(v_BTX, shared[self.site.name], self.first_value(x_BTD).sigmoid())

    def _finish(self, out: Tensor, r: Tensor, k: Tensor, v: Tensor, gate_BTX: Tensor) -> Tensor:
        """Normalise each head, add what the token says of itself, gate, project: `[B, T, D]`."""
        normed = F.layer_norm(out, (self.head_dim,), eps=1e-5 * self.head_dim).flatten(2)
        normed = normed * self.norm_scale.to(out) + self.norm_shift.to(out)
        itself = (r * k * self._by_head(self.bonus.to(r))).sum(dim=-1, keepdim=True) * v
        return self.output((normed + itself.flatten(2)) * gate_BTX)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state: the matrices, and the token before."""
        shape = (self.heads, self.head_dim, self.head_dim)
        state = RecurrentState.empty(batch, shape, None, device, dtype)
        tail_BWD = torch.zeros(batch, 1, self.site.dim, device=device, dtype=dtype)
        return replace(state, tail_BWD=tail_BWD)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, gates, and four products with the state."""
        dim, inner = self.site.dim, self.heads * self.head_dim
        gates = [self.decay, self.rate, self.gate]
        if self.first_value is not None:
            gates.append(self.first_value)
        memory = inner * self.head_dim
        flops = 4 * linear_flops(dim, inner) + sum(gate.flops for gate in gates) + 8 * memory
        return Cost(flops, parameter_bytes(self), 4 * (memory + dim))


def token_before(x_BTD: Tensor, segments_BT: Tensor | None, tail_BWD: Tensor | None) -> Tensor:
    """Shift by one token; zeros where that is of another document. `tail_BWD` has one token."""
    first = torch.zeros_like(x_BTD[:, :1]) if tail_BWD is None else tail_BWD.to(x_BTD.dtype)
    shifted_BTD = torch.cat([first, x_BTD[:, :-1]], dim=1)
    if segments_BT is None:
        return shifted_BTD
    starts_BT = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0))
    return shifted_BTD.masked_fill(starts_BT[..., None], 0)
