"""Parity of a bit string: the smallest state-tracking task (Grazzi et al. 2024, 2411.12537).

A linear recurrence whose eigenvalues all lie in [0, 1] cannot solve it at every length; one with
an eigenvalue of -1 can, in one layer.
"""

import numpy as np

from .task import Problem, Task


class Parity(Task):
    """Whether the number of ones is odd (1) or even (0); the level is the number of bits.

    The trace writes the parity after every bit (`full`), after every second one, the last included
    (`short`, also the minimal trace), or each as a sum `old + bit = new` modulo 2 (`verbose`).
    """

    name = "parity"
    capability = "state tracking"
    levels = (4, 8, 12, 16, 24, 32)
    beyond = (48, 64)

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Uniform bits and the parity of every prefix."""
        bits = rng.integers(0, 2, size=level)
        steps = tuple("01"[parity] for parity in (np.cumsum(bits) % 2).tolist())
        question = " ".join("01"[bit] for bit in bits.tolist())
        return Problem(self.name, level, question, steps[-1], steps, (level + 1) // 2, labels=steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each parity with what it was made of."""
        rows = zip(("0", *problem.steps), problem.symbols, problem.steps, strict=False)
        return tuple(f"{old} + {bit} = {new}" for old, bit, new in rows)

    def chance(self, level: int) -> float:
        """A coin flip."""
        return 0.5

    def num_problems(self, level: int) -> int:
        """All bit strings of that length."""
        return 2**level

    def symbols(self) -> frozenset[str]:
        """None beyond the digits."""
        return frozenset()
