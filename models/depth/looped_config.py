"""Settings of a looped group, and which of them can't go together.

Legend: none; this file moves settings, not tensors.
"""

from dataclasses import dataclass

from .adaptive_config import check_adaptive
from .count import CURRICULA, LAWS, CountLaw
from .depth import DepthConfig
from .halting import HALTINGS, PRIORS
from .injection import INJECTIONS
from .memory import MEMORIES
from .relaxation import RELAXATIONS
from .routing import ROUTES
from .start import STARTS, check_learned_start
from .stop import HOLES

ORDERS = ("cycle", "sequence")
OWNERS = ("batch", "sequence")
PARTS = ("block", "mixer")


@dataclass
class LoopSettings(DepthConfig):
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
        halting: a learned gate that says where a token stops: none, gate (the state of that loop)
            or act (a mean over loops).
        halting_bias: where the gate begins, before its sigmoid.
        halting_prior: what the gate's distribution over loops is drawn to: uniform or geometric.
        halting_rate: chance of stopping after a loop, under the geometric prior.
        halting_weight: weight of the divergence from the prior; of act, of the cost of pondering.
        stop: when a token stops at evaluation: none, or gate, kl, entropy, margin, argmax or
            fixed_point with its number, as in kl:0.01 (see `models.depth.stop`).
        holes: what a deeper loop finds where a token stopped: nothing (skip), or what the token
            showed last (reuse; attention only). A stop may name another: kl:0.01/skip.
        route: which tokens go on, in training too: all (none), or by expert or token choice.
        capacity: share of each document's tokens that runs each loop after the first (of expert);
            null is an even decline.
        route_weight: weight of the loss that teaches expert choice to do without the future.
        memory: which loops' memories are kept: per_loop, carry, last, first or budget.
        memory_budget: states that a budget keeps.
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
    halting: str = "none"
    halting_bias: float = 0.0
    halting_prior: str = "uniform"
    halting_rate: float = 0.2
    halting_weight: float = 0.05
    stop: str = "none"
    holes: str = "skip"
    route: str = "none"
    capacity: list[float] | None = None
    route_weight: float = 0.01
    memory: str = "per_loop"
    memory_budget: int = 4

    def check(self, num_layers: int) -> None:
        """Raise ValueError on impossible settings."""
        self._check_group(num_layers)
        self._check_choices()
        self._check_counts()
        self._check_gradient()
        check_adaptive(self)

    @property
    def most_loops(self) -> int | None:
        """Most loops of a training step; None is no limit."""
        return self.loops if self.count == "fixed" else self.max_loops

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
            "halting": ("none", *HALTINGS),
            "halting_prior": PRIORS,
            "holes": HOLES,
            "route": ("none", *ROUTES),
            "memory": MEMORIES,
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
        names = ("loops", "min_loops", "rank", "memory_budget")
        least_one = {name: getattr(self, name) for name in names}
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
        if self.order == "sequence":
            raise ValueError(
                f"depth.gradient_loops={window} is a window over loops of whole groups, but "
                "depth.order=sequence repeats single layers: set gradient_loops=null"
            )
        if (self.injection, self.start) == ("none", "input"):
            raise ValueError(
                f"depth.gradient_loops={window} cuts off all that comes before the loops, since "
                "depth.injection=none lets the input in through depth.start=input alone: choose an "
                "injection, or set gradient_loops=null"
            )
        most = self.most_loops
        if most is not None and window > most:
            raise ValueError(
                f"depth.gradient_loops={window} is above the {most} loops that a training step "
                "runs at most: lower it, or set null for all"
            )
