"""Mamba-2 (arXiv 2405.21060): a state space layer with one decay per head.

Legend: B batch, T time, D width, H heads, G groups of heads, N state dim, P head dim, W filter
width.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convolution import ShortConvolution
from ..cost import Cost, linear_flops
from ..gates import DecayRate
from ..kernels import find
from ..layers import init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.decay import decayed_attention
from ..ops.normalization import gated_rms_norm
from ..ops.twin import runs_step_by_step
from ..slabs import in_slabs
from .carry import Carry, read_scan
from .recurrent import RecurrentState, recurrent_call
from .sizes import check_chunk_size


@dataclass
class Mamba2Config(MixerConfig):
    """Settings of Mamba-2.

    Attributes:
        expand: inner width over model width.
        head_dim: inner width of a head; must divide expand * dim; null is the backbone's.
        state_dim: size of B and C, the rows of a head's state; null is the backbone's head_dim.
        num_groups: groups of heads that share B and C; must divide the number of heads.
        conv_width: width of the short convolution on x, B and C.
        conv_bias: add a learned constant after it, as the authors' code does.
        norm: normalise the gated output; Falcon-H1 does not.
        chunk_size: tokens handled by one matrix product.
    """

    kind: str = "mamba2"
    expand: float = 2.0
    head_dim: int | None = None
    state_dim: int | None = None
    num_groups: int = 1
    conv_width: int = 4
    conv_bias: bool = False
    norm: bool = True
    chunk_size: int = 64

    def build(self, site: Site) -> "Mamba2":
        """Make the module; raises ValueError where heads or groups don't work out."""
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
        if self.conv_bias and not self.conv_width:
            raise ValueError(
                "conv_bias=true needs a convolution: set conv_width, or conv_bias=false"
            )
        state_dim = site.head_dim if self.state_dim is None else self.state_dim
        if state_dim < 1:
            raise ValueError(f"state_dim={state_dim} must be at least 1")
        check_chunk_size(self.chunk_size)
        return Mamba2(self, site.dim, heads, head_dim, state_dim)


class GatedRMSNorm(nn.Module):
    """`RMSNorm(x silu(gate))` of each of several equal parts of the width."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.groups, self.epsilon = groups, 1e-6
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Gate, then normalise each part of the last axis; the scale is over the whole."""
        if self.groups == 1:
            return gated_rms_norm(x, gate, self.weight, self.epsilon)
        parts, gates = (y.unflatten(-1, (self.groups, -1)) for y in (x, gate))
        normed = gated_rms_norm(parts, gates, x.new_ones(parts.shape[-1]), self.epsilon)
        return normed.flatten(-2) * self.weight.to(x.dtype)


class Mamba2(Mixer):
    """`S = exp(dt A) S + dt B x^T`, `y = S^T C + D x`, gated and normed (2405.21060, section 7).

    The norm is over the heads of a group, as in the authors' code, so that groups can be sharded.
    """

    def __init__(
        self, config: Mamba2Config, dim: int, heads: int, head_dim: int, state_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.head_dim, self.state_dim = head_dim, state_dim
        self.inner, shared = heads * head_dim, config.num_groups * state_dim
        self.sizes = [self.inner, shared, shared]
        self.gate = nn.Linear(dim, self.inner, bias=False)
        self.xbc = nn.Linear(dim, sum(self.sizes), bias=False)
        self.time = nn.Linear(dim, heads, bias=False)
        silu = not config.conv_bias  # which stands before it
        self.conv = ShortConvolution(sum(self.sizes), config.conv_width, silu=silu)
        self.conv_bias = nn.Parameter(torch.empty(sum(self.sizes))) if config.conv_bias else None
        self.rate = DecayRate(heads, decay_range=(1.0, 16.0))
        self.skip = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(self.inner, config.num_groups) if config.norm else None
        self.output = nn.Linear(self.inner, dim, bias=False)
        self.carried: Carry | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights; A ~ U(1, 16), D = 1; the output starts at zero."""
        for linear in (self.gate, self.xbc, self.time):
            init_linear(linear)
        init_output(self.output)
        nn.init.ones_(self.skip)
        if self.conv_bias is not None:
            nn.init.zeros_(self.conv_bias)
        for module in (self.conv, self.rate, self.norm, self.carried):
            if module is not None:
                module.reset_parameters()

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
        self.carried, self.shares = Carry(self.heads, key), True
        return True

    def _mix(
        self,
        u_BTD: Tensor,
        segments_BT: Tensor | None,
        memory_BHNP: Tensor | None,
        tail_BWD: Tensor | None,
        shared: MutableMapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        xbc, tail_BWD = self.conv(self.xbc(u_BTD), segments_BT, tail_BWD)
        if self.conv_bias is not None:
            xbc = F.silu(xbc + self.conv_bias.to(xbc.dtype))
        x, b, c = xbc.split(self.sizes, dim=-1)
        x_BTHP = x.unflatten(-1, (self.heads, -1))
        b, c = (part.unflatten(-1, (self.config.num_groups, -1)) for part in (b, c))
        raw_BTH = self.time(u_BTD)

        def scan(queries: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            return self._scan(x_BTHP, b, queries, raw_BTH, segments_BT, memory)

        out, memory_BHNP = read_scan(self.carried, scan, c, memory_BHNP, shared)
        y = out.addcmul(x_BTHP, self.skip[:, None].to(x_BTHP.dtype)).flatten(2)
        gate = self.gate(u_BTD)
        mixed = y * F.silu(gate) if self.norm is None else self.norm(y, gate)
        return self.output(mixed), memory_BHNP, tail_BWD

    def _scan(
        self,
        x_BTHP: Tensor,
        b: Tensor,
        c: Tensor,
        raw_BTH: Tensor,
        segments_BT: Tensor | None,
        memory_BHNP: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`S = exp(dt A) S + dt B x^T`, read by C, through mamba-ssm where it was found sound.

        Its kernel takes the time step apart from the values, so it is no `decayed_attention`.
        """
        time_step_BTH, log_decay_BTH = self.rate(raw_BTH)
        own = {"segments": segments_BT, "state": memory_BHNP}
        many = x_BTHP.shape[1] > 1 and not runs_step_by_step()
        kernel = find("scan", x_BTHP, c) if many else None
        if kernel is not None:
            return kernel(c, b, x_BTHP, time_step_BTH, -self.rate.log_rate.exp(), **own)
        written = x_BTHP * time_step_BTH[..., None].to(x_BTHP.dtype)
        size = self.config.chunk_size
        return decayed_attention(c, b, written, log_decay_BTH, scale=1.0, chunk_size=size, **own)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> RecurrentState:
        """Return a zero state; its size does not depend on `max_len`."""
        shape = (self.heads, self.state_dim, self.head_dim)
        return RecurrentState.empty(batch, shape, self.conv, device, dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, convolution, and writing and reading the state."""
        memory = self.inner * self.state_dim
        width = self.inner + sum(self.sizes) + self.heads
        flops = linear_flops(self.dim, width) + linear_flops(self.inner, self.dim)
        flops += 4 * memory + self.conv.flops
        return Cost(flops, parameter_bytes(self), 4 * (memory + self.conv.state_size))

    @property
    def carried_flops(self) -> int:
        """FLOPs of scanning an earlier loop again, for one token."""
        return 0 if self.carried is None else 4 * self.inner * self.state_dim
