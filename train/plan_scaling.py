"""The table of docs/scaling.md: three families at three sizes, from one GPU to a cluster."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from .config import RunConfig
from .gpus import GIB
from .parallel_config import ParallelConfig
from .plan_settings import PlanSettings, spread
from .plan_text import count, recompute_of, strategy_of
from .planning import Plan, make_plan, plain

TOKENS_PER_PARAMETER = 20
"""Length of each run: about what Hoffmann et al. (arXiv 2203.15556) found best for its compute."""
RECOMPUTE = ("none", "blocks")
MOST_WAITING = 0.1
"""Waiting for links over computing, up to which nothing else is tried."""
Compose = Callable[[Sequence[str]], RunConfig]
_HEADS = (
    "GPUs",
    "strategy",
    "recompute",
    "rows per GPU",
    "memory",
    "step",
    "tokens/s",
    "GPU-hours",
)


def scaling_table(
    settings: PlanSettings, compose: Compose
) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Yield a table in Markdown for each size and family, and the figures of its lines.

    Each line has the least that fits: no recomputation before some, ddp before shards within nodes,
    and these before shards over all; with the most rows per GPU that fit, up to what a global batch
    has for each. Where links then take more than `MOST_WAITING`, it is the fastest of all that fit.
    Where none does, it is what holds the least, of one row.
    """
    for size in settings.sizes:
        for family in settings.families:
            plans = {}
            for world in settings.worlds:
                print(f"{family} {size} on {world}", file=sys.stderr, flush=True)
                plans[world] = _least(family, size, world, compose, settings)
            figures = [
                {"size": size, "world": world} | plain(plan) for world, plan in plans.items()
            ]
            lines = [_line(world, plan) for world, plan in plans.items()]
            yield [*_heading(family, size, plans.values()), *lines, ""], figures


def _heading(family: str, size: str, plans: Iterable[Plan]) -> list[str]:
    parameters = count(next(iter(plans)).work.parameters)
    title = f"### {family}, size={size}: {parameters} parameters"
    return [title, "", f"| {' | '.join(_HEADS)} |", "|" + " --- |" * len(_HEADS)]


def _least(family: str, size: str, world: int, compose: Compose, settings: PlanSettings) -> Plan:
    config, found = compose([f"backbone={family}", f"size={size}"]), []
    for recompute in RECOMPUTE:
        for parallel in _strategies(world, settings):
            plan = _fitted(
                replace(config, parallel=replace(parallel, recompute=recompute)), settings
            )
            if plan.fits and plan.time.step <= (1 + MOST_WAITING) * plan.time.computing:
                return plan
            found.append(plan)
    fitting = [plan for plan in found if plan.fits]
    return min(fitting, key=lambda plan: plan.time.step) if fitting else min(found, key=_held)


def _held(plan: Plan) -> float:
    """What a GPU holds: all of the table's backbones are predicted."""
    assert plan.memory is not None
    return plan.memory.total


def _strategies(world: int, settings: PlanSettings) -> list[ParallelConfig]:
    """What a run may be shared out by, the simplest first."""
    devices, nodes = spread(world, settings.gpus_per_node)
    if world == 1:
        return [ParallelConfig(strategy="single")]
    replicas = (1,) if nodes == 1 else (nodes, 1)
    shared = ParallelConfig(strategy="fsdp2", devices=devices, nodes=nodes)
    return [
        replace(shared, strategy="ddp"),
        *(replace(shared, replicas=count) for count in replicas),
    ]


def _fitted(config: RunConfig, settings: PlanSettings) -> Plan:
    """The plan with the most rows per GPU that fit and divide the batch; of one where none do."""
    each = config.trainer.rows_per_step // config.parallel.processes
    one = make_plan(config, replace(settings, rows=1))
    most = min(each, one.largest or 1)
    rows = max(n for n in range(1, most + 1) if each % n == 0)
    plan = one if rows == 1 else make_plan(config, replace(settings, rows=rows))
    steps = -(-TOKENS_PER_PARAMETER * plan.work.parameters // plan.work.tokens_per_step)
    return replace(plan, work=replace(plan.work, steps=steps))


def _line(world: int, plan: Plan) -> str:
    memory = f"{_held(plan) / GIB:.1f} GiB"
    if not plan.fits:  # the least of all
        held = f"{memory} of {plan.limit / GIB:.1f}"
        return f"| {world} | none fits | {recompute_of(plan)} | 1 | {held} |" + " |" * 3
    entries = [
        str(world),
        strategy_of(plan),
        recompute_of(plan),
        f"{plan.work.asked.rows} x {plan.work.accumulate}",
        memory,
        f"{plan.time.step:.3g} s",
        count(plan.work.tokens_per_step / plan.time.step),
        f"{plan.gpu_hours:,.0f}",
    ]
    return f"| {' | '.join(entries)} |"
