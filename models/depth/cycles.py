"""One pass of a looped group in cycles: who runs each loop, and what follows it.

Legend: B batch, T time, D width, N tokens still running.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..processes import in_any_process
from ..segments import row_means
from ..shared import Shared
from .depth import LAYERS, Asked, Trajectory
from .going import (
    Group,
    Reuse,
    all_in_one,
    forget_ended,
    of_equal_counts,
    one_padding,
    put_states,
    take_states,
)
from .stop import Look

if TYPE_CHECKING:
    from .looped import LoopedDepth


@dataclass
class Given:
    """What the blocks of a loop are handed beside the states that they change.

    Attributes:
        entry_BTD: the prelude's output, normalised.
        segments_BT: document ids.
        state: memories of all calls; None trains or scores from scratch.
        shared: what layers hand on.
        reuse: where holes are filled, which positions run among all; None where they are skipped.
        before: memories as they were before this call, by place, where they are needed again.
    """

    entry_BTD: Tensor
    segments_BT: Tensor | None
    state: list[Any] | None
    shared: Shared
    reuse: Reuse | None = None
    before: dict[int, Any] = field(default_factory=dict)


class Cycles:
    """Runs the group until no token goes on, or all loops are run.

    Args:
        depth: whose group it is.
        given: what its blocks are handed.
        asked: what the pass is asked for.
        trajectory: where what ran is noted.

    Attributes:
        active_BT: which tokens go on; only where they may run different numbers of loops.
        exits_BT: loops that each has run; only there.
    """

    active_BT: Tensor
    exits_BT: Tensor

    def __init__(
        self, depth: "LoopedDepth", given: Given, asked: Asked, trajectory: Trajectory
    ) -> None:
        self.depth, self.given, self.asked, self.trajectory = depth, given, asked, trajectory
        self.learns = asked.draws is not None
        self.stop = None if self.learns or not asked.stop else asked.stop.begin()
        self.halting = None if depth.halting is None else depth.halting.begin()
        self.route = None
        if depth.route is not None:
            self.route = depth.route.begin(given.entry_BTD, given.segments_BT, self.learns)
        self.waits_B = depth.waits(asked, given.entry_BTD.device)
        self.reuses = self.stop is not None and depth.reuses(asked.stop)
        self.shown: dict[int, Tensor] = {}
        if self.varies:
            self.active_BT = torch.ones_like(given.entry_BTD[..., 0], dtype=torch.bool)
            self.exits_BT = torch.zeros_like(self.active_BT, dtype=torch.long)

    def run(self) -> Tensor:
        """Run the loops; return what follows them, `[B, T, D]`."""
        depth, loops = self.depth, self.asked.loops
        before = depth.forward_only(loops, self.asked.gradient_loops) if self.learns else 0
        state = depth.injection.begin(depth.start(self.given.entry_BTD, self.asked.draws))
        seen_BTD = depth.injection.finish(state)
        for loop in range(loops):
            if loop and not self._any_goes_on(loop, seen_BTD):
                break
            with torch.set_grad_enabled(torch.is_grad_enabled() and loop >= before):
                state = self._advance(loop, state)
            earlier_BTD, seen_BTD = seen_BTD, depth.injection.finish(state)
            self._note(loop, earlier_BTD, seen_BTD)
        self._finish()
        return seen_BTD if self.halting is None else self.halting.finish(seen_BTD)

    # Who runs a loop

    @property
    def varies(self) -> bool:
        """Whether tokens may run different numbers of loops."""
        return self.stop is not None or self.route is not None

    def _any_goes_on(self, loop: int, seen_BTD: Tensor) -> bool:
        """Let the router choose; say whether the loop has anything to do."""
        if not self.varies:
            return True
        if self.route is not None:
            self.active_BT = self.route.goes_on(loop, seen_BTD, self.active_BT)
        if self.reuses and self.given.state is not None:
            return True  # deeper memories are to hold what stopped, too
        any_here = self.active_BT.any()
        return in_any_process(any_here) if self.learns else bool(any_here)

    # What a loop does

    def _advance(self, loop: int, state: Tensor) -> Tensor:
        """Return the state after a loop: changed where positions run it."""
        if self.reuses:
            changed = self._reusing(loop, state)
        elif loop == 0 or not self.varies:
            changed = self.depth.loop(loop, state, self.given, self.asked, self.waits_B)
        else:
            changed = self._among_active(loop, state)
        if self.waits_B is not None:
            return _where(self.waits_B <= loop, changed, state)
        if loop and self.route is not None:
            weight_BT1 = self.route.weight()[..., None]
            changed = state + weight_BT1.view(*weight_BT1.shape, *[1] * (state.dim() - 3)) * (
                changed - state
            )
        return changed if loop == 0 or not self.varies else _at(self.active_BT, changed, state)

    def _among_active(self, loop: int, state: Tensor) -> Tensor:
        """Run the active positions alone; the states of rows without any stay as they are."""
        given, calls = self.given, self.depth.calls_of(loop, self.asked.loops)
        if given.state is None:
            some = bool(self.active_BT.any())
            groups = [
                all_in_one(self.active_BT, given.segments_BT)
                if some
                else one_padding(self.active_BT)
            ]
        else:
            groups = of_equal_counts(self.active_BT, given.segments_BT)
        for group in groups:
            inside = self._inside(group)
            if given.state is not None:
                inside = replace(inside, state=take_states(given.state, calls, group))
            made = self.depth.loop(loop, group.pick(state), inside, self.asked, None)
            state = group.place(state, made)
            if given.state is not None and inside.state is not None:
                put_states(given.state, calls, group, inside.state)
        return state

    def _reusing(self, loop: int, state: Tensor) -> Tensor:
        """Run the active positions among all; every state reads all of them."""
        given, segments_BT = self.given, self.given.segments_BT
        group = all_in_one(self.active_BT, segments_BT)
        shape = (state.shape[0], state.shape[1])
        inside = replace(
            self._inside(group),
            reuse=Reuse(group, segments_BT, shape, self.shown),
            state=given.state,
        )
        made = self.depth.loop(loop, group.pick(state), inside, self.asked, None)
        return group.place(state, made)

    def _inside(self, group: Group) -> Given:
        """What the blocks are handed for a group alone."""
        given = self.given
        shared = Shared({k: group.pick(x) for k, x in given.shared.items() if k != LAYERS})
        entry = group.pick(given.entry_BTD)
        return replace(given, entry_BTD=entry, segments_BT=group.segments_GM, shared=shared)

    # What follows it

    def _note(self, loop: int, earlier_BTD: Tensor, seen_BTD: Tensor) -> None:
        last = loop == self.asked.loops - 1
        if self.asked.record:
            self.trajectory.states.append(seen_BTD)
        if self.varies:
            self.exits_BT += self.active_BT
        if self.halting is not None and self.depth.halting is not None:
            gate = self.depth.halting
            lambda_BT = _on(self.active_BT, gate, seen_BTD) if self.varies else gate(seen_BTD)
            self.trajectory.halts.append(lambda_BT)
            self.halting.add(lambda_BT, seen_BTD, last)
        if self.varies and self.given.segments_BT is not None:
            self.active_BT = self.active_BT & (self.given.segments_BT >= 0)  # padding runs one loop
        if self.stop is not None and not last and self.active_BT.any():
            self._stop(earlier_BTD, seen_BTD)

    def _stop(self, earlier_BTD: Tensor, seen_BTD: Tensor) -> None:
        """Take out the tokens that the rule stops."""
        assert self.stop is not None
        look = Look(earlier_BTD[self.active_BT], seen_BTD[self.active_BT])
        if self.stop.reads:
            assert self.asked.read is not None
            look.logits_NV = self.asked.read(look.after_ND)
        if self.halting is not None:
            look.halted_N = self.halting.halted_BT[self.active_BT]
        running_N = ~self.stop.stops(look)
        self.stop.drop(running_N)
        self.active_BT = self.active_BT.masked_scatter(self.active_BT, running_N)

    def _finish(self) -> None:
        """Note who ran what, what training charges, and clear memories of documents that ended."""
        given, trajectory = self.given, self.trajectory
        if self.varies:
            trajectory.exits_BT = self.exits_BT
            if given.state is not None:
                calls = self.depth.calls_of_all(self.asked.loops)
                forget_ended(given.state, calls, given.segments_BT)
        if self.learns and torch.is_grad_enabled():
            trajectory.losses |= self._losses()

    def _losses(self) -> dict[str, Tensor]:
        config, losses = self.depth.config, {}
        if self.depth.halting is not None:
            charged_BT = self.depth.halting.cost(self.trajectory.halts)
            losses["halting"] = config.halting_weight * self._mean(charged_BT)
        if self.route is not None and self.route.loss_BT is not None:
            losses["routing"] = config.route_weight * self._mean(self.route.loss_BT)
        return losses

    def _mean(self, charged_BT: Tensor) -> Tensor:
        """Mean over the tokens of each row, then over rows."""
        return row_means(charged_BT, self.given.segments_BT).mean()


def _on(active_BT: Tensor, function: Any, x_BTD: Tensor) -> Tensor:
    """Apply to the active positions; zero elsewhere."""
    made_N = function(x_BTD[active_BT])
    return torch.zeros_like(x_BTD[..., 0], dtype=made_N.dtype).masked_scatter(active_BT, made_N)


def _where(chosen_B: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose by row."""
    return torch.where(chosen_B.view(-1, *[1] * (one.dim() - 1)), one, other)


def _at(chosen_BT: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose by position."""
    return torch.where(chosen_BT.view(*chosen_BT.shape, *[1] * (one.dim() - 2)), one, other)
