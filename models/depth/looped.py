"""A group of blocks run several times: prelude, looped core, coda.

    e = norm_e(prelude(x))
    h_1 = core(e);   h_r = core(norm_h(h_{r-1}) + e);   y = coda(h_R)      injection "add"
    h_1 = core(e);   h_r = core(norm_h(h_{r-1}));       y = coda(h_R)      injection "none"

The first form is recall with additive injection (deep thinking, arXiv 2202.05826), the second the
Universal Transformer's (arXiv 1807.03819). Both terms are normalised, so that neither drowns the
other (Parcae's prelude norm, arXiv 2604.12946); with `norm: false` both norms are identities, and
one loop is the plain stack. A count that varies in training keeps the loop usable at other counts;
a fixed one collapses away from it.

Legend: B batch, T time, D width, R recurrence.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layers import RMSNorm
from .depth import Depth, DepthConfig, Trajectory

INJECTIONS = ("add", "none")


@dataclass
class LoopedDepthConfig(DepthConfig):
    """Settings of a looped group.

    Attributes:
        prelude: blocks that run once before the loop.
        coda: blocks that run once after it; all blocks between are looped.
        loops: loops at evaluation, and in training unless a range is given.
        min_loops: least loops of a training step, drawn uniformly; null for a fixed count.
        max_loops: most loops of a training step; null for a fixed count.
        injection: how the prelude's output enters each loop: add or none.
        norm: RMS-normalise the prelude's output, and the state between loops.
    """

    kind: str = "looped"
    prelude: int = 0
    coda: int = 0
    loops: int = 4
    min_loops: int | None = None
    max_loops: int | None = None
    injection: str = "add"
    norm: bool = True

    def build(
        self, blocks: nn.ModuleList, dim: int, order: Sequence[int] | None = None
    ) -> "LoopedDepth":
        """Make the module; raises ValueError on impossible settings."""
        self._check(len(blocks if order is None else order))
        return LoopedDepth(self, blocks, dim, order)

    def _check(self, num_blocks: int) -> None:
        if self.prelude < 0 or self.coda < 0 or self.prelude + self.coda >= num_blocks:
            raise ValueError(
                f"depth.prelude={self.prelude} and depth.coda={self.coda} leave nothing to loop "
                f"over {num_blocks} layers: their sum must be below backbone.num_layers"
            )
        if self.loops < 1:
            raise ValueError(f"depth.loops={self.loops} must be at least 1")
        if (self.min_loops is None) != (self.max_loops is None):
            raise ValueError(
                f"depth.min_loops={self.min_loops} and depth.max_loops={self.max_loops}: "
                "set both to sample the count, or neither"
            )
        if self.min_loops is not None and not 1 <= self.min_loops <= (self.max_loops or 0):
            raise ValueError(
                f"depth.min_loops={self.min_loops} must lie between 1 and "
                f"depth.max_loops={self.max_loops}"
            )
        if self.injection not in INJECTIONS:
            raise ValueError(
                f"depth.injection={self.injection} is not known: choose {' or '.join(INJECTIONS)}"
            )


class LoopedDepth(Depth):
    """Runs the middle blocks `loops` times; each loop keeps its own state (`per_loop`)."""

    adjustable = True

    def __init__(
        self,
        config: LoopedDepthConfig,
        blocks: nn.ModuleList,
        dim: int,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(blocks, order)
        self.config = config
        self.default_loops = config.loops
        self.entry_norm, self.loop_norm = (
            RMSNorm(dim) if config.norm else nn.Identity() for _ in range(2)
        )
        last = len(self.order) - config.coda
        self.prelude, self.core = range(config.prelude), range(config.prelude, last)
        self.coda = range(last, len(self.order))

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        super().reset_parameters()
        for norm in (self.entry_norm, self.loop_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()

    def calls(self, loops: int) -> list[int]:
        """Return prelude, the core `loops` times, coda."""
        return [*self.prelude, *(list(self.core) * loops), *self.coda]

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        loops: int,
        record: bool = False,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run prelude, loops and coda."""
        trajectory, shared = Trajectory(loops, len(self.calls(loops))), {}
        entry_BTD = self.entry_norm(self._run(self.prelude, x_BTD, segments_BT, state, 0, shared))
        hidden_BTD, call = entry_BTD, len(self.prelude)
        for loop in range(loops):
            if loop:
                hidden_BTD = self._between(hidden_BTD, entry_BTD)
            hidden_BTD = self._run(self.core, hidden_BTD, segments_BT, state, call, shared)
            call += len(self.core)
            if record:
                trajectory.states.append(hidden_BTD)
        hidden_BTD = self._run(self.coda, hidden_BTD, segments_BT, state, call, shared)
        return hidden_BTD, state, trajectory

    def _between(self, hidden_BTD: Tensor, entry_BTD: Tensor) -> Tensor:
        hidden_BTD = self.loop_norm(hidden_BTD)
        return hidden_BTD + entry_BTD if self.config.injection == "add" else hidden_BTD

    def loops_for_step(self, seed: int, stage: int, step: int) -> int:
        """Draw the count uniformly from [min_loops, max_loops], keyed by seed, stage and step."""
        low, high = self.config.min_loops, self.config.max_loops
        if low is None or high is None:
            return self.default_loops
        key = hashlib.blake2b(f"loops {seed} {stage} {step}".encode(), digest_size=8).digest()
        return low + int.from_bytes(key, "little") % (high - low + 1)
