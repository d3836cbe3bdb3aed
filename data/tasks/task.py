"""What a task is: a generator of problems with levels, traces of several lengths, a verifier."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

TRACES = ("none", "short", "full", "verbose")

# One token announces the level, L0 to L64.
HIGHEST_LEVEL = 64

# Names shared among families, so that the closed vocabulary stays small: 120 elements (the size of
# the largest group) and 40 nodes. The task's own token says what they stand for.
ELEMENTS = tuple(f"e{index}" for index in range(120))
NODES = tuple(f"x{index}" for index in range(40))


@dataclass(frozen=True)
class Problem:
    """One question with its answer and its worked solution; every text is symbols between spaces.

    `minimal_trace` is the length in symbols of the shortest trace that still writes what the task
    asks to be written (each task says what that is); `labels`, where a task has them, hold the
    answer to the question's prefix after each of its symbols, one symbol each. `is_text` marks what
    comes from a corpus of text: no task wrote it, its steps are what its author wrote. `entry` is
    what a borrowed verifier needs beside the texts.
    """

    task: str
    level: int
    question: str
    answer: str
    steps: tuple[str, ...]
    minimal_trace: int
    labels: tuple[str, ...] | None = None
    is_text: bool = field(default=False, repr=False)
    entry: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The question's symbols."""
        return tuple(self.question.split())

    def prefix(self, index: int) -> str:
        """The question cut after its symbol `index`: for a task with labels, a problem itself."""
        return " ".join(self.symbols[: index + 1])


class Task(ABC):
    """A stateless generator of problems; a new one is one file here and one line in the list.

    `levels` are the reference levels to train on and `beyond` the harder ones to test on; any level
    from `lowest` to `highest` can be drawn. Where a question has several right answers, `unique` is
    False and `verify` takes every one of them; where no constant answer is right as often as
    `chance` says, `constant_attains_chance` is False.
    """

    name: ClassVar[str]
    capability: ClassVar[str]
    licence: ClassVar[str] = "Apache-2.0"
    source: ClassVar[str] = "generated"
    levels: ClassVar[tuple[int, ...]]
    beyond: ClassVar[tuple[int, ...]]
    traces: ClassVar[tuple[str, ...]] = TRACES
    lowest: ClassVar[int] = 1
    highest: ClassVar[int] = HIGHEST_LEVEL
    unique: ClassVar[bool] = True
    test_only: ClassVar[bool] = False
    constant_attains_chance: ClassVar[bool] = True

    def sample(self, rng: np.random.Generator, level: int) -> Problem:
        """One problem of that level; all its randomness comes from `rng`."""
        self.check_level(level)
        return self.draw(rng, level)

    @abstractmethod
    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """`sample` without the check of the level: what a task writes."""

    def split_key(self, problem: Problem) -> str:
        """What decides a problem's split: the question, or what several questions are copies of."""
        return problem.question

    def fixed(self, level: int) -> list[Problem] | None:
        """The given questions of a level, for a task that isn't generated; None for all others."""
        return None

    @abstractmethod
    def chance(self, level: int) -> float:
        """The best accuracy of a guesser that knows the level and nothing of the question."""

    @abstractmethod
    def num_problems(self, level: int) -> int | None:
        """How many different questions the level has; None where they are too many to run out."""

    @abstractmethod
    def symbols(self) -> frozenset[str]:
        """The symbols that the task writes beyond the shared digits, letters and operators."""

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether `text` is the answer, whitespace aside; never raises, whatever the text."""
        return isinstance(text, str) and text.split() == problem.answer.split()

    def trace(self, problem: Problem, mode: str) -> tuple[str, ...]:
        """The solution as the steps that `mode` writes; in each mode they imply the answer."""
        if mode == "none":
            return ()
        if mode == "short":
            return self.short(problem)
        if mode == "full":
            return problem.steps
        if mode == "verbose":
            return self.verbose(problem)
        raise ValueError(f"trace={mode!r} is not a trace mode: use one of {', '.join(TRACES)}")

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The shortened solution: every second step, counted back from the last."""
        return problem.steps[(len(problem.steps) - 1) % 2 :: 2]

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """The solution with something said twice: each step and its copy."""
        return tuple(f"{step} = {step}" for step in problem.steps)

    def check_level(self, level: int) -> None:
        """Raises ValueError, naming the levels, where the task has no such level."""
        if not self.lowest <= level <= self.highest:
            raise ValueError(
                f"level={level} is not a level of {self.name}: use {self.lowest} to {self.highest}"
                f" (trained on {listed(self.levels)}, beyond training {listed(self.beyond)})"
            )


def listed(levels: tuple[int, ...]) -> str:
    """Levels as a person reads them."""
    return ", ".join(map(str, levels))
