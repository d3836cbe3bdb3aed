"""What one source of a corpus is: a task in one trace mode, or a text, and when it is read."""

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .split import problem_at, splittable
from .task_list import find_task
from .texts.config import TextConfig

TEXT_TRACES = ("none", "full")


@dataclass
class ScheduleStep:
    """What a source is until a share of training has passed: other levels, another weight.

    `until` is a share of the corpus's training tokens, and of the steps of each stage that reads
    them. A null leaves the source's own; a weight of 0 leaves the source out.
    """

    until: float = 1.0
    levels: list[int] | None = None
    weight: float | None = None


@dataclass
class SourceConfig:
    """Documents of one task in one trace mode, or of one text.

    `weight` is the source's share relative to the other sources: of the documents, or of the tokens
    (`weigh_by`). `levels` are drawn uniformly; an entry that stands there twice is drawn twice as
    often. `dense` puts a target at every symbol of the question (trace `none`, tasks with labels).
    `schedule` says what the source is early in training, step by step; after its last step it is
    what stands here. `max_epochs` caps how often a finite source is repeated.
    """

    task: str = ""
    trace: str = "none"
    levels: list[int] = field(default_factory=list)
    weight: float = 1.0
    dense: bool = False
    schedule: list[ScheduleStep] = field(default_factory=list)
    max_epochs: float | None = None
    text: TextConfig | None = None

    def at(self, start: float) -> tuple[list[int], float]:
        """Levels and weight in the phase that begins at this share of training; 1 is the end."""
        for step in self.schedule:
            if start < step.until:
                levels = self.levels if step.levels is None else step.levels
                return levels, self.weight if step.weight is None else step.weight
        return self.levels, self.weight

    @property
    def all_levels(self) -> list[int]:
        """The levels of all phases, each once."""
        scheduled = [level for step in self.schedule for level in step.levels or []]
        return sorted({*self.levels, *scheduled})

    def validate(self, key: str) -> None:
        """Refuse what cannot be made; `key` is where this source stands, `data.sources.<name>`.

        Raises:
            ValueError: one line with the key, its value and what is allowed.
        """
        if self.text is None:
            self._validate_task(key)
        else:
            self._validate_text(key)
        if not (is_number(self.weight) and self.weight > 0):
            refuse(f"{key}.weight", self.weight, "a finite number above 0; or remove the source")
        if self.max_epochs is not None and not (is_number(self.max_epochs) and self.max_epochs > 0):
            refuse(f"{key}.max_epochs", self.max_epochs, "a number above 0, or null for no cap")
        self._validate_schedule(f"{key}.schedule")

    def _validate_task(self, key: str) -> None:
        try:
            task = find_task(self.task)
        except ValueError as error:
            raise ValueError(f"{key}.task={self.task!r} is not possible; {error}") from None
        if task.test_only:
            allowed = f"tasks to train on; {self.task} is a test set: train on text.recipe instead"
            refuse(f"{key}.task", self.task, allowed)
        if self.trace not in task.traces:
            refuse(f"{key}.trace", self.trace, f"one of {listed(task.traces)}")
        self._validate_levels(f"{key}.levels", self.levels)
        if self.dense and self.trace != "none":
            refuse(f"{key}.dense", True, f"false with trace={self.trace}: only `none` has labels")
        if self.dense and self._labels() is None:
            refuse(f"{key}.dense", True, f"false: task {self.task} has no label at every symbol")

    def _validate_text(self, key: str) -> None:
        assert self.text is not None
        if self.task:
            refuse(f"{key}.task", self.task, "nothing beside text: a source has one of the two")
        if self.levels:
            refuse(f"{key}.levels", self.levels, "[] with text: its records have their own levels")
        if self.dense:
            refuse(f"{key}.dense", True, "false with text: it has no label at every symbol")
        if self.trace not in TEXT_TRACES:
            refuse(f"{key}.trace", self.trace, f"one of {listed(TEXT_TRACES)} with text")
        self.text.validate(f"{key}.text")

    def _validate_schedule(self, key: str) -> None:
        past = 0.0
        for index, step in enumerate(self.schedule):
            if not (is_number(step.until) and past < step.until <= 1):
                allowed = (
                    f"a share of training above {past:g} (where the step before ends), up to 1"
                )
                refuse(f"{key}[{index}].until", step.until, allowed)
            if step.weight is not None and not (is_number(step.weight) and step.weight >= 0):
                allowed = "a finite number of at least 0 (0 leaves the source out), or null"
                refuse(f"{key}[{index}].weight", step.weight, allowed)
            if step.levels is not None and self.text is not None:
                refuse(f"{key}[{index}].levels", step.levels, "null: a text has its own levels")
            if step.levels is not None:
                self._validate_levels(f"{key}[{index}].levels", step.levels)
            past = step.until

    def _validate_levels(self, key: str, levels: list[int]) -> None:
        task = find_task(self.task)
        trained, beyond = listed(task.levels), listed(task.beyond)
        allowed = f"{task.lowest} to {task.highest} (trained on {trained}, beyond {beyond})"
        if not levels:
            refuse(key, levels, f"levels of task {self.task}, {allowed}")
        for level in levels:
            try:
                task.check_level(level)
            except ValueError:
                refuse(key, level, f"levels of task {self.task}, {allowed}")

    def _labels(self) -> tuple[str, ...] | None:
        return problem_at(self.task, self.levels[0], "train", 0, 0).labels

    @property
    def train_only_levels(self) -> list[int]:
        """Levels with too few problems to keep some of them out of training."""
        return [level for level in self.all_levels if not splittable(self.task, level)]


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def listed(values: Any) -> str:
    """Values as a person reads them."""
    return ", ".join(str(value) for value in values)


def refuse(key: str, value: Any, allowed: str) -> NoReturn:
    """Raise the one line that says what is allowed."""
    raise ValueError(f"{key}={value!r} is not possible; allowed: {allowed}")
