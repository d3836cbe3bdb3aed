"""Every block once: the ordinary stack.

Legend: B batch, T time, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .depth import LAYERS, Asked, Depth, DepthConfig, Trajectory


@dataclass
class FixedDepthConfig(DepthConfig):
    """Every layer runs once; there is nothing to set."""

    kind: str = "fixed"

    def build(
        self, blocks: nn.ModuleList, dim: int, order: Sequence[int] | None = None
    ) -> "FixedDepth":
        """Make the module."""
        return FixedDepth(blocks, order)


class FixedDepth(Depth):
    """Runs every layer once, in order."""

    def calls(self, loops: int) -> list[int]:
        """Return all layers in order."""
        return list(range(len(self.order)))

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        asked: Asked,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run the stack once."""
        shared = asked.begin_shared()
        x_BTD = self._run(range(len(self.order)), x_BTD, segments_BT, state, 0, shared)
        states = [x_BTD] if asked.record else []
        trajectory = Trajectory(1, len(self.order), states, layers=shared.get(LAYERS, []))
        return x_BTD, state, trajectory
