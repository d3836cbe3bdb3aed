"""What every depth promises: which blocks run, in which order, how often.

Legend: B batch, T time, D width, R recurrence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..block import Block
from ..cost import Cost, total
from ..recompute import recomputed
from ..shared import Shared
from .draws import Draws
from .going import Reuse
from .stop import Stop

LAYERS = "*layers"
"""Where a pass keeps what its layers return: no mixer can be called so."""


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


@dataclass(frozen=True)
class Between:
    """What is done once to the hidden states between two layers.

    Attributes:
        layer: layers that run before it.
        change: `(x_BTD, segments_BT) -> (x_BSD, segments_BS)`; the layers above may see more
            positions than those below.
    """

    layer: int
    change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Asked:
    """What one pass is asked for.

    Attributes:
        loops: loop count; tokens that stop or are left behind run fewer.
        record: keep the states, and what an objective over loops needs.
        draws: keys what a training step leaves to chance; None is evaluation.
        stop: when tokens stop; in training none does.
        read: hidden states to logits, for the rules that ask what a token would say.
        gradient_loops: last loops that a training step differentiates, in place of the depth's own.
        layers: keep what every block call returns.
        between: what is done between two layers, of a depth that has the place for it.
    """

    loops: int
    record: bool = False
    draws: Draws | None = None
    stop: Stop = field(default_factory=Stop)
    read: Callable[[Tensor], Tensor] | None = None
    gradient_loops: int | None = None
    layers: bool = False
    between: Between | None = None

    def begin_shared(self) -> Shared:
        """Return what layers hand on in this pass: nothing yet."""
        return Shared({LAYERS: []} if self.layers else None)


@dataclass
class Trajectory:
    """What really ran.

    Attributes:
        loops: times that the looped part ran (1 where nothing is looped).
        block_calls: passes through blocks of a position that ran all of them.
        states: `hidden_BTD` after each recurrence, where recording was asked for.
        exits_BT: loops that each position ran, where they may differ; None is all of them.
        chunks_BT: levels at which each position begins a chunk; None where nothing is chunked. What
            is recorded of chunks stands at every position that reads them.
        halts: chance `[B, T]` of stopping, given that it runs, after each recurrence; empty without
            a gate.
        losses: auxiliary losses of a training step by name, means over rows.
        finish: a recorded state to what follows the loops.
        step: the last loop again, from another state.
        layers: what each block call returned, in order, where that was asked for.
        segments_BT: document ids of the recorded states' positions, where a latent scheme added
            some to the tokens'; None is the tokens'.
    """

    loops: int
    block_calls: int
    states: list[Tensor] = field(default_factory=list)
    exits_BT: Tensor | None = None
    chunks_BT: Tensor | None = None
    halts: list[Tensor] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    finish: Callable[[Tensor], Tensor] = lambda hidden_BTD: hidden_BTD
    step: Callable[[Tensor], Tensor] | None = None
    layers: list[Tensor] = field(default_factory=list)
    segments_BT: Tensor | None = None


class Depth(nn.Module, ABC):
    """Runs blocks over a sequence.

    Attributes:
        blocks: the blocks, each stored once.
        order: the block that stands in each layer; layers may share one.
        default_loops: loops at evaluation when none are asked for.
        default_stop: when tokens stop at evaluation, if nothing else is asked for.
        adjustable: whether a caller may ask for another count.
        keeps_rows: whether a training step needs its rows as they are: draws belong to rows, or
            tokens are chosen among all of a document.
        gradient_loops: last loops that a training step differentiates; None is all.
        looped: layers that may run more than once in a pass.
        recompute: whether a training step makes what blocks compute again in its backward pass,
            rather than keep it; not of blocks that read with a state.
    """

    looped: range = range(0)
    recompute: bool = False
    default_loops: int = 1
    default_stop: Stop = Stop()
    gradient_loops: int | None = None
    adjustable: bool = False
    keeps_rows: bool = False

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
        asked: Asked,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run the blocks; `state` holds one entry for each of `held(loops)`, in that order."""

    def held(self, loops: int) -> list[int]:
        """Return the layer of each state that is kept: of each call, if a depth says no other."""
        return self.calls(loops)

    def check_stop(self, stop: Stop) -> None:
        """Raise ValueError where a stopping rule has nothing to stop, or to go by."""
        if stop:
            raise ValueError(
                f"stop={stop.text} was asked for, but this backbone's depth has no loops to stop: "
                "choose none, or depth=looped"
            )

    def check_between(self, layer: int) -> None:
        """Raise ValueError where nothing can be done between a layer and the one before it."""
        raise ValueError(
            f"latent.layer={layer} is one place in a stack of layers that run once each, "
            "but this backbone's depth runs some of them again: choose depth=fixed, or latent=none"
        )

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
        self,
        batch: int,
        max_len: int,
        device: torch.device | str,
        dtype: torch.dtype,
        loops: int,
        some: slice = slice(None),
    ) -> list[Any]:
        """Return empty memory of all calls, or of some."""
        held = [self.block(layer) for layer in self.held(loops)[some]]
        return [block.init_state(batch, max_len, device, dtype) for block in held]

    def cost(self, context: int, loops: int) -> Cost:
        """Cost of one token that sees `context` tokens; weights are read at every call."""
        return self.layers_cost(self.calls(loops), context)

    def layers_cost(self, layers: Sequence[int], context: int) -> Cost:
        """Cost of one position that sees so many, through these layers alone, each once."""
        return total([self.block(layer).cost(context) for layer in layers])

    def layers_prefill_cost(self, layers: Sequence[int], length: int) -> Cost:
        """Cost of reading so many positions at once, through these layers alone, each once."""
        return total([self.block(layer).prefill_cost(length) for layer in layers])

    def forward_only(self, loops: int, window: int | None = None) -> int:
        """Return how many of a training step's first loops are not differentiated.

        `window` is the last loops that are; None is the depth's own.
        """
        window = window or self.gradient_loops
        return 0 if window is None else max(0, loops - window)

    def forward_only_cost(self, length: int, loops: int, window: int | None = None) -> Cost:
        """Cost of what a training step over `length` tokens runs without differentiating it.

        `window` is as in `forward_only`.
        """
        return Cost()

    def finish_cost(self, length: int) -> Cost:
        """Cost of what follows the loops, but the readout."""
        return Cost()

    def prefill_cost(self, length: int, loops: int) -> Cost:
        """Cost of reading `length` tokens at once."""
        return self.layers_prefill_cost(self.calls(loops), length)

    def _run(
        self,
        layers: range,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        first_call: int,
        shared: Shared,
        feed: bool = True,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """Run layers in a row; their states stand in `state` from `first_call` on.

        `shared` is what layers hand on to later ones, one dictionary a forward pass; without `feed`
        the layers' mixers run alone. With `reuse` the inputs are some positions, picked of all, and
        the others show again what they showed last.
        """
        for call, layer in enumerate(layers, start=first_call):
            given = None if state is None else state[call]
            block = self.blocks[self.order[layer]]
            mix = None if reuse is None else reuse.mixing(layer, block.mixer)
            if self.recompute and state is None and mix is None and torch.is_grad_enabled():
                run = partial(_once, block, segments_BT, feed)
                x_BTD = recomputed(run, x_BTD, shared)
            else:
                x_BTD, new = block(x_BTD, segments_BT, given, shared, feed, mix)
                if state is not None:
                    state[call] = new
            if LAYERS in shared:
                shared[LAYERS].append(x_BTD)
        return x_BTD

    def block(self, layer: int) -> Block:
        """Return the block that stands in a layer."""
        block = self.blocks[self.order[layer]]
        assert isinstance(block, Block)
        return block


def _once(
    block: nn.Module, segments_BT: Tensor | None, feed: bool, x_BTD: Tensor, shared: Shared
) -> Tensor:
    """What a block makes of inputs without a state."""
    return block(x_BTD, segments_BT, None, shared, feed)[0]
