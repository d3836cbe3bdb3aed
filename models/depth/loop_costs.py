"""What a looped group costs, whether all tokens run all loops or stop where they may.

Legend: none; this file counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import nn

from ..block import Block
from ..cost import Cost, total
from .depth import Depth
from .halting import Halting
from .injection import Injection
from .looped_config import LoopSettings
from .memory import EXACT
from .relaxation import Relaxation
from .routing import Route
from .start import Start
from .stop import Stop


class LoopCosts(Depth):
    """A depth of prelude, looped group and coda, as far as its costs go.

    Attributes:
        config: its settings.
        prelude: layers before the group; `core` those of it, `coda` those after it.
        capacities: share of tokens that runs each loop after the first, where it is routed.
    """

    config: LoopSettings
    prelude: range
    core: range
    coda: range
    capacities: list[float]
    start: Start
    injection: Injection
    relaxation: Relaxation
    halting: Halting | None
    route: Route | None
    entry_norm: nn.Module
    loop_norm: nn.Module
    output_norm: nn.Module

    @property
    def from_entry(self) -> bool:
        """Whether the first loop reads the prelude's output itself."""
        return self.config.start == "input"

    def reuses(self, stop: Stop) -> bool:
        """Whether what stopped goes on showing what it showed last."""
        return (stop.holes or self.config.holes) == "reuse"

    def cost(self, context: int, loops: int) -> Cost:
        """Cost of one token: the blocks' at every call, and what stands between loops."""
        calls = zip(self.calls(loops), self._feeds(loops), strict=True)
        blocks = [self.block(layer).cost(context, feed) for layer, feed in calls]
        return self._keeping(total(blocks), context, loops) + self.between(loops)

    def prefill_cost(self, length: int, loops: int) -> Cost:
        """Cost of reading `length` tokens at once; a router lets on what its capacities say."""
        if self.route is not None:
            return self._routed_cost(length, loops)
        calls = zip(self.calls(loops), self._feeds(loops), strict=True)
        blocks = [self.block(layer).prefill_cost(length, feed) for layer, feed in calls]
        between = self.between(loops)
        once = Cost(0, between.weight_bytes, between.state_bytes)
        blocks = self._keeping(total(blocks), length, loops)
        return blocks + once + Cost(flops=length * between.flops)

    def _routed_cost(self, length: int, loops: int) -> Cost:
        """Each loop reads its share of the tokens, rounded up."""
        shares = [1.0, *self.capacities, *self.capacities[-1:] * loops][:loops]
        lengths = {layer: [length] for layer in (*self.prelude, *self.coda)}
        lengths |= {layer: [math.ceil(share * length) for share in shares] for layer in self.core}
        blocks = [self.block(x).prefill_cost(n) for x, each in lengths.items() for n in each]
        between = self.between(loops)
        return total(blocks) + Cost(length * between.flops, between.weight_bytes)

    def _keeping(self, cost: Cost, context: int, loops: int) -> Cost:
        """Count the bytes of the memories that are kept, where not every call keeps its own."""
        if self.config.memory in EXACT:
            return cost
        held = [self.block(layer).cost(context).state_bytes for layer in self.held(loops)]
        return replace(cost, state_bytes=sum(held))

    def _feeds(self, loops: int) -> list[bool]:
        """Whether each call runs the feed-forward network too."""
        each = [self.config.part == "block"] * (loops - 1) + [True]
        looped = each * len(self.core)
        return [True] * len(self.prelude) + looped + [True] * len(self.coda)

    def forward_only_cost(self, length: int, loops: int, window: int | None = None) -> Cost:
        """Cost of those loops of a training step that are not differentiated."""
        before = self.forward_only(loops, window)
        if not before:
            return Cost()
        blocks = [self.block(layer).prefill_cost(length) for layer in self.core]
        every = self.injection.leave_flops + self.relaxation.flops
        between = before * every + (before - self.from_entry) * self.injection.flops
        return before * total(blocks) + Cost(flops=length * between)

    def finish_cost(self, length: int) -> Cost:
        """Cost of the coda."""
        return total([self.block(layer).prefill_cost(length) for layer in self.coda])

    def between(self, loops: int) -> Cost:
        """Cost of what stands between the blocks, for a token that runs so many loops."""
        every = self.injection.leave_flops + self.relaxation.flops
        flops = loops * every + (loops - self.from_entry) * self.injection.flops
        carried = sum(self.block(layer).mixer.carried_flops for layer in self.core)
        flops += max(0, loops - 1) * carried
        if self.halting is not None:
            flops += loops * self.halting.flops
        if self.route is not None:
            flops += self.route.flops
        own = (self.entry_norm, self.loop_norm, self.output_norm, self.start, self.injection)
        parts = [part for part in (*own, self.relaxation, self.halting, self.route) if part]
        weights = sum(p.numel() for part in parts for p in part.parameters())
        return Cost(flops, 4 * weights)


@dataclass(frozen=True)
class Spent:
    """What positions cost that ran different numbers of loops.

    Attributes:
        flops: model FLOPs, without the last readout.
        block_calls: passes through blocks, times positions that were run.
        serial_calls: passes that had to wait for one another; the prompt's positions don't.
        readouts: times that a rule read a position out.
    """

    flops: float
    block_calls: int
    serial_calls: int
    readouts: int


class ExitCosts:
    """Counts what positions cost that ran different numbers of loops.

    A loop's layers see the positions that reached it; where holes are filled, all of them. What a
    position costs that sees so many is computed once.

    Args:
        depth: whose positions they are.
        loops: loops that were allowed.
        stop: the rule that stopped them.
    """

    def __init__(self, depth: LoopCosts, loops: int, stop: Stop) -> None:
        self.depth, self.loops, self.stop = depth, loops, stop
        self.fills = depth.reuses(stop)
        once = [depth.block(layer) for layer in (*depth.prelude, *depth.coda)]
        core = [depth.block(layer) for layer in depth.core]
        self._once_flops = cache(lambda context: _flops(once, context))
        self._loop_flops = cache(lambda context: _flops(core, context))
        self._between_flops = cache(lambda count: depth.between(count).flops)

    def spent(self, exits: Sequence[int], prompt: int) -> Spent:
        """Return what the positions of a document cost that ran these numbers of loops, in order.

        The first `prompt` of them were read at once.
        """
        flops, reached = 0.0, [0] * self.loops
        for context, count in enumerate(exits, start=1):
            flops += self._once_flops(context) + self._between_flops(count)
            for loop in range(count):
                reached[loop] += 1
                flops += self._loop_flops(context if self.fills else reached[loop])
        return Spent(flops, *self._calls(exits, prompt), self._readouts(exits))

    def _calls(self, exits: Sequence[int], prompt: int) -> tuple[int, int]:
        """Passes through blocks: of all positions, and those that waited for one another."""
        depth, ran = self.depth, list(exits)
        one_by_one = [max(ran[:prompt], default=0), *ran[prompt:]]
        once, core = len(depth.prelude) + len(depth.coda), len(depth.core)
        calls, serial = (once * len(part) + core * sum(part) for part in (ran, one_by_one))
        return calls, serial

    def _readouts(self, exits: Sequence[int]) -> int:
        """Times that the rule read out: after every loop but the last allowed."""
        if not self.stop or not self.stop.kind.reads:
            return 0
        return sum(min(count, self.loops - 1) for count in exits)


def _flops(blocks: Sequence[Block], context: int) -> float:
    """FLOPs of one token in these blocks, where it sees so many."""
    return sum(block.cost(context).flops for block in blocks)
