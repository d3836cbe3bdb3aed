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

    def check_between(self, layer: int) -> None:
        """Raise ValueError where a layer above reads what one below kept for each position."""
        if any(self.block(place).mixer.shares for place in self.calls(1)):
            raise ValueError(
                f"latent.layer={layer} parts layers of backbone.layout that share values "
                "at every position, as rwkv7's do: choose other mixers, or latent=none"
            )

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        asked: Asked,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run the stack once, with what is to be done between two layers."""
        shared, layers, between = asked.begin_shared(), range(len(self.order)), asked.between
        start = 0 if between is None else between.layer
        x_BTD = self._run(layers[:start], x_BTD, segments_BT, state, 0, shared)
        if between is not None:
            x_BTD, segments_BT = between.change(x_BTD, segments_BT)
        x_BTD = self._run(layers[start:], x_BTD, segments_BT, state, start, shared)
        states = [x_BTD] if asked.record else []
        trajectory = Trajectory(1, len(self.order), states, layers=shared.get(LAYERS, []))
        return x_BTD, state, trajectory
