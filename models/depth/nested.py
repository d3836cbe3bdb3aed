"""Two states at two speeds: a slow one, and a fast one that runs several steps between its steps.

    l <- f(l + h + e)    L times, then    h <- g(h + l)        H times;   y = coda(h)

Where f and g are the same layers it is the tiny recursive model (TRM, arXiv 2510.04871), where they
are two groups the hierarchical one (HRM, arXiv 2506.21734). Both see the whole puzzle at once, as
attention with `causal=false` does here; with causal mixers the loops may generate. Both normalise
after the residual (`backbone.norm_place=post`); here each sum is also normalised before it is read.
No state is carried from one training step to the next.

Legend: B batch, T time, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cost import Cost, total
from ..layers import RMSNorm
from .depth import LAYERS, Asked, Depth, DepthConfig, Trajectory
from .start import STARTS, check_learned_start


@dataclass
class NestedDepthConfig(DepthConfig):
    """Settings of nested loops.

    Attributes:
        prelude: layers that run once before the loops.
        coda: layers that run once after them.
        high_layers: last layers of the looped group, which make the slow state; 0 lets the whole
            group make both states.
        loops: steps of the slow state, H.
        low_loops: steps of the fast state before each of them, L.
        start: what both states start from: input, zeros, noise or learned.
        gradient_loops: last steps of the slow state that are differentiated; null is all.
    """

    kind: str = "nested"
    prelude: int = 0
    coda: int = 0
    high_layers: int = 0
    loops: int = 3
    low_loops: int = 2
    start: str = "zeros"
    gradient_loops: int | None = 1

    def build(
        self, blocks: nn.ModuleList, dim: int, order: Sequence[int] | None = None
    ) -> "NestedDepth":
        """Make the module; raises ValueError on impossible settings."""
        self._check(len(blocks if order is None else order))
        return NestedDepth(self, blocks, dim, order)

    def _check(self, num_layers: int) -> None:
        group = num_layers - self.prelude - self.coda
        if min(self.prelude, self.coda) < 0 or not 0 <= self.high_layers < group:
            raise ValueError(
                f"depth.prelude={self.prelude}, depth.coda={self.coda} and depth.high_layers="
                f"{self.high_layers} must leave a layer of {num_layers} for the fast state"
            )
        for key in ("loops", "low_loops"):
            if getattr(self, key) < 1:
                raise ValueError(f"depth.{key}={getattr(self, key)} must be at least 1")
        if self.start not in STARTS:
            raise ValueError(f"depth.start={self.start} is not known: choose {' or '.join(STARTS)}")
        check_learned_start(self.start, self.gradient_loops)
        if self.gradient_loops is not None and not 1 <= self.gradient_loops <= self.loops:
            raise ValueError(
                f"depth.gradient_loops={self.gradient_loops} must lie between 1 and "
                f"depth.loops={self.loops}, or be null for all"
            )


class NestedDepth(Depth):
    """Runs the fast layers `low_loops` times before each step of the slow ones."""

    adjustable = True

    def __init__(
        self,
        config: NestedDepthConfig,
        blocks: nn.ModuleList,
        dim: int,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(blocks, order)
        self.config, self.default_loops = config, config.loops
        self.gradient_loops = config.gradient_loops
        last = len(self.order) - config.coda
        split = last - config.high_layers if config.high_layers else last
        self.prelude, self.coda = range(config.prelude), range(last, len(self.order))
        self.low = range(config.prelude, split)
        self.looped = range(config.prelude, last)
        self.high = range(split, last) if config.high_layers else self.low
        self.entry_norm, self.low_norm, self.high_norm = (RMSNorm(dim) for _ in range(3))
        self.low_start, self.high_start = (STARTS[config.start](dim) for _ in range(2))

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        super().reset_parameters()
        for part in (self.entry_norm, self.low_norm, self.high_norm):
            part.reset_parameters()
        for start in (self.low_start, self.high_start):
            start.reset_parameters()

    def calls(self, loops: int) -> list[int]:
        """Return prelude, the nested loops, coda."""
        step = [*(list(self.low) * self.config.low_loops), *self.high]
        return [*self.prelude, *(step * loops), *self.coda]

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        asked: Asked,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run prelude, nested loops and coda."""
        loops, draws = asked.loops, asked.draws
        trajectory, shared = Trajectory(loops, len(self.calls(loops))), asked.begin_shared()
        entry_BTD = self.entry_norm(self._run(self.prelude, x_BTD, segments_BT, state, 0, shared))
        low, high = (start(entry_BTD, draws) for start in (self.low_start, self.high_start))
        learns = draws is not None and torch.is_grad_enabled()
        before = self.forward_only(loops, asked.gradient_loops) if learns else 0
        call = len(self.prelude)
        given = (segments_BT, state)
        for loop in range(loops):
            with torch.set_grad_enabled(torch.is_grad_enabled() and loop >= before):
                for _ in range(self.config.low_loops):
                    read_BTD = self.low_norm(low + high + entry_BTD)
                    low = self._run(self.low, read_BTD, *given, call, shared)
                    call += len(self.low)
                high = self._run(self.high, self.high_norm(high + low), *given, call, shared)
                call += len(self.high)
            if asked.record:
                trajectory.states.append(high)
        hidden_BTD = self._run(self.coda, high, segments_BT, state, call, shared)
        trajectory.layers = shared.get(LAYERS, [])
        return hidden_BTD, state, trajectory

    def forward_only_cost(self, length: int, loops: int, window: int | None = None) -> Cost:
        """Cost of those steps, the fast ones within them too."""
        step = [*(list(self.low) * self.config.low_loops), *self.high]
        blocks = [self.block(layer).prefill_cost(length) for layer in step]
        return self.forward_only(loops, window) * total(blocks)

    def cost(self, context: int, loops: int) -> Cost:
        """Cost of one token: the blocks' at every call, and the weights between them."""
        return super().cost(context, loops) + Cost(weight_bytes=self._own_bytes())

    def prefill_cost(self, length: int, loops: int) -> Cost:
        """Cost of reading `length` tokens at once."""
        return super().prefill_cost(length, loops) + Cost(weight_bytes=self._own_bytes())

    def _own_bytes(self) -> int:
        own = (self.entry_norm, self.low_norm, self.high_norm, self.low_start, self.high_start)
        return 4 * sum(p.numel() for part in own for p in part.parameters())
