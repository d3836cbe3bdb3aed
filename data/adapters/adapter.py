"""What all borrowed tasks share: they trust no stored answer, and no verifier not to raise."""

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..tasks.task import Problem, Task

MOST_DRAWS = 100


@dataclass
class Rejections:
    """Items that were drawn and thrown away, because their own verifier refused their answer.

    Attributes:
        count: how many, of this process.
        example: the first: task, level, item and what was wrong.
    """

    count: int = 0
    example: str = ""

    def add(self, example: str) -> None:
        """Count one."""
        self.count += 1
        self.example = self.example or example


class BorrowedTask(Task):
    """A task whose items another package makes and scores.

    An item is found by a 62-bit number that the item's own stream gives, so that no two seeds ever
    meet, whatever the package makes of its seeds.
    """

    traces = ("none",)
    guess_sample = 400
    """Problems that a guess is chosen on, and as many that it is scored on."""

    def __init__(self) -> None:
        self.rejections = Rejections()
        self._chances: dict[int, float] = {}

    @abstractmethod
    def item(self, level: int, number: int) -> Problem:
        """The item of that number; whatever it raises, the item is left out."""

    @abstractmethod
    def score(self, problem: Problem, text: str) -> float:
        """The package's score of an answer, from 0 to 1; it may raise."""

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Draw items until the package accepts its own answer to one."""
        wrong = ""
        for _ in range(MOST_DRAWS):
            number = int(rng.integers(1 << 62))
            try:
                problem = self.item(level, number)
                if self.verify(problem, problem.answer):
                    return problem
                wrong = f"its own verifier rejects {problem.answer!r}"
            except Exception as error:  # generators fail in ways of their own
                wrong = f"{type(error).__name__}: {error}"
            self.rejections.add(f"{self.name}, level {level}, item {number}: {wrong}")
        raise ValueError(
            f"{self.name} level {level}: {MOST_DRAWS} items in a row can't be used; the last:"
            f" {wrong}"
        )

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether the package gives the answer its full score; never raises."""
        if not isinstance(text, str) or len(text) > 20 * len(problem.answer) + 1_000:
            return False
        try:
            return bool(self.score(problem, text.strip()) >= 0.99)
        except Exception:
            return False

    def chance(self, level: int) -> float:
        """Accuracy of the most frequent answer, measured: chosen on one sample, scored on another.

        Where answers hardly repeat it is 0.
        """
        if level not in self._chances:
            rng = np.random.default_rng((level, self.guess_sample))
            problems = [self.draw(rng, level) for _ in range(2 * self.guess_sample)]
            guess = Counter(p.answer for p in problems[: self.guess_sample]).most_common(1)[0][0]
            right = sum(self.verify(problem, guess) for problem in problems[self.guess_sample :])
            self._chances[level] = right / self.guess_sample
        return self._chances[level]

    def num_problems(self, level: int) -> int | None:
        """Unknown, and large: levels are chosen so (the tests draw them)."""
        return None

    def symbols(self) -> frozenset[str]:
        """None: questions are free text."""
        return frozenset()
