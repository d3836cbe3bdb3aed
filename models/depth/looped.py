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

from ..cost import Cost, total
from ..layers import RMSNorm
from .count import CURRICULA, LAWS, CountLaw, grown
from .depth import Depth, DepthConfig, Trajectory, loops_before
from .draws import Draws
from .injection import INJECTIONS
from .relaxation import RELAXATIONS
from .start import STARTS, check_learned_start

ORDERS = ("cycle", "sequence")
OWNERS = ("batch", "sequence")
PARTS = ("block", "mixer")


@dataclass
class LoopedDepthConfig(DepthConfig):
    """Settings of a looped group.

    Attributes:
        prelude: layers that run once before the loop.
        coda: layers that run once after it; all layers between are looped.
        loops: loops at evaluation, and what a training step's count is about.
        order: cycle runs the group again and again, sequence each of its layers in a row.
        part: what of a layer is run again: the whole block, or its mixer, with the feed-forward
            network run once, after the last (then `order` is sequence).
        start: what the loops start from: input, zeros, noise (like the embeddings') or learned.
        injection: how the prelude's output enters each loop: none, add, concat, diagonal, gate,
            residual (the state before the loop is added after it) or lanes.
        norm: RMS-normalise the prelude's output, and the state between loops.
        norm_output: RMS-normalise what each loop makes, the last one too.
        relaxation: what tells loops apart: none, scale, adaln or lora.
        rank: rank of lora.
        count: a training step's count: fixed, uniform, poisson, lognormal_poisson or lognormal.
        count_per: who has a count: the batch, or each sequence; those with few then begin late.
        mean_loops: what the counts are about in training; null is `loops`.
        spread: sigma of a lognormal.
        min_loops: least count of a training step.
        max_loops: most; null is no limit (of uniform: `2 mean - min_loops`).
        curriculum: the mean grows from one loop: none, linear or root (`1 - sqrt(1 - t)`).
        curriculum_share: share of a stage's steps over which it grows.
        loop_from: share of a stage's steps before which nothing is looped.
        gradient_loops: last loops of a training step that are differentiated; those before run
            forward only. Null is all.
        checkpoint: make each loop's activations again in the backward pass rather than keep them.
    """

    kind: str = "looped"
    prelude: int = 0
    coda: int = 0
    loops: int = 4
    order: str = "cycle"
    part: str = "block"
    start: str = "input"
    injection: str = "add"
    norm: bool = True
    norm_output: bool = False
    relaxation: str = "none"
    rank: int = 8
    count: str = "fixed"
    count_per: str = "batch"
    mean_loops: float | None = None
    spread: float = 0.5
    min_loops: int = 1
    max_loops: int | None = None
    curriculum: str = "none"
    curriculum_share: float = 0.5
    loop_from: float = 0.0
    gradient_loops: int | None = None
    checkpoint: bool = False

    def build(
        self, blocks: nn.ModuleList, dim: int, order: Sequence[int] | None = None
    ) -> "LoopedDepth":
        """Make the module; raises ValueError on impossible settings."""
        self._check_group(len(blocks if order is None else order))
        self._check_choices()
        self._check_counts()
        self._check_gradient()
        return LoopedDepth(self, blocks, dim, order)

    def law(self, mean: float | None = None) -> CountLaw:
        """The law of a training step's count."""
        mean = mean or self.mean_loops or self.loops
        return LAWS[self.count](mean, self.spread, self.min_loops, self.max_loops)

    def _check_group(self, num_layers: int) -> None:
        if self.prelude < 0 or self.coda < 0 or self.prelude + self.coda >= num_layers:
            raise ValueError(
                f"depth.prelude={self.prelude} and depth.coda={self.coda} leave nothing to loop "
                f"over {num_layers} layers: their sum must be below backbone.num_layers"
            )

    def _check_choices(self) -> None:
        allowed = {
            "order": ORDERS,
            "part": PARTS,
            "start": STARTS,
            "injection": INJECTIONS,
            "relaxation": RELAXATIONS,
            "count": LAWS,
            "count_per": OWNERS,
            "curriculum": CURRICULA,
        }
        for key, names in allowed.items():
            if getattr(self, key) not in names:
                raise ValueError(
                    f"depth.{key}={getattr(self, key)} is not known: choose {' or '.join(names)}"
                )
        if self.order == "sequence" and (self.injection, self.start) != ("none", "input"):
            raise ValueError(
                f"depth.order=sequence repeats single layers, so depth.injection={self.injection} "
                f"and depth.start={self.start} have no place: set none and input"
            )

        if self.part == "mixer" and self.order != "sequence":
            raise ValueError(
                f"depth.part=mixer runs a layer's mixer again before its feed-forward network, so "
                f"depth.order={self.order} can't be: set sequence"
            )
        if self.count_per == "sequence" and (self.order, self.relaxation) != ("cycle", "none"):
            raise ValueError(
                "depth.count_per=sequence lets sequences begin late, so they are in different loops"
                f" at one time: depth.order={self.order} and depth.relaxation={self.relaxation} "
                "can't be; set cycle and none"
            )

    def _check_counts(self) -> None:
        least_one = {"loops": self.loops, "min_loops": self.min_loops, "rank": self.rank}
        for key, value in least_one.items():
            if value < 1:
                raise ValueError(f"depth.{key}={value} must be at least 1")
        if self.mean_loops is not None and self.mean_loops < 1:
            raise ValueError(f"depth.mean_loops={self.mean_loops} must be at least 1, or null")
        if self.max_loops is not None and self.max_loops < self.min_loops:
            raise ValueError(
                f"depth.min_loops={self.min_loops} must not be above "
                f"depth.max_loops={self.max_loops}"
            )
        if self.count == "fixed" and (self.min_loops, self.max_loops) != (1, None):
            raise ValueError(
                f"depth.min_loops={self.min_loops} and depth.max_loops={self.max_loops} limit "
                "counts that are drawn, but depth.count=fixed draws none: choose another count"
            )
        if self.spread < 0:
            raise ValueError(f"depth.spread={self.spread} must be at least 0")
        for key in ("curriculum_share", "loop_from"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"depth.{key}={getattr(self, key)} must lie between 0 and 1")

    def _check_gradient(self) -> None:
        window = self.gradient_loops
        check_learned_start(self.start, window)
        if window is None:
            return
        if window < 1:
            raise ValueError(
                f"depth.gradient_loops={window} must be at least 1: without a loop that is "
                "differentiated the group never learns"
            )
        most = self.loops if self.count == "fixed" else self.max_loops
        if most is not None and window > most:
            raise ValueError(
                f"depth.gradient_loops={window} is above the {most} loops that a training step "
                "runs at most: lower it, or set null for all"
            )


class LoopedDepth(Depth):
    """Runs the middle layers `loops` times; each loop keeps its own state (`per_loop`)."""

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
        self.output_norm = RMSNorm(dim) if config.norm_output else nn.Identity()
        last = len(self.order) - config.coda
        self.prelude, self.core = range(config.prelude), range(config.prelude, last)
        self.coda = range(last, len(self.order))
        self.start = STARTS[config.start](dim)
        self.injection = INJECTIONS[config.injection](dim, self.from_entry)
        own = [self.block(layer) for layer in self.core]
        relaxed = config.max_loops or max(config.loops, round(config.mean_loops or 0))
        self.relaxation = RELAXATIONS[config.relaxation](own, dim, relaxed, config.rank)

    @property
    def from_entry(self) -> bool:
        """Whether the first loop reads the prelude's output itself."""
        return self.config.start == "input"

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        super().reset_parameters()
        for norm in (self.entry_norm, self.loop_norm, self.output_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()
        for part in (self.start, self.injection, self.relaxation):
            part.reset_parameters()

    def calls(self, loops: int) -> list[int]:
        """Return prelude, the core `loops` times, coda."""
        if self.config.order == "sequence":
            looped = [layer for layer in self.core for _ in range(loops)]
        else:
            looped = list(self.core) * loops
        return [*self.prelude, *looped, *self.coda]

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        state: list[Any] | None,
        loops: int,
        record: bool = False,
        draws: Draws | None = None,
    ) -> tuple[Tensor, list[Any] | None, Trajectory]:
        """Run prelude, loops and coda."""
        trajectory, shared = Trajectory(loops, len(self.calls(loops))), {}
        entry_BTD = self.entry_norm(self._run(self.prelude, x_BTD, segments_BT, state, 0, shared))
        run = _Run(segments_BT, state, loops, shared, trajectory if record else None, draws)
        looped = self._in_sequence if self.config.order == "sequence" else self._in_cycles
        hidden_BTD = looped(entry_BTD, run)
        call = len(self.prelude) + loops * len(self.core)
        hidden_BTD = self._run(self.coda, hidden_BTD, segments_BT, state, call, shared)
        return hidden_BTD, state, trajectory

    def _in_cycles(self, entry_BTD: Tensor, run: "_Run") -> Tensor:
        """Run the group `loops` times; the loops before the gradient's window forward only."""
        learns = run.draws is not None and torch.is_grad_enabled()
        before = self.forward_only(run.loops) if learns else 0
        waits_B = self._waits(run, entry_BTD.device)
        hidden = self.injection.begin(self.start(entry_BTD, run.draws))
        for loop in range(run.loops):
            with torch.set_grad_enabled(torch.is_grad_enabled() and loop >= before):
                changed = self._loop(loop, hidden, entry_BTD, run, waits_B)
            hidden = changed if waits_B is None else _where(waits_B <= loop, changed, hidden)
            if run.trajectory is not None:
                run.trajectory.states.append(self.injection.finish(hidden))
        return self.injection.finish(hidden)

    def _waits(self, run: "_Run", device: torch.device) -> Tensor | None:
        """Loops that each row waits for the others, so that all end together; None is none."""
        if run.draws is None or self.config.count_per == "batch":
            return None
        counts = self.counts(run.draws)
        return torch.tensor([run.loops - counts[row] for row in run.draws.own()], device=device)

    def _loop(
        self, loop: int, hidden: Tensor, entry_BTD: Tensor, run: "_Run", waits_B: Tensor | None
    ) -> Tensor:
        """What one loop makes of a state."""
        x_BTD = self._entered(loop, hidden, entry_BTD, waits_B)
        x_BTD = self.relaxation.enter(x_BTD, loop, run.loops)
        call = len(self.prelude) + loop * len(self.core)
        given = (self.core, x_BTD, run.segments_BT, run.state, call, run.shared)
        if self.config.checkpoint and torch.is_grad_enabled() and run.state is None:
            made_BTD = checkpoint(self._again, loop, *given, use_reentrant=False)
        else:
            made_BTD = self._run(*given)
        return self.injection.leave(hidden, self.output_norm(made_BTD))

    def _entered(
        self, loop: int, hidden: Tensor, entry_BTD: Tensor, waits_B: Tensor | None
    ) -> Tensor:
        """What the group reads: the prelude's output in a row's first loop, if it starts there."""
        if loop == 0 and self.from_entry:
            return entry_BTD
        x_BTD = self.injection.enter(self.loop_norm(hidden), entry_BTD)
        if waits_B is None or not self.from_entry:
            return x_BTD
        return _where(waits_B == loop, entry_BTD, x_BTD)

    def _again(self, loop: int, *given: Any) -> Tensor:
        """Run the group under the loop's own relaxation, when its activations are remade too."""
        self.relaxation.choose(loop)
        return self._run(*given)

    def _in_sequence(self, entry_BTD: Tensor, run: "_Run") -> Tensor:
        """Run each layer of the group `loops` times in a row."""
        hidden_BTD, call = entry_BTD, len(self.prelude)
        for layer in self.core:
            for loop in range(run.loops):
                if loop:
                    hidden_BTD = self.loop_norm(hidden_BTD)
                x_BTD = self.relaxation.enter(hidden_BTD, loop, run.loops)
                at = (range(layer, layer + 1), x_BTD, run.segments_BT, run.state, call, run.shared)
                feed = self.config.part == "block" or loop == run.loops - 1
                hidden_BTD = self.output_norm(self._run(*at, feed))
                call += 1
            if run.trajectory is not None:
                run.trajectory.states.append(hidden_BTD)
        return hidden_BTD

    def forward_only(self, loops: int) -> int:
        """Loops of a training step that are not differentiated."""
        return loops_before(self.config.gradient_loops, loops)

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

    def cost(self, context: int, loops: int) -> Cost:
        """Cost of one token: the blocks' at every call, and what stands between loops."""
        calls = zip(self.calls(loops), self._feeds(loops), strict=True)
        blocks = [self.block(layer).cost(context, feed) for layer, feed in calls]
        return total(blocks) + self._between(loops)

    def prefill_cost(self, length: int, loops: int) -> Cost:
        """Cost of reading `length` tokens at once."""
        calls = zip(self.calls(loops), self._feeds(loops), strict=True)
        blocks = [self.block(layer).prefill_cost(length, feed) for layer, feed in calls]
        between = self._between(loops)
        once = Cost(0, between.weight_bytes, between.state_bytes)
        return total(blocks) + once + Cost(flops=length * between.flops)

    def _feeds(self, loops: int) -> list[bool]:
        """Whether each call runs the feed-forward network too."""
        each = [self.config.part == "block"] * (loops - 1) + [True]
        looped = each * len(self.core)
        return [True] * len(self.prelude) + looped + [True] * len(self.coda)

    def forward_only_cost(self, length: int, loops: int) -> Cost:
        """Cost of those loops of a training step that are not differentiated."""
        blocks = [self.block(layer).prefill_cost(length) for layer in self.core]
        return self.forward_only(loops) * total(blocks)

    def _between(self, loops: int) -> Cost:
        every = self.injection.leave_flops + self.relaxation.flops
        flops = loops * every + (loops - self.from_entry) * self.injection.flops
        own = (self.entry_norm, self.loop_norm, self.output_norm, self.start, self.injection)
        weights = sum(p.numel() for part in (*own, self.relaxation) for p in part.parameters())
        return Cost(flops, 4 * weights)


@dataclass
class _Run:
    """What stays the same over the loops of one forward pass."""

    segments_BT: Tensor | None
    state: list[Any] | None
    loops: int
    shared: dict[str, Tensor]
    trajectory: Trajectory | None
    draws: Draws | None


def _where(chosen_B: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose by row."""
    return torch.where(chosen_B.view(-1, *[1] * (one.dim() - 1)), one, other)
