"""Mamba-3 with one input and one output a head (SISO): trapezoidal writes, turning states.

Legend: B batch, T time, D width, H heads, G groups of heads, N state dim, P head dim, J turned
pairs.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..gates import draw_time_bias, softplus_step
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.chunks import working_dtype
from ..ops.trapezoid import Memory, trapezoidal_attention
from ..ops.turning import cumulative_angles, turn_pairs
from ..slabs import in_slabs
from ..state import State, continues, empty_counters, keep
from .recurrent import advanced
from .sizes import check_chunk_size


@dataclass
class Mamba3Config(MixerConfig):
    """Settings of Mamba-3.

    Attributes:
        expand: inner width over model width.
        head_dim: inner width of a head; must divide expand * dim; null is the backbone's.
        state_dim: size of B and C, the rows of a head's state; null is the backbone's head_dim.
        num_groups: groups of heads that share B and C; must divide the number of heads.
        rope_fraction: share of the state's rows that turn, in pairs.
        chunk_size: tokens handled by one matrix product.
    """

    kind: str = "mamba3"
    expand: float = 2.0
    head_dim: int | None = None
    state_dim: int | None = None
    num_groups: int = 1
    rope_fraction: float = 0.5
    chunk_size: int = 64

    def build(self, site: Site) -> "Mamba3":
        """Make the module; raises ValueError where heads, groups or pairs don't work out."""
        inner, head_dim = self.expand * site.dim, self.head_dim
        head_dim = site.head_dim if head_dim is None else head_dim
        if head_dim < 1 or inner < head_dim or inner % head_dim:
            raise ValueError(
                f"head_dim={head_dim} doesn't divide expand*dim={inner:g}: choose a divisor"
            )
        heads = int(inner) // head_dim
        if self.num_groups < 1 or heads % self.num_groups:
            raise ValueError(
                f"num_groups={self.num_groups} doesn't divide the {heads} heads: choose a divisor"
            )
        state_dim = site.head_dim if self.state_dim is None else self.state_dim
        if not 0 < self.rope_fraction <= 1 or self.rope_fraction * state_dim < 2:
            raise ValueError(
                f"rope_fraction={self.rope_fraction} of state_dim={state_dim} must be at least one "
                "pair (2), and at most all of it"
            )
        check_chunk_size(self.chunk_size)
        return Mamba3(self, site.dim, heads, head_dim, state_dim)


@dataclass
class Mamba3State(State):
    """What the trapezoidal rule and the turning states need of the tokens before.

    Attributes:
        memory_BHNP: the recurrent state, at least float32, as all of these.
        key_BHN: the last token's key, turned.
        value_BHP: the last token's value.
        angle_BHJ: how far the current document has turned, radians.
    """

    memory_BHNP: Tensor
    key_BHN: Tensor
    value_BHP: Tensor
    angle_BHJ: Tensor


class Mamba3(Mixer):
    """`S = a S + (1-lam) dt a k' v'^T + lam dt k v^T`, k' and v' a token before (2603.15569).

    q and k are C and B, normed, biased, and turned by `pi tanh(angles) dt`, added up over the
    document; `a = exp(-A dt)`; `lam = sigmoid(trap)`; `y = (S^T q + skip v) silu(z)`. A depends on
    the input, through a function that grows linearly and falls off as 1/x.
    """

    def __init__(
        self, config: Mamba3Config, dim: int, heads: int, head_dim: int, state_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.head_dim, self.state_dim = head_dim, state_dim
        self.pairs = int(config.rope_fraction * state_dim) // 2
        self.inner, shared = heads * head_dim, config.num_groups * state_dim
        self.sizes = [self.inner, shared, shared]
        self.gate = nn.Linear(dim, self.inner, bias=False)
        self.xbc = nn.Linear(dim, sum(self.sizes), bias=False)
        self.controls = nn.Linear(dim, 3 * heads + self.pairs, bias=False)
        self.time_bias = nn.Parameter(torch.empty(heads))
        self.norms = nn.ModuleList(RMSNorm(state_dim) for _ in ("B", "C"))
        self.bias = nn.Parameter(torch.empty(2, heads, state_dim))
        self.skip = nn.Parameter(torch.empty(heads))
        self.output = nn.Linear(self.inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights; biases of B and C, and D, are one; the output starts at zero."""
        for linear in (self.gate, self.xbc, self.controls):
            init_linear(linear)
        init_output(self.output)
        draw_time_bias(self.time_bias)
        for parameter in (self.bias, self.skip):
            nn.init.ones_(parameter)
        for norm in self.norms:
            norm.reset_parameters()  # pyright: ignore[reportCallIssue]

    @in_slabs
    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: Mamba3State | None = None,
    ) -> tuple[Tensor, Mamba3State | None]:
        """Mix over time; see `Mixer.forward`."""
        if state is None:
            return self._mix(x_BTD, segments_BT, None, None)[0], None
        kept_B = continues(state, segments_BT)
        memory, key, value, angle = (
            keep(x, kept_B)
            for x in (state.memory_BHNP, state.key_BHN, state.value_BHP, state.angle_BHJ)
        )
        y_BTD, memory, angle = self._mix(x_BTD, segments_BT, (memory, key, value), angle)
        return y_BTD, Mamba3State(*advanced(x_BTD, segments_BT, state), *memory, angle)

    def _mix(
        self,
        u_BTD: Tensor,
        segments_BT: Tensor | None,
        memory: Memory | None,
        angle_BHJ: Tensor | None,
    ) -> tuple[Tensor, Memory, Tensor]:
        time_step, log_decay, now, steps_BTHJ = self._controls(u_BTD)
        chunk_size = self.config.chunk_size
        angles = cumulative_angles(
            steps_BTHJ, segments=segments_BT, start=angle_BHJ, chunk_size=chunk_size
        )
        v, k, q = self._heads(u_BTD)
        out, memory = trapezoidal_attention(
            turn_pairs(q, angles),
            turn_pairs(k, angles),
            v,
            log_decay,
            time_step - now,
            now,
            segments=segments_BT,
            state=memory,
            chunk_size=chunk_size,
        )
        y = out.addcmul(v, self.skip[:, None].to(v.dtype)).flatten(2)
        return self.output(y * F.silu(self.gate(u_BTD))), memory, angles[:, -1].clone()

    def _controls(self, u_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Time step, log decay and `lam dt`, each `[B, T, H]`, and the turns, `[B, T, H, J]`."""
        controls = self.controls(u_BTD)
        raw = controls.to(working_dtype(controls.dtype))
        step, rate, trap, turn = raw.split([*[self.heads] * 3, self.pairs], dim=-1)
        time_step = softplus_step(step, self.time_bias)
        log_decay = -heavy_tail(rate).clamp(min=1e-4) * time_step
        steps_BTHJ = math.pi * turn.tanh()[:, :, None] * time_step[..., None]
        return time_step, log_decay, trap.sigmoid() * time_step, steps_BTHJ

    def _heads(self, u_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, keys and queries of all heads; keys and queries are in float32 or better."""
        x, *shared = self.xbc(u_BTD).split(self.sizes, dim=-1)
        repeats = self.heads // self.config.num_groups
        keys = []
        for part, norm, bias_HN in zip(shared, self.norms, self.bias, strict=True):
            grouped = norm(part.unflatten(-1, (self.config.num_groups, -1)))
            wide = grouped.to(working_dtype(grouped.dtype))
            keys.append(wide.repeat_interleave(repeats, dim=2) + bias_HN.to(wide.dtype))
        return x.unflatten(-1, (self.heads, -1)), keys[0], keys[1]

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> Mamba3State:
        """Return a zero state; its size does not depend on `max_len`."""
        wide = torch.promote_types(dtype, torch.float32)
        heads, rows = self.heads, self.state_dim
        shapes = [(rows, self.head_dim), (rows,), (self.head_dim,), (self.pairs,)]
        zeros = [torch.zeros(batch, heads, *shape, device=device, dtype=wide) for shape in shapes]
        return Mamba3State(*empty_counters(batch, device), *zeros)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, writing the state twice and reading it once."""
        memory = self.inner * self.state_dim
        width = self.inner + sum(self.sizes) + 3 * self.heads + self.pairs
        flops = linear_flops(self.dim, width) + linear_flops(self.inner, self.dim) + 6 * memory
        held = memory + self.inner + self.heads * (self.state_dim + self.pairs)
        return Cost(flops, parameter_bytes(self), 4 * held)


def heavy_tail(x: Tensor) -> Tensor:
    """`1 + x` from zero up, `1 / (1 - x)` below: positive, and at most linear either way."""
    return F.relu(x) + 1 / (1 - x.clamp(max=0))  # and of slope one at zero
