"""How long a step takes and what GPUs send each other, from stated rates and fractions of them.

    computing       (model FLOPs + what is run again + the optimiser's) / (peak x peak_fraction)
    communication   bytes / (link x link_fraction) + hop_us x log2(group) for each collective
    step            computing + what of communication `overlap` x computing does not hide

Bytes are those that one GPU sends around a ring of n: (n-1)/n of the whole in a gather or a
reduce-scatter, twice that in an all-reduce; Muon's are those of `train.plan_muon`. A group that
reaches beyond a node goes at the network's rate. How a fraction of the peak differs between mixers
is not modelled.
"""

import math
from dataclasses import dataclass

from .gpus import Gpu
from .plan_muon import MuonWork
from .plan_settings import Layout, PlanSettings
from .plan_shards import FLOAT, UnitSize


@dataclass(frozen=True)
class Traffic:
    """One kind of communication of a step, of one GPU.

    Attributes:
        what: all-gather, reduce-scatter, all-reduce or all-to-all, and of what.
        sent: bytes.
        calls: collectives.
        group: GPUs that take part.
        is_in_node: whether they share a node.
    """

    what: str
    sent: float
    calls: int
    group: int
    is_in_node: bool


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        computing: of matrix products.
        communication: if nothing hid it.
        step: in all.
    """

    computing: float
    communication: float
    step: float


def traffic_of(
    units: list[UnitSize], layout: Layout, accumulate: int, muon: MuonWork
) -> list[Traffic]:
    """Return what a GPU sends in an optimiser step.

    ddp adds gradients up once a step. Sharded runs gather weights and cut gradients up (and add
    them up over replicas) in every micro-batch: so gradients never stay whole.
    """
    whole = FLOAT * sum(unit.whole for unit in units)
    if layout.strategy == "single":
        return []
    all_in_node = layout.world <= layout.per_node
    if layout.strategy == "ddp":
        buckets = max(1, math.ceil(whole / (25 << 20)))  # DDP's 25 MiB each
        sent = 2 * _others(layout.world) * whole
        return [Traffic("all-reduce of gradients", sent, buckets, layout.world, all_in_node)]
    root = FLOAT * sum(unit.whole for unit in units if unit.is_root)
    shards, in_node = layout.shards, layout.shards <= layout.per_node
    calls = accumulate * len(units)
    gathers = 2 * calls - accumulate  # the root stays, all others are gathered again for backward
    gathered = accumulate * _others(shards) * (2 * whole - root)
    scattered = accumulate * _others(shards) * whole
    found = [
        Traffic("all-gather of weights", gathered, gathers, shards, in_node),
        Traffic("reduce-scatter of gradients", scattered, calls, shards, in_node),
    ]
    if muon.collectives:
        found.append(Traffic("Muon's matrices", muon.sent, muon.collectives, shards, in_node))
    if layout.replicas > 1:
        own = FLOAT * sum(unit.own for unit in units)
        sent = accumulate * 2 * _others(layout.replicas) * own
        name = "all-reduce of gradients"
        found.append(Traffic(name, sent, calls, layout.replicas, all_in_node))
    return found


def _others(group: int) -> float:
    return (group - 1) / group


def step_time(
    flops: float, traffic: list[Traffic], gpu: Gpu, settings: PlanSettings, bf16: bool
) -> StepTime:
    """Return the time of a step in which one GPU runs so many FLOPs."""
    computing = flops / (gpu.rate(bf16) * settings.peak_fraction)
    communication = sum(_seconds(part, gpu, settings) for part in traffic)
    shown = max(0.0, communication - settings.overlap * computing)
    return StepTime(computing, communication, computing + shown)


def _seconds(part: Traffic, gpu: Gpu, settings: PlanSettings) -> float:
    link = gpu.node_link if part.is_in_node else gpu.network
    hops = math.log2(part.group) if part.group > 1 else 0.0
    return part.sent / (link * settings.link_fraction) + part.calls * hops * settings.hop_us * 1e-6
