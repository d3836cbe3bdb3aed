"""What can't be asked of a loop whose tokens stop, are routed, or share memories.

Legend: none; this file reads settings, not tensors.
"""

import math
from typing import TYPE_CHECKING

from .stop import Stop

if TYPE_CHECKING:
    from .looped_config import LoopSettings


def check_adaptive(config: "LoopSettings") -> None:
    """Raise ValueError on impossible settings of halting, routing or memory."""
    stop = Stop.parse(config.stop, "depth.stop")
    _check_halting(config)
    _check_route(config)
    check_stop(config, stop, f"depth.stop={stop.text}")
    plain = (config.order, config.part, config.count_per) == ("cycle", "block", "batch")
    asked = {
        "halting": config.halting != "none",
        "route": config.route != "none",
        "stop": bool(stop),
        "memory": config.memory != "per_loop",
    }
    for key, is_asked in asked.items():
        if is_asked and not plain:
            raise ValueError(
                f"depth.{key}={getattr(config, key)} goes with whole groups run in cycles, one "
                f"count a batch, but depth.order={config.order}, depth.part={config.part}, "
                f"depth.count_per={config.count_per}: set cycle, block and batch"
            )
    if config.memory == "carry" and config.checkpoint:
        raise ValueError(
            "depth.memory=carry hands memories from loop to loop, which depth.checkpoint=true "
            "would find changed when it runs one again: set checkpoint=false"
        )


def _check_halting(config: "LoopSettings") -> None:
    if config.halting == "none":
        return
    if config.most_loops == 1:
        raise ValueError(
            f"depth.halting={config.halting} chooses among loops, but training runs one: raise "
            "depth.loops, or set halting=none"
        )
    if not 0 < config.halting_rate < 1:
        raise ValueError(f"depth.halting_rate={config.halting_rate} must lie between 0 and 1")
    if not 0 <= config.halting_weight < math.inf:
        raise ValueError(f"depth.halting_weight={config.halting_weight} must be at least 0")


def _check_route(config: "LoopSettings") -> None:
    for share in config.capacity or []:
        if not 0 < share <= 1:
            raise ValueError(
                f"depth.capacity={config.capacity}: {share} must be above 0 and at most 1, a share "
                "of a document's tokens"
            )
    if config.capacity is not None and config.route != "expert":
        raise ValueError(
            f"depth.capacity={config.capacity} limits how many tokens a loop chooses, but "
            f"depth.route={config.route} lets no loop choose: set route=expert, or capacity=null"
        )
    if config.route == "none":
        return
    if config.count != "fixed" or config.loops < 2:
        raise ValueError(
            f"depth.route={config.route} shares out a fixed number of loops, at least 2, but "
            f"depth.count={config.count} and depth.loops={config.loops}: set count=fixed"
        )
    if config.capacity is not None and len(config.capacity) != config.loops - 1:
        raise ValueError(
            f"depth.capacity={config.capacity} must name {config.loops - 1} shares, one for each "
            "loop after the first"
        )
    if config.halting != "none" or config.holes != "skip" or config.memory != "per_loop":
        raise ValueError(
            f"depth.route={config.route} leaves tokens behind, so depth.halting={config.halting}, "
            f"depth.holes={config.holes} and depth.memory={config.memory} have no place: set none, "
            "skip and per_loop"
        )


def check_stop(config: "LoopSettings", stop: Stop, said: str) -> None:
    """Raise ValueError where a stopping rule has nothing to go by; `said` is how it was asked."""
    if not stop:
        return
    if stop.kind.gated and config.halting == "none":
        raise ValueError(f"{said} asks the gate, but depth.halting=none: train one, or choose kl")
    if stop.kind.reads and config.coda:
        raise ValueError(
            f"{said} reads out after every loop, but depth.coda={config.coda} layers stand between "
            "the loop and the readout: choose fixed_point or gate, or set coda=0"
        )
    if config.route != "none" or config.memory != "per_loop":
        raise ValueError(
            f"{said} needs tokens that run on, and a memory of each loop, but "
            f"depth.route={config.route} and depth.memory={config.memory}: set none and per_loop"
        )
