"""Tasks of reasoning-core (MIT) that are fast and whose items depend on nothing but their seed.

Its generators draw from the global streams of `random` and NumPy: these are seeded for each item
and then put back as they were. arithmetics, rewrite_system and logic_qa are left out, because their
items change with PYTHONHASHSEED all the same. Where the package tells how an answer comes about
(`cot`), that is the trace, with the answer as its last line.
"""

import contextlib
import random
import warnings
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from ..tasks.task import Problem
from .adapter import BorrowedTask


class ReasoningCore(BorrowedTask):
    """One task of the package, at its own levels 0 to 3."""

    licence: ClassVar[str] = "MIT"
    levels = (0, 1, 2)
    beyond = (3,)
    lowest, highest = 0, 3
    guess_sample = 40  # some make a few items a second

    def __init__(self, task: str, capability: str, has_trace: bool) -> None:
        super().__init__()
        self.task, self.has_trace = task, has_trace
        self.name = f"rc_{task}"  # type: ignore[misc]
        self.capability = capability  # type: ignore[misc]
        self.traces = ("none", "full") if has_trace else ("none",)  # type: ignore[misc]

    @cached_property
    def package(self) -> str:
        """Name and version, which enter the definition of a corpus."""
        return f"reasoning-core=={version('reasoning-core')}"

    @cached_property
    def source(self) -> str:  # type: ignore[override]
        """Where its documents come from."""
        return self.package

    def item(self, level: int, number: int) -> Problem:
        """One item, from its own seed."""
        with seeded(number):
            # Without a limit no tokenizer decides which items are kept.
            entry = self._generator.generate_example(level=level, max_tokens=None)
        answer = str(entry.answer).strip()
        steps = self._steps(entry, answer) if self.has_trace else ()
        length = len(answer.split()) if steps else 0
        question = str(entry.prompt).strip()
        return Problem(self.name, level, question, answer, steps, length, entry=entry)

    def score(self, problem: Problem, text: str) -> float:
        """The task's own score."""
        return float(self._generator.score_answer(text, problem.entry))

    def _steps(self, entry: Any, answer: str) -> tuple[str, ...]:
        written = str(entry.metadata.get("cot") or "")
        steps = [line.strip() for line in written.splitlines() if line.strip()]
        if not steps:
            raise ValueError("it has no cot")
        return tuple(steps if steps[-1] == answer else [*steps, answer])

    @cached_property
    def _generator(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses a tokenizer, for limits that aren't used
            return import_module("reasoning_core").get_task(self.task)


@contextlib.contextmanager
def seeded(number: int) -> Iterator[None]:
    """Seed the global streams, and put them back."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(number)
    np.random.seed(number % (1 << 32))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


TASKS: dict[str, Any] = {
    task.name: task
    for task in (
        ReasoningCore("function_manipulation", "algebra", True),
        ReasoningCore("graph_pathfinding", "search", True),
        ReasoningCore("graph_successors", "search", False),
        ReasoningCore("set_missing_element", "sets", False),
        ReasoningCore("finite_automaton_execution", "execution", False),
        ReasoningCore("dynamic_programming", "execution", False),
    )
}
