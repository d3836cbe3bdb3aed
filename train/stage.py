"""A run is a list of stages; each has its own steps, objective, schedule and trainable parts."""

from dataclasses import dataclass, field

from torch import nn

from .objective_config import ObjectiveConfig
from .schedule import ScheduleConfig, warmup_stable_decay
from .thinking import ThinkingConfig


@dataclass
class StageConfig:
    """A stretch of a run.

    Attributes:
        name: what the stage is called in logs.
        steps: optimiser steps; null takes what trainer.max_steps leaves.
        objective: what is minimised.
        schedule: learning rate over the stage.
        trainable: parts that train, as in `depth.blocks.0` or `head`; empty is all.
        thinking: which written steps thoughts replace.
        fresh_optimizer: forget the optimiser's averages of the stage before as this one begins, as
            Coconut does; else they go on.
    """

    name: str = "pretrain"
    steps: int | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainable: list[str] = field(default_factory=list)
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    fresh_optimizer: bool = False

    def validate(self, key: str) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        self.thinking.validate(f"{key}.thinking")
        self.objective.validate(f"{key}.objective")
        self.schedule.validate(f"{key}.schedule")


@dataclass(frozen=True)
class Place:
    """Where a step of the run stands.

    Attributes:
        stage: index of the stage.
        step: step within the stage, from 0.
        steps: length of the stage.
    """

    stage: int
    step: int
    steps: int


class StagePlan:
    """The stages laid end to end over a run of `max_steps`.

    Raises:
        ValueError: where stages don't fit into the run.
    """

    def __init__(self, stages: list[StageConfig], max_steps: int) -> None:
        self.stages, self.max_steps = stages, max_steps
        self.lengths = _lengths(stages, max_steps)

    def place(self, step: int) -> Place:
        """Return where `step` of the run stands; past the end it is the last stage's last step."""
        step = min(step, self.max_steps - 1)
        for index, length in enumerate(self.lengths):
            if step < length:
                return Place(index, step, length)
            step -= length
        raise AssertionError("stages cover the run")

    def learning_rate_share(self, step: int) -> float:
        """Return the share of the peak learning rate at a step of the run."""
        place = self.place(step)
        return warmup_stable_decay(self.stages[place.stage].schedule, place.step, place.steps)


def _lengths(stages: list[StageConfig], max_steps: int) -> list[int]:
    if not stages:
        raise ValueError("stages is empty: a run needs at least one stage")
    if max_steps < 1:
        raise ValueError(f"trainer.max_steps={max_steps} must be at least 1")
    open_ended = [stage.name for stage in stages if stage.steps is None]
    if open_ended and (len(open_ended) > 1 or stages[-1].steps is not None):
        raise ValueError(
            f"stages.steps is null for {', '.join(open_ended)}: only the last stage may take what "
            "is left of trainer.max_steps"
        )
    fixed = sum(stage.steps or 0 for stage in stages)
    left = max_steps - fixed
    too_short = any(stage.steps is not None and stage.steps < 1 for stage in stages)
    if left < bool(open_ended) or too_short:
        raise ValueError(
            f"stages ask for {fixed} steps, trainer.max_steps={max_steps}: raise trainer.max_steps "
            "or shorten the stages (each needs at least 1 step)"
        )
    if left and not open_ended:
        raise ValueError(
            f"stages ask for {fixed} steps, trainer.max_steps={max_steps}: make them equal, or "
            "set the last stage's steps to null"
        )
    return [stage.steps if stage.steps is not None else left for stage in stages]


def set_trainable(module: nn.Module, parts: list[str]) -> None:
    """Let only these parts of a module train; an empty list lets all.

    Args:
        module: the module.
        parts: names of submodules or parameters, as in `depth.blocks.0`.

    Raises:
        ValueError: where a name fits no parameter.
    """
    names = [name for name, _ in module.named_parameters()]
    for part in parts:
        if not any(_stands_in(name, part) for name in names):
            raise ValueError(
                f"trainable: the backbone has no part {part}; its parts are "
                f"{', '.join(dict.fromkeys(name.split('.')[0] for name in names))}, and what "
                "stands inside them, as in depth.blocks.0"
            )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not parts or any(_stands_in(name, part) for part in parts))


def _stands_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")
