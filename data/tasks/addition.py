"""n-ary addition with the carries written out: arithmetic (set-up of Saunshi et al. 2502.17416)."""

from functools import cache

import numpy as np

from .task import Problem, Task


class Addition(Task):
    """The sum of n three-digit numbers (100 to 999); the level is n, every digit is one symbol.

    The trace adds column by column, least significant first, one step a column: the digit written,
    `c`, and the carry's digits, as in `7 c 1 2` (`full`); `short` writes only the sum's digits,
    least significant first, and is the minimal trace; `verbose` first writes out each column with
    the carry that comes in, as in `5 + 8 + 1 = 1 4 : 4 c 1`.
    """

    name = "addition"
    capability = "arithmetic"
    levels = (2, 4, 8, 16, 32)
    beyond = (48, 64)
    lowest = 2
    num_digits = 3

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Uniform operands without leading zeros."""
        smallest = 10 ** (self.num_digits - 1)
        operands = rng.integers(smallest, 10 * smallest, size=level).tolist()
        answer = spaced(sum(operands))
        question = " + ".join(map(spaced, operands))
        steps = tuple(
            f"{total % 10} c {spaced(total // 10)}" for _, _, total in self.columns(question)
        )
        return Problem(self.name, level, question, answer, steps, len(answer.split()))

    def columns(self, question: str) -> list[tuple[list[str], int, int]]:
        """Per column, least significant first: its digits, the carry that comes in, the total."""
        operands = [operand.split() for operand in question.split(" + ")]
        rows, carry = [], 0
        for place in range(self.num_digits - 1, -1, -1):
            digits = [operand[place] for operand in operands]
            total = sum(map(int, digits)) + carry
            rows.append((digits, carry, total))
            carry = total // 10
        return rows

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The sum's digits, least significant first."""
        return tuple(reversed(problem.answer.split()))

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each column written out before what it gives."""
        rows = zip(self.columns(problem.question), problem.steps, strict=True)
        return tuple(
            f"{' + '.join(digits)} + {spaced(carry)} = {spaced(total)} : {step}"
            for (digits, carry, total), step in rows
        )

    def chance(self, level: int) -> float:
        """The most frequent sum's share."""
        return likeliest_sum(level, self.num_digits)

    def num_problems(self, level: int) -> int:
        """All lists of that many operands."""
        return (9 * 10 ** (self.num_digits - 1)) ** level

    def symbols(self) -> frozenset[str]:
        """None beyond digits, letters and operators."""
        return frozenset()


def spaced(number: int) -> str:
    """A number as its digits between spaces."""
    return " ".join(str(number))


@cache
def likeliest_sum(operands: int, num_digits: int) -> float:
    """The probability of the mode of the sum of uniform `num_digits`-digit numbers."""
    width = 9 * 10 ** (num_digits - 1)
    weights = np.ones(1)
    for _ in range(operands):
        # A sliding sum of `width` terms convolves with the uniform distribution.
        total = np.concatenate(([0.0], np.cumsum(np.pad(weights, (0, width - 1)))))
        start = np.maximum(np.arange(1, len(total)) - width, 0)
        weights = (total[1:] - total[start]) / width
    return float(weights.max())
