"""Chains of mixed operators, worked from left to right: arithmetic with a running value modulo 7.

A chain is a composition of maps x + c, x - c and c x of the residues modulo 7, which form a group
that is solvable but not commutative: between parity and the word problem of S5.
"""

import numpy as np

from .task import Problem, Task

MODULUS = 7
# 0 would change nothing or forget everything, and a factor of 1 changes nothing.
MOVES = (
    *(f"+ {number}" for number in range(1, MODULUS)),
    *(f"- {number}" for number in range(1, MODULUS)),
    *(f"* {number}" for number in range(2, MODULUS)),
)


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
    levels = (2, 4, 8, 12, 16)
    beyond = (24, 32)

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Uniform moves from a uniform start."""
        value = int(rng.integers(MODULUS))
        moves = [MOVES[index] for index in rng.integers(0, len(MOVES), size=level).tolist()]
        question, steps = " ".join((str(value), *moves)), []
        for move in moves:
            value = moved(value, move)
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
        return 1 / MODULUS

    def num_problems(self, level: int) -> int:
        """All starts and all moves."""
        return MODULUS * len(MOVES) ** level

    def symbols(self) -> frozenset[str]:
        """None beyond digits and operators."""
        return frozenset()


def moved(value: int, move: str) -> int:
    """The value after a move such as `* 3`."""
    operator, number = move[0], int(move[2])
    if operator == "*":
        return value * number % MODULUS
    return (value + number if operator == "+" else value - number) % MODULUS
