"""Modular expressions in prefix form: arithmetic in the head (Mano, Physics of LMs 4.1, Allen-Zhu).

Values are the residues modulo 23, one symbol each: e0 to e22 stand for 0 to 22, so that no digits
get in the way and every operation is a lookup in a table that the weights have to hold.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from .task import ELEMENTS, Problem, Task

MODULUS = 23
OPERATORS = "+-*"
RESIDUES = np.arange(MODULUS)
TABLES = {
    "+": np.add.outer(RESIDUES, RESIDUES) % MODULUS,
    "-": np.subtract.outer(RESIDUES, RESIDUES) % MODULUS,
    "*": np.multiply.outer(RESIDUES, RESIDUES) % MODULUS,
}


class Mano(Task):
    """`* + e3 e5 e2` is (3 + 5) 2 = 16 modulo 23; the level is the number of operators.

    Operators and values are uniform, and so is the number of operators that go to the left operand
    (0 to n - 1 of the n - 1 that remain), again within each operand. An operator's two operands
    follow it, so no brackets are needed; `- x y` is x - y.

    The trace writes each operation with its result, `+ e3 e5 = e8`, operands before what uses them
    and left before right (`full`), the results alone (`short`, also the minimal trace), or each
    operation and the expression that it leaves, `+ e3 e5 = e8 : * e8 e2` (`verbose`).
    """

    name = "mano"
    capability = "arithmetic"
    levels = (1, 2, 4, 6, 10)
    beyond = (13, 16)
    highest = 24

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """An expression and, on the way, its value."""
        uniform = iter(rng.random(2 * level).tolist())
        values = iter(rng.integers(0, MODULUS, size=level + 1).tolist())
        symbols: list[str] = []
        steps: list[str] = []
        answer = grow(uniform, values, level, symbols, steps)
        return Problem(self.name, level, " ".join(symbols), answer, tuple(steps), level)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The results alone."""
        return tuple(step.split()[-1] for step in problem.steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each operation, then the expression with its result put in."""
        rest, rows = problem.question, []
        for step in problem.steps:
            operation, result = step.split(" = ")
            rest = replaced_first(rest, operation, result)
            rows.append(f"{step} : {rest}")
        return tuple(rows)

    def chance(self, level: int) -> float:
        """The likeliest value's share, from the exact distribution (products favour 0)."""
        return float(value_distribution(level).max())

    def num_problems(self, level: int) -> int:
        """Shapes of the tree (a Catalan number), times operators, times values."""
        shapes = 1
        for index in range(level):
            shapes = shapes * 2 * (2 * index + 1) // (index + 2)
        return shapes * len(OPERATORS) ** level * MODULUS ** (level + 1)

    def symbols(self) -> frozenset[str]:
        """The residues."""
        return frozenset(ELEMENTS[:MODULUS])


def grow(
    uniform: Iterator[float],
    values: Iterator[int],
    operators: int,
    symbols: list[str],
    steps: list[str],
) -> str:
    """Append an expression to `symbols` and its operations to `steps`; returns its value."""
    if operators == 0:
        symbols.append(ELEMENTS[next(values)])
        return symbols[-1]
    operator = OPERATORS[int(next(uniform) * len(OPERATORS))]
    to_the_left = int(next(uniform) * operators)
    symbols.append(operator)
    left = grow(uniform, values, to_the_left, symbols, steps)
    right = grow(uniform, values, operators - 1 - to_the_left, symbols, steps)
    result = ELEMENTS[TABLES[operator][int(left[1:]), int(right[1:])]]
    steps.append(f"{operator} {left} {right} = {result}")
    return result


def replaced_first(text: str, old: str, new: str) -> str:
    """`text` with the first `old` replaced where whole symbols match: e1 isn't part of e12."""
    return f" {text} ".replace(f" {old} ", f" {new} ", 1).strip()


@cache
def value_distribution(operators: int) -> np.ndarray:
    """[23] probabilities of the value of a random expression of that many operators."""
    if operators == 0:
        return np.full(MODULUS, 1 / MODULUS)
    total = np.zeros(MODULUS)
    for to_the_left in range(operators):
        left, right = (value_distribution(n) for n in (to_the_left, operators - 1 - to_the_left))
        weights = np.outer(left, right).ravel()
        for table in TABLES.values():
            total += np.bincount(table.ravel(), weights, MODULUS)
    return total / (operators * len(TABLES))
