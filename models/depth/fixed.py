"""Every block once: the ordinary stack.

Legend: B batch, T time, D width.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .depth import Depth, DepthConfig, Trajectory


@dataclass
class FixedDepthConfig(DepthConfig):
    """Every block runs once; there is nothing to set."""

    kind: str = "fixed"

    def build(self, blocks: nn.ModuleList, dim: int) -> "FixedDepth":
        """Make the module."""
        return FixedDepth(blocks)


class FixedDepth(Depth):
    """Runs every block once, in order."""

    def calls(self, loops: int) -> list[int]:
        """Return all blocks in order."""
        return list(range(len(self.blocks)))

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        loops: int,
        record: bool = False,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run the stack once."""
        x_BTD = self._run(range(len(self.blocks)), x_BTD, segments_BT, state, 0)
        trajectory = Trajectory(1, len(self.blocks), [x_BTD] if record else [])
        return x_BTD, state, trajectory
