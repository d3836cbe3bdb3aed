"""Chains of mixed operators, worked from left to right: arithmetic with a running value modulo 7.

A chain is a composition of maps x + c, x - c and c x of the residues modulo 7, which form a group
that is solvable but not commutative: between parity and the word problem of S5.
"""

from typing import ClassVar

import numpy as np

from .task import Problem, Task


class MixedChain(Task):
    """`3 + 5 * 2 - 6` modulo 7, strictly from left to right: no operator binds closer.

    The level is the number of operators. The first number is uniform (0 to 6), and so is each
    further operator with its number among `+ 1` to `+ 6`, `- 1` to `- 6`, `* 2` to `* 6`. Each of
    them permutes the residues, so the answer is uniform and every number matters.

    The trace writes the value after every operator (`full`), after every second one, the last
    included (`short`, also the minimal trace), or each with what it was made of, `3 + 5 = 1`
    (`verbose`).
    """

    name = "mixed_chain"
    capability = "arithmetic"
    levels: ClassVar[tuple[int, ...]] = (2, 4, 8, 12, 16)
    beyond: ClassVar[tuple[int, ...]] = (24, 32)
    modulus: ClassVar[int] = 7

    @property
    def moves(self) -> tuple[str, ...]:
        """The operators with their numbers.

        0 would change nothing or forget everything, and a factor of 1 changes nothing.
        """
        numbers = range(1, self.modulus)
        return (
            *(f"+ {number}" for number in numbers),
            *(f"- {number}" for number in numbers),
            *(f"* {number}" for number in numbers[1:]),
        )

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Uniform moves from a uniform start."""
        value, known = int(rng.integers(self.modulus)), self.moves
        moves = [known[index] for index in rng.integers(0, len(known), size=level).tolist()]
        question, steps = " ".join((str(value), *moves)), []
        for move in moves:
            value = moved(value, move, self.modulus)
            steps.append(str(value))
        return Problem(self.name, level, question, steps[-1], tuple(steps), (level + 1) // 2)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each value with the one before it and the move between."""
        first, *symbols = problem.symbols
        rows = zip((first, *problem.steps), symbols[::2], symbols[1::2], strict=False)
        return tuple(
            f"{old} {operator} {number} = {new}"
            for (old, operator, number), new in zip(rows, problem.steps, strict=True)
        )

    def chance(self, level: int) -> float:
        """One in seven: a permutation of a uniform value is uniform."""
        return 1 / self.modulus

    def num_problems(self, level: int) -> int:
        """All starts and all moves."""
        return self.modulus * len(self.moves) ** level

    def symbols(self) -> frozenset[str]:
        """None beyond digits and operators."""
        return frozenset()


class SmallMixedChain(MixedChain):
    """The same modulo 3, with five operators: what a small backbone can compose in its head."""

    name = "mixed_chain_small"
    levels = (2, 3, 4, 6)
    beyond = (8, 12)
    modulus = 3


def moved(value: int, move: str, modulus: int) -> int:
    """The value after a move such as `* 3`."""
    operator, number = move[0], int(move[2])
    if operator == "*":
        return value * number % modulus
    return (value + number if operator == "+" else value - number) % modulus
