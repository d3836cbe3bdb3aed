"""Settings of an evaluation."""

from dataclasses import dataclass, field

from data.task_list import find_task
from data.tasks.task import TRACES
from data.tokenizer import Tokenizer
from data.vocabulary import task_token
from eval.budget import BudgetConfig

SPLITS = ("validation", "test")


@dataclass
class TaskEval:
    """What to ask of one task.

    Attributes:
        levels: levels to ask; empty is all reference levels and the harder ones.
        traces: trace modes for this task instead of the budgets' own; null keeps those.
    """

    levels: list[int] = field(default_factory=list)
    traces: list[str] | None = None


@dataclass
class EvalConfig:
    """What to ask, how often, and over which budgets.

    Attributes:
        tasks: tasks by name.
        items: questions for each task, level and budget (fewer where a train-only level has fewer).
        split: validation or test; a level too small to be split is asked from train, and marked.
        budgets: the grid of budgets.
        batch_size: rows that are generated side by side.
        seed: picks the questions and drives the draws.
        latency_items: questions timed one by one for the latency of each cell; 0 leaves it out.
        after_training: evaluate a run as soon as `python -m train` has trained it.
        faithfulness: ask a backbone with thoughts again with its thoughts swapped between
            questions, zeroed and cut short: does its answer depend on them (see docs/thoughts.md)?
    """

    tasks: dict[str, TaskEval] = field(default_factory=dict)
    items: int = 500
    split: str = "test"
    budgets: BudgetConfig = field(default_factory=BudgetConfig)
    batch_size: int = 256
    seed: int = 0
    latency_items: int = 5
    after_training: bool = False
    faithfulness: bool = False

    def validate(self) -> None:
        """Raise ValueError, naming the key and what is allowed, on settings that can't be run."""
        for name, least in (("items", 1), ("batch_size", 1), ("seed", 0), ("latency_items", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"eval.{name}={getattr(self, name)} must be at least {least}")
        if self.split not in SPLITS:
            raise ValueError(f"eval.split={self.split} is not known: choose {' or '.join(SPLITS)}")
        if not self.tasks:
            raise ValueError("eval.tasks is empty: name at least one task")
        self.budgets.validate()
        for name, task in self.tasks.items():
            self._validate_task(name, task)

    def levels(self, name: str) -> list[int]:
        """Return the levels to ask of a task."""
        task = find_task(name)
        return self.tasks[name].levels or [*task.levels, *task.beyond]

    def traces(self, name: str) -> list[str]:
        """Return the trace modes to ask of a task: its own here, or those of the grid that it has.

        Raises:
            ValueError: the task has not the mode that is asked of it.
        """
        known, asked = find_task(name).traces, self.tasks[name].traces
        if asked is None:
            return [trace for trace in self.budgets.traces if trace in known]
        for trace in asked:
            if trace in TRACES and trace not in known:
                raise ValueError(f"traces={asked}: {name} has only {', '.join(known)}")
        return asked

    def check_words(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError where a tokenizer has no words for a task."""
        for name in self.tasks:
            try:
                tokenizer.encode(task_token(name))
            except ValueError:
                raise ValueError(
                    f"eval.tasks.{name} has no words in the vocabulary of the corpus: train with"
                    f" data.tokenizer.tasks=[{name}], or leave the task out"
                ) from None

    def _validate_task(self, name: str, task: TaskEval) -> None:
        try:
            known = find_task(name)
            for level in task.levels:
                known.check_level(level)
            budgets = self.budgets.budgets(self.traces(name))
        except ValueError as error:
            raise ValueError(f"eval.tasks.{name}: {error}") from None
        if not budgets:
            raise ValueError(
                f"eval.tasks.{name}.traces={task.traces} leaves no budget to run with: add a trace"
            )
