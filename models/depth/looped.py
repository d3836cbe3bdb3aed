"""A group of blocks run several times: prelude, looped core, coda.

    e = norm_e(prelude(x))
    h_1 = core(e)                                      where it starts from the input; else
    h_r = core(relax_r(inject(norm_h(h_{r-1}), e)))    y = coda(h_R)

How it starts, what injects, what tells loops apart, how often it runs and how far back the gradient
goes are independent choices; published designs are configs of them (`configs/depth`). Both terms of
an injection are normalised, so that neither drowns the other (Parcae's prelude norm, arXiv
2604.12946); with `norm: false` both norms are identities, and one loop is the plain stack. A count
that varies in training keeps the loop usable at other counts; a fixed one collapses away from it.

Legend: B batch, T time, D width, R recurrence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import RMSNorm
from ..shared import Shared
from .adaptive_config import check_stop
from .count import grown
from .cycles import Cycles, Given
from .depth import LAYERS, Asked, Trajectory
from .draws import Draws
from .halting import HALTINGS
from .injection import INJECTIONS
from .loop_costs import LoopCosts
from .looped_config import LoopSettings
from .memory import EXACT, kept_states, state_of
from .relaxation import RELAXATIONS
from .routing import ROUTES, linear_capacities
from .start import STARTS
from .stop import Stop


@dataclass
class LoopedDepthConfig(LoopSettings):
    """Settings of a looped group; see `LoopSettings`."""

    def build(
        self, blocks: nn.ModuleList, dim: int, order: Sequence[int] | None = None
    ) -> "LoopedDepth":
        """Make the module; raises ValueError on impossible settings."""
        self.check(len(blocks if order is None else order))
        return LoopedDepth(self, blocks, dim, order)


class LoopedDepth(LoopCosts):
    """Runs the middle layers `loops` times."""

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
        self.default_loops, self.default_stop = config.loops, Stop.parse(config.stop)
        self.gradient_loops = config.gradient_loops
        self.entry_norm, self.loop_norm = (
            RMSNorm(dim) if config.norm else nn.Identity() for _ in range(2)
        )
        self.output_norm = RMSNorm(dim) if config.norm_output else nn.Identity()
        last = len(self.order) - config.coda
        self.prelude, self.core = range(config.prelude), range(config.prelude, last)
        self.coda = range(last, len(self.order))
        self.looped = self.core
        self.start = STARTS[config.start](dim)
        self.injection = INJECTIONS[config.injection](dim, self.from_entry)
        own = [self.block(layer) for layer in self.core]
        relaxed = config.max_loops or max(config.loops, round(config.mean_loops or 0))
        self.relaxation = RELAXATIONS[config.relaxation](own, dim, relaxed, config.rank)
        self.halting = self.route = None
        if config.halting != "none":
            gate = (config.halting_bias, config.halting_prior, config.halting_rate)
            self.halting = HALTINGS[config.halting](dim, *gate)
        if config.route != "none":
            self.capacities = config.capacity or linear_capacities(config.loops)
            self.route = ROUTES[config.route](dim, self.capacities)
        self.keeps_rows = (
            config.start == "noise" or config.count_per == "sequence" or config.route == "expert"
        )
        self._set_memory()

    def _set_memory(self) -> None:
        """Let mixers read the earlier loop's memory, or check that they can show keys again."""
        own = {layer: self.block(layer).mixer for layer in self.core}
        names = ", ".join(dict.fromkeys(type(mixer).__name__ for mixer in own.values()))
        if self.config.memory == "carry":
            carrying = [mixer.carry(f"carry.{layer}") for layer, mixer in own.items()]
            if not any(carrying):
                raise ValueError(
                    f"depth.memory=carry: none of {names} has a recurrent memory that another loop "
                    "can read: choose gdn, deltanet, kda, gdn2 or mamba2, or memory=per_loop"
                )
        self._check_reuse(self.config.holes, f"depth.holes={self.config.holes}")

    def _check_reuse(self, holes: str, said: str) -> None:
        """Raise ValueError where stopped tokens keep no keys to show again."""
        blocks = [self.block(layer) for layer in self.core]
        if holes == "reuse" and not all(b.mixer.shown_width and not b.canon for b in blocks):
            names = ", ".join(dict.fromkeys(type(block.mixer).__name__ for block in blocks))
            raise ValueError(
                f"{said} shows a stopped token's keys again, which is for layers of attention "
                f"without canon, not for {names}: choose skip"
            )

    def check_stop(self, stop: Stop) -> None:
        """Raise ValueError where a rule has nothing to go by."""
        if stop and self.config.order == "sequence":
            raise ValueError(
                f"stop={stop.text} stops whole groups, but depth.order=sequence repeats layers"
            )
        check_stop(self.config, stop, f"stop={stop.text}")
        self._check_reuse(stop.holes, f"stop={stop.text}")

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        super().reset_parameters()
        for norm in (self.entry_norm, self.loop_norm, self.output_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()
        for part in (self.start, self.injection, self.relaxation, self.halting, self.route):
            if part is not None:
                part.reset_parameters()

    def calls(self, loops: int) -> list[int]:
        """Return prelude, the core `loops` times, coda."""
        return self._laid_out(loops)

    def held(self, loops: int) -> list[int]:
        """Return prelude, the core for each memory that it keeps, coda."""
        return self._laid_out(kept_states(self.config.memory, self.config.memory_budget, loops))

    def _laid_out(self, times: int) -> list[int]:
        if self.config.order == "sequence":
            looped = [layer for layer in self.core for _ in range(times)]
        else:
            looped = list(self.core) * times
        return [*self.prelude, *looped, *self.coda]

    def calls_of(self, loop: int, loops: int) -> range:
        """Return where the states of a loop stand."""
        place, _ = state_of(self.config.memory, self.config.memory_budget, loop, loops)
        first = len(self.prelude) + place * len(self.core)
        return range(first, first + len(self.core))

    def calls_of_all(self, loops: int) -> range:
        """Return where the states of all loops stand."""
        first = len(self.prelude)
        return range(first, len(self.held(loops)) - len(self.coda))

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        asked: Asked,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run prelude, loops and coda."""
        loops = asked.loops
        trajectory, shared = Trajectory(loops, len(self.calls(loops))), asked.begin_shared()
        entry_BTD = self.entry_norm(self._run(self.prelude, x_BTD, segments_BT, state, 0, shared))
        given = Given(entry_BTD, segments_BT, state, shared)
        if self.config.order == "sequence":
            hidden_BTD = self._in_sequence(given, asked, trajectory)
        else:
            hidden_BTD = Cycles(self, given, asked, trajectory).run()
        if asked.record:
            self._add_ways_on(given, asked, trajectory)
        call = self.calls_of_all(loops).stop
        hidden_BTD = self._run(self.coda, hidden_BTD, segments_BT, state, call, shared)
        trajectory.layers = shared.get(LAYERS, [])
        return hidden_BTD, state, trajectory

    def _add_ways_on(self, given: Given, asked: Asked, trajectory: Trajectory) -> None:
        """Let an objective read any loop's state out, and run the last loop again."""
        shared, segments_BT = Shared(given.shared), given.segments_BT

        def finish(hidden_BTD: Tensor) -> Tensor:
            return self._run(self.coda, hidden_BTD, segments_BT, None, 0, Shared(shared))

        def step(hidden_BTD: Tensor) -> Tensor:
            again = Given(given.entry_BTD, segments_BT, None, Shared(shared))
            return self.loop(asked.loops - 1, hidden_BTD, again, asked, None)

        trajectory.finish = finish
        if given.state is None and self.config.order == "cycle":
            trajectory.step = step

    def loop(
        self, loop: int, state: Tensor, given: Given, asked: Asked, waits_B: Tensor | None
    ) -> Tensor:
        """Return what one loop makes of a state."""
        x_BTD = self._entered(loop, state, given.entry_BTD, waits_B)
        x_BTD = self.relaxation.enter(x_BTD, loop, asked.loops)
        if self.config.checkpoint and torch.is_grad_enabled() and given.state is None:
            made_BTD = checkpoint(self._again, loop, x_BTD, given, asked.loops, use_reentrant=False)
            assert isinstance(made_BTD, Tensor)
        else:
            made_BTD = self._group(loop, x_BTD, given, asked.loops)
        return self.injection.leave(state, self.output_norm(made_BTD))

    def _group(self, loop: int, x_BTD: Tensor, given: Given, loops: int) -> Tensor:
        """Run the group on the memories of a loop."""
        calls, states = self.calls_of(loop, loops), given.state
        if states is not None:
            states = self._lent(loop, loops, states, given, len(x_BTD))
        own = (given.segments_BT, states, calls.start, given.shared)
        return self._run(self.core, x_BTD, *own, reuse=given.reuse)

    def _lent(self, loop: int, loops: int, states: list[Any], given: Given, rows: int) -> list[Any]:
        """The memories that a loop may change: copies, where what it leaves isn't kept.

        All loops read what was there before this call, so the first one's, if it is the one that is
        kept, is set aside.
        """
        if self.config.memory in EXACT:
            return states
        calls = self.calls_of(loop, loops)
        every = torch.arange(rows, device=given.entry_BTD.device)
        if self.config.memory == "first" and loop == 0:
            given.before = {call: states[call].take(every) for call in calls}
            return states
        _, kept = state_of(self.config.memory, self.config.memory_budget, loop, loops)
        if kept:
            return states
        lent = list(states)
        for call in calls:
            lent[call] = (given.before.get(call) or states[call]).take(every)
        return lent

    def _entered(
        self, loop: int, state: Tensor, entry_BTD: Tensor, waits_B: Tensor | None
    ) -> Tensor:
        """What the group reads: the prelude's output in a row's first loop, if it starts there."""
        if loop == 0 and self.from_entry:
            return entry_BTD
        x_BTD = self.injection.enter(self.loop_norm(state), entry_BTD)
        if waits_B is None or not self.from_entry:
            return x_BTD
        return torch.where((waits_B == loop)[:, None, None], entry_BTD, x_BTD)

    def _again(self, loop: int, x_BTD: Tensor, given: Given, loops: int) -> Tensor:
        """Run the group under the loop's own relaxation, when its activations are remade too."""
        self.relaxation.choose(loop)
        return self._group(loop, x_BTD, given, loops)

    def waits(self, asked: Asked, device: torch.device) -> Tensor | None:
        """Loops that each row waits for the others, so that all end together; None is none."""
        if asked.draws is None or self.config.count_per == "batch":
            return None
        counts = self.counts(asked.draws)
        own = asked.draws.own()
        return torch.tensor([asked.loops - counts[row] for row in own], device=device)

    def _in_sequence(self, given: Given, asked: Asked, trajectory: Trajectory) -> Tensor:
        """Run each layer of the group `loops` times in a row."""
        hidden_BTD, call = given.entry_BTD, len(self.prelude)
        for layer in self.core:
            for loop in range(asked.loops):
                if loop:
                    hidden_BTD = self.loop_norm(hidden_BTD)
                x_BTD = self.relaxation.enter(hidden_BTD, loop, asked.loops)
                at = (x_BTD, given.segments_BT, given.state, call, given.shared)
                feed = self.config.part == "block" or loop == asked.loops - 1
                hidden_BTD = self.output_norm(self._run(range(layer, layer + 1), *at, feed))
                call += 1
            if asked.record:
                trajectory.states.append(hidden_BTD)
        return hidden_BTD

    def counts(self, draws: Draws) -> list[int]:
        """Draw the count of a training step, or of each row of its batch."""
        config = self.config
        if draws.progress < config.loop_from:
            return [1] * (1 if config.count_per == "batch" else draws.rows)
        share = draws.progress / config.curriculum_share if config.curriculum_share else 1.0
        law = config.law(grown(config.mean_loops or config.loops, config.curriculum, share))
        if config.count_per == "batch":
            return [law.draw(draws.key("loops"))]
        return [law.draw(draws.row_key("loops", row)) for row in range(draws.rows)]

    def spectral_bound(self) -> float | None:
        """That of the injection."""
        return self.injection.spectral_bound()
