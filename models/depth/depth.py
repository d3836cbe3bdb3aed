"""What every depth promises: which blocks run, in which order, how often.

Legend: B batch, T time, D width, R recurrence.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..block import Block, Shared
from ..cost import Cost, total
from .draws import Draws


@dataclass
class DepthConfig(ABC):
    """Settings of one depth; a subclass adds its own and names itself.

    Attributes:
        kind: the depth's name in the list of depths.
    """

    kind: str = ""

    @abstractmethod
    def build(self, blocks: nn.ModuleList, dim: int, order: Sequence[int] | None = None) -> "Depth":
        """Make the module over these blocks; raises ValueError on impossible settings.

        `order` names the stored block of each layer; None is each block once.
        """


@dataclass
class Trajectory:
    """What really ran.

    Attributes:
        loops: times that the looped part ran (1 where nothing is looped).
        block_calls: passes through blocks; times positions run, it is the executed cost.
        states: `hidden_BTD` after each recurrence, where recording was asked for.
    """

    loops: int
    block_calls: int
    states: list[Tensor] = field(default_factory=list)


class Depth(nn.Module, ABC):
    """Runs blocks over a sequence.

    Attributes:
        blocks: the blocks, each stored once.
        order: the block that stands in each layer; layers may share one.
        default_loops: loops at evaluation when none are asked for.
        adjustable: whether a caller may ask for another count.
    """

    default_loops: int = 1
    adjustable: bool = False

    def __init__(self, blocks: nn.ModuleList, order: Sequence[int] | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.order = list(range(len(blocks)) if order is None else order)

    def reset_parameters(self) -> None:
        """Draw all weights anew; a depth with weights of its own adds them."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.reset_parameters()

    @abstractmethod
    def calls(self, loops: int) -> list[int]:
        """Return the layer of each call, in order; each call keeps its own state."""

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        loops: int,
        record: bool = False,
        draws: Draws | None = None,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run the blocks; `state` holds one entry per call, in the order of `calls(loops)`.

        `draws` keys what a training step leaves to chance; None is evaluation.
        """

    def counts(self, draws: Draws) -> list[int]:
        """Return the loops of a training step: one count, or one for each row of its batch.

        The largest of them is what is run; all are pure functions, so equal on all processes.
        """
        return [self.default_loops]

    def spectral_bound(self) -> float | None:
        """How much what stands between loops can stretch a state; None where that has no bound."""
        return None

    def resolve_loops(self, loops: int | None) -> int:
        """Return the count to run; raises ValueError where a count can't be chosen."""
        if loops is None or loops == self.default_loops:
            return self.default_loops
        if not self.adjustable:
            raise ValueError(
                f"loops={loops} was asked for, but this backbone's depth is fixed: leave loops "
                "unset, or choose depth=looped"
            )
        if loops < 1:
            raise ValueError(f"loops={loops} must be at least 1")
        return loops

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype, loops: int
    ) -> list[Any]:
        """Return empty memory, one entry per call."""
        called = [self.block(layer) for layer in self.calls(loops)]
        return [block.init_state(batch, max_len, device, dtype) for block in called]

    def cost(self, context: int, loops: int) -> Cost:
        """Cost of one token that sees `context` tokens; weights are read at every call."""
        return total([self.block(layer).cost(context) for layer in self.calls(loops)])

    def forward_only_cost(self, length: int, loops: int) -> Cost:
        """Cost of what a training step over `length` tokens runs without differentiating it."""
        return Cost()

    def prefill_cost(self, length: int, loops: int) -> Cost:
        """Cost of reading `length` tokens at once."""
        return total([self.block(layer).prefill_cost(length) for layer in self.calls(loops)])

    def _run(
        self,
        layers: range,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        first_call: int,
        shared: Shared,
        feed: bool = True,
    ) -> Tensor:
        """Run layers in a row; their states stand in `state` from `first_call` on.

        `shared` is what layers hand on to later ones, one dictionary a forward pass; without `feed`
        the layers' mixers run alone.
        """
        for call, layer in enumerate(layers, start=first_call):
            given = None if state is None else state[call]
            block = self.blocks[self.order[layer]]
            x_BTD, new = block(x_BTD, segments_BT, given, shared, feed)
            if state is not None:
                state[call] = new
        return x_BTD

    def block(self, layer: int) -> Block:
        """Return the block that stands in a layer."""
        block = self.blocks[self.order[layer]]
        assert isinstance(block, Block)
        return block


def loops_before(window: int | None, loops: int) -> int:
    """Loops before the window of the last ones that are differentiated; None is all of them."""
    return 0 if window is None else max(0, loops - window)
