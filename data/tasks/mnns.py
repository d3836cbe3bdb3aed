"""Signs that bring a sum to its target: search (after the MNNS of CoT2, Gozeten et al. 2505.23648).

In CoT2's minimum non-negative sum every number gets a sign and the sum must come as close to zero
as it can without being negative. With many numbers that sum is nearly always 0 or 1, by parity
alone, so here the question names the sum to reach and the answer is the signs.

With numbers from 1 to 9 the greedy rule (take the largest number first and sign it towards what is
left to reach) would solve three questions in four at any size. With numbers from 10 to 99 it falls
from two in three at 4 numbers to one in three at 6 and one in ten at 10.
"""

from functools import cache
from math import comb

import numpy as np

from .addition import spaced
from .task import Problem, Task

SMALLEST, LARGEST = 10, 99
RANGE = LARGEST - SMALLEST + 1


class MNNS(Task):
    """`3 0 , 7 5 , 2 1 ? 6 6`: which signs make the sum 66? `- + +`; the level counts the numbers.

    Numbers are uniform from 10 to 99, and the target is the size of their sum under random signs,
    so it can always be reached. Several answers may be right (to one question in ten at 5 numbers,
    to half at 8), and `verify` takes every one; the one that is written is the first in the order
    of `+` before `-`.

    The trace takes each number with its sign and the sum so far, `+ 7 5 = 4 5`, and then writes all
    signs (`full`); `short` writes the signs alone and is the minimal trace; `verbose` also tries
    `+` where it leads nowhere, marks it with `#`, and says from which sum each try starts, as in
    `0 + 3 0 = 3 0 # 0 - 3 0 = - 3 0`.
    """

    name = "mnns"
    capability = "search"
    unique = False
    levels = (3, 4, 5, 6, 8)
    beyond = (10, 12)
    lowest = 2
    highest = 16

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Numbers, hidden signs for the target, and the first signs that reach it."""
        numbers = rng.integers(SMALLEST, LARGEST + 1, size=level).tolist()
        hidden = rng.integers(0, 2, size=level).tolist()
        target = abs(sum(n if sign else -n for n, sign in zip(numbers, hidden, strict=True)))
        signs, rows, total = first_signs(numbers, target), [], 0
        for number, sign in zip(numbers, signs, strict=True):
            total += number if sign == "+" else -number
            rows.append(f"{sign} {spaced(number)} = {signed(total)}")
        answer = " ".join(signs)
        question = f"{' , '.join(map(spaced, numbers))} ? {spaced(target)}"
        return Problem(self.name, level, question, answer, (*rows, f": {answer}"), level)

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether `text` is one sign for each number and the sum is the target."""
        if not isinstance(text, str):
            return False
        signs = text.split()
        shown, target = problem.question.split(" ? ")
        numbers = [unspaced(number) for number in shown.split(" , ")]
        if len(signs) != len(numbers) or not set(signs) <= {"+", "-"}:
            return False
        total = sum(n if sign == "+" else -n for n, sign in zip(numbers, signs, strict=True))
        return total == unspaced(target)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The signs alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """The steps with the tries that failed: at every minus, a plus would have led nowhere."""
        rows, before = [], "0"
        for step in problem.steps[:-1]:
            move, after = step.split(" = ")
            sign, number = move.split(" ", 1)
            failed = f"{before} + {number} = {signed(unspaced(before) + unspaced(number))} # "
            rows.append(f"{failed if sign == '-' else ''}{before} {sign} {number} = {after}")
            before = after
        return (*rows, problem.steps[-1])

    def chance(self, level: int) -> float:
        """The share of questions that one string of signs answers, for the best of them; exact."""
        return max(share_answered(level, minus) for minus in range(level + 1))

    def num_problems(self, level: int) -> int | None:
        """Two numbers, their sum or difference; three numbers alone are over half a million."""
        return 2 * RANGE**2 if level == 2 else None

    def symbols(self) -> frozenset[str]:
        """None beyond digits and operators."""
        return frozenset()


def signed(number: int) -> str:
    """A number as its digits, after a minus where it is negative."""
    return spaced(number) if number >= 0 else f"- {spaced(-number)}"


def unspaced(text: str) -> int:
    """The number that `signed` wrote so."""
    return int(text.replace(" ", ""))


def first_signs(numbers: list[int], target: int) -> list[str]:
    """The first signs, `+` before `-`, whose sum is the target; there must be some.

    The sums that the numbers from i on can make are the bits of one integer, `offset` up.
    """
    offset = sum(numbers)
    reachable = [1 << offset]
    for number in reversed(numbers):
        reachable.append(reachable[-1] << number | reachable[-1] >> number)
    signs, remaining = [], target
    for number, sums in zip(numbers, reachable[-2::-1], strict=True):
        sign = "+" if sums >> (offset + remaining - number) & 1 else "-"
        remaining -= number if sign == "+" else -number
        signs.append(sign)
    assert remaining == 0, "the target can't be reached"
    return signs


def share_answered(level: int, minus: int) -> float:
    """The probability that signs of which `minus` are minuses reach a random question's target.

    The target is |h d| for hidden signs h. Signs s reach it where s d = |h d|: by the symmetry of h
    that has twice the probability of s d = h d > 0, plus that of s d = h d = 0. Split the numbers
    by where s and h agree: s d = h d says that those where they disagree cancel, and then s d is
    the sum over the others.
    """
    total = 0.0
    for agreeing in range(level - minus + 1):
        for agreeing_minus in range(minus + 1):
            cancels = difference(level - minus - agreeing, minus - agreeing_minus)
            value = difference(agreeing, agreeing_minus)
            zero, zero_value = len(cancels) // 2, len(value) // 2
            positive = 2 * value[zero_value + 1 :].sum() + value[zero_value]
            ways = comb(level - minus, agreeing) * comb(minus, agreeing_minus)
            total += ways * cancels[zero] * positive
    return float(total / 2**level)


@cache
def difference(plus: int, minus: int) -> np.ndarray:
    """Probabilities of the sum of `plus` uniform numbers less that of `minus`; 0 in the middle."""
    distribution = np.zeros(2 * LARGEST * (plus + minus) + 1)
    weights = np.ones(1)
    for _ in range(plus + minus):
        weights = np.convolve(weights, np.full(RANGE, 1 / RANGE))
    start = len(distribution) // 2 + SMALLEST * plus - LARGEST * minus
    distribution[start : start + len(weights)] = weights
    return distribution
