"""Symbolic iGSM modulo 7: composition (Ye et al. 2407.20311; symbols of Saunshi et al. 2502.17416).

Variables are named `owner#item` over a hierarchy of four layers (A-D own E-H, E-H own I-L, I-L own
M-P), and depend only on variables of the same or an earlier layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .task import Problem, Task

MODULUS = 7
LAYERS = ("ABCD", "EFGH", "IJKL", "MNOP")
VARIABLES = tuple(
    f"{owner}#{item}" for owners, items in pairwise(LAYERS) for owner in owners for item in items
)
VARIABLES_PER_LAYER = len(VARIABLES) // (len(LAYERS) - 1)


@dataclass(frozen=True)
class Expression:
    """What a variable is set to: a constant (no operands), a multiple (one), sum or difference."""

    operator: str
    operands: tuple[int, ...] = ()
    factor: int = 0

    def value(self, values: list[int]) -> int:
        """The value modulo 7, given those of the variables."""
        if not self.operands:
            return self.factor
        if self.operator == "*":
            return self.factor * values[self.operands[0]] % MODULUS
        left, right = (values[operand] for operand in self.operands)
        return (left + right if self.operator == "+" else left - right) % MODULUS

    def text(self, names: list[str]) -> str:
        """The right-hand side of the assignment, with the operands written as `names`."""
        if not self.operands:
            return str(self.factor)
        if self.operator == "*":
            return f"{self.factor} * {names[self.operands[0]]}"
        left, right = (names[operand] for operand in self.operands)
        return f"{left} {self.operator} {right}"


class IGSM(Task):
    """Shuffled assignments `I#M = E#I + A#F ; ... ? I#M`; the level is the operations needed.

    An operation is a sum, a difference or a multiple (by 2 to 6) of variables. Besides the needed
    ones there are constants and, as distractors, operations that the answer doesn't depend on. The
    answer is a linear form in the constants, drawn again where it vanishes, so that it is uniform.

    The trace gives each needed variable its value, `I#M = 5`, after those that it depends on: depth
    first from the asked variable, left operand before right (`full`); `short` leaves out the
    constants, which the question states, and the `=`, and is the minimal trace; `verbose` copies
    each expression and puts the values in, as in `I#M = E#I + A#F = 2 + 3 = 5`.
    """

    name = "igsm"
    capability = "composition"
    levels = (1, 2, 4, 6, 8, 12)
    beyond = (16, 20)
    highest = 24

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Draw the graph of dependencies, name it, solve it, and shuffle what is shown."""
        expressions, asked = draw_expressions(rng, level)
        names = draw_names(rng, len(expressions))
        values: list[int] = []
        for expression in expressions:
            values.append(expression.value(values))
        shown = [
            f"{names[i]} = {expression.text(names)}" for i, expression in enumerate(expressions)
        ]
        shuffled = " ; ".join(shown[i] for i in rng.permutation(len(shown)).tolist())
        steps = tuple(f"{names[i]} = {values[i]}" for i in needed(expressions, asked))
        question = f"{shuffled} ? {names[asked]}"
        return Problem(
            self.name, level, question, str(values[asked]), steps, minimal_trace=2 * level
        )

    def short(self, problem: Problem) -> tuple[str, ...]:
        """Name and value of each operation."""
        stated = set(assignments(problem.question).items())
        rows = (step.split(" = ") for step in problem.steps)
        return tuple(f"{name} {value}" for name, value in rows if (name, value) not in stated)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each expression in variables, then in values, then its value."""
        stated = assignments(problem.question)
        values = dict(step.split(" = ") for step in problem.steps)
        return tuple(restated(name, stated[name], values) for name in values)

    def chance(self, level: int) -> float:
        """One in seven: the answer is uniform."""
        return 1 / MODULUS

    def num_problems(self, level: int) -> None:
        """Over a million at every level: the names alone see to that."""
        return None

    def symbols(self) -> frozenset[str]:
        """The variables."""
        return frozenset(VARIABLES)


def assignments(question: str) -> dict[str, str]:
    """The right-hand side of every variable of the question."""
    statements = question.split(" ? ")[0].split(" ; ")
    return dict(statement.split(" = ") for statement in statements)


def restated(name: str, expression: str, values: dict[str, str]) -> str:
    """One verbose step; a constant has nothing to put in."""
    inserted = " ".join(values.get(symbol, symbol) for symbol in expression.split())
    if inserted == expression:
        return f"{name} = {expression}"
    return f"{name} = {expression} = {inserted} = {values[name]}"


def draw_names(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct names in order of their layers, random within a layer."""
    chosen = rng.permutation(len(VARIABLES))[:count].tolist()
    return [VARIABLES[i] for i in sorted(chosen, key=lambda i: i // VARIABLES_PER_LAYER)]


def draw_expressions(rng: np.random.Generator, level: int) -> tuple[list[Expression], int]:
    """Assignments in an order where each uses earlier ones only, and the asked one's index."""
    num_constants = num_distractors = 2 + level // 4
    while True:
        uniform = iter(rng.random(8 * (level + num_distractors) + num_constants).tolist())
        needed_first = [
            Expression("", factor=below(uniform, MODULUS)) for _ in range(num_constants)
        ] + draw_needed(uniform, num_constants, level)
        if depends_on_constants(needed_first, num_constants):
            break
    is_needed = np.ones(level + num_distractors, dtype=bool)
    is_needed[rng.permutation(level + num_distractors)[:num_distractors]] = False
    return interleave(uniform, needed_first, num_constants, is_needed.tolist())


def draw_needed(uniform: Iterator[float], num_constants: int, level: int) -> list[Expression]:
    """`level` operations over the constants 0, 1, ... and each other, all needed by the last one.

    Drawn from the last to the first; one that no later one uses yet must be used by the next.
    """
    operations: list[Expression] = []
    used: set[int] = set()
    for index in range(num_constants + level - 1, num_constants - 1, -1):
        must = index - 1 if index > num_constants and index - 1 not in used else None
        operation = draw_operation(uniform, index, must)
        used.update(operation.operands)
        operations.append(operation)
    return operations[::-1]


def draw_operation(uniform: Iterator[float], earlier: int, must: int | None) -> Expression:
    """A random operation over the variables 0 .. earlier - 1, `must` among its operands."""
    kind, order = next(uniform), next(uniform)
    first = must if must is not None else below(uniform, earlier)
    if kind < 0.2:
        return Expression("*", (first,), factor=2 + below(uniform, MODULUS - 2))
    second = below(uniform, earlier - 1)
    second += second >= first
    operands = (first, second) if order < 0.5 else (second, first)
    return Expression("+" if kind < 0.6 else "-", operands)


def below(uniform: Iterator[float], bound: int) -> int:
    """An integer from 0 to bound - 1."""
    return int(next(uniform) * bound)


def depends_on_constants(expressions: list[Expression], num_constants: int) -> bool:
    """Whether the last expression, as a linear form in the constants, is not zero modulo 7."""
    forms = []
    for constant in range(num_constants):
        unit = [int(index == constant) for index in range(num_constants)]
        values = list(unit)
        for expression in expressions[num_constants:]:
            values.append(expression.value(values))
        forms.append(values[-1])
    return any(forms)


def interleave(
    uniform: Iterator[float],
    needed_first: list[Expression],
    num_constants: int,
    is_needed: list[bool],
) -> tuple[list[Expression], int]:
    """Put distractors between the needed operations; returns the list and the last needed index."""
    place = list(range(num_constants))
    result, asked = needed_first[:num_constants], 0
    remaining = iter(needed_first[num_constants:])
    for wanted in is_needed:
        if wanted:
            expression = next(remaining)
            operands = tuple(place[operand] for operand in expression.operands)
            asked = len(result)
            place.append(asked)
            result.append(Expression(expression.operator, operands, expression.factor))
        else:
            result.append(draw_operation(uniform, len(result), None))
    return result, asked


def needed(expressions: list[Expression], asked: int) -> list[int]:
    """What the asked variable depends on and itself: depth first, left operand before right."""
    order: dict[int, None] = {}

    def visit(index: int) -> None:
        if index not in order:
            for operand in expressions[index].operands:
                visit(operand)
            order[index] = None

    visit(asked)
    return list(order)
