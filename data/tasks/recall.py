"""What the harder recall tasks share: every key is asked for once, and traces end in all values."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from .task import Problem, Task


class Recall(Task):
    """A table hidden in a stream, then queries; the answer is all values in the order of queries.

    Only the whole answer is correct. The trace writes each query with its value and then the answer
    (`full`), the answer alone (`short`, also the minimal trace), or first what the stream says of
    every key, as each task defines it, and then the same as `full` (`verbose`).
    """

    capability: ClassVar[str] = "recall"
    levels: ClassVar[tuple[int, ...]] = (2, 4, 8, 16)
    beyond: ClassVar[tuple[int, ...]] = (24, 32)

    @abstractmethod
    def notes(self, problem: Problem) -> tuple[str, ...]:
        """What a careful reader of the stream writes down before the queries."""

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The answer alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """The stream's content, then the whole solution."""
        return (*self.notes(problem), *problem.steps)


def draw_distinct(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    """That many different names in random order."""
    order: list[int] = rng.permutation(len(names)).tolist()
    return [names[index] for index in order[:count]]
