"""Multiplication of two numbers on paper: partial products and their running sum."""

from functools import cache
from itertools import accumulate

import numpy as np

from .addition import spaced
from .task import Problem, Task

LARGEST_ENUMERATED = 3


class Multiplication(Task):
    """`1 2 * 3 4` is `4 0 8`; the level is the number of digits of both factors.

    Factors are uniform without leading zeros, every digit is one symbol, the highest first.

    The trace multiplies the first factor by each digit of the second, the lowest first and with its
    zeros, and adds the products up: `1 2 * 4 = 4 8 : 4 8`, then `1 2 * 3 0 = 3 6 0 : 4 0 8`, where
    the running sum follows the colon (`full`). `short` writes only the running sums, with `;`
    between them, and is the minimal trace. `verbose` first multiplies digit by digit with the
    carry, lowest first, as in `2 * 4 + 0 = 8 , 1 * 4 + 0 = 4`, and writes out the addition.
    """

    name = "multiplication"
    capability = "arithmetic"
    constant_attains_chance = False  # above 3 digits it is a bound
    levels = (1, 2, 3, 4, 5)
    beyond = (6, 8)
    highest = 12

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Two uniform factors."""
        smallest = 10 ** (level - 1)
        first, second = rng.integers(smallest, 10 * smallest, size=2).tolist()
        factors = [digit * 10**place for place, digit in enumerate(map(int, str(second)[::-1]))]
        sums = [spaced(total) for total in accumulate(first * factor for factor in factors)]
        steps = tuple(
            f"{spaced(first)} * {spaced(factor)} = {spaced(first * factor)} : {total}"
            for factor, total in zip(factors, sums, strict=True)
        )
        minimal_trace = sum(len(total.split()) + 1 for total in sums) - 1
        question = f"{spaced(first)} * {spaced(second)}"
        return Problem(self.name, level, question, sums[-1], steps, minimal_trace)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The running sums."""
        sums = [step.split(" : ")[1] for step in problem.steps]
        return (sums[0], *(f"; {total}" for total in sums[1:]))

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each digit's products, the partial product, and the addition written out."""
        rows, before = [], "0"
        for step in problem.steps:
            product, total = step.split(" : ")
            first, rest = product.split(" * ")
            factor, partial = rest.split(" = ")
            digits = digit_products(first.split(), factor.split()[0])
            rows.append(f"{digits} : {product} : {before} + {partial} = {total}")
            before = total
        return tuple(rows)

    def chance(self, level: int) -> float:
        """The most frequent product's share: exact up to 3 digits, a bound from above beyond.

        A product is made in at most as many ways as it has divisors, and no number so small has
        more than `most_divisors`; the bound is below 1e-5 at 4 digits.
        """
        num_factors = 9 * 10 ** (level - 1)
        if level > LARGEST_ENUMERATED:
            return most_divisors(100**level) / num_factors**2
        factors = np.arange(10 ** (level - 1), 10**level)
        return int(np.bincount(np.multiply.outer(factors, factors).ravel()).max()) / num_factors**2

    def num_problems(self, level: int) -> int:
        """All pairs of factors."""
        return (9 * 10 ** (level - 1)) ** 2

    def symbols(self) -> frozenset[str]:
        """None beyond digits and operators."""
        return frozenset()


def digit_products(digits: list[str], factor: str) -> str:
    """`digit * factor + carry = total` for each digit, the lowest first."""
    rows, carry = [], 0
    for digit in reversed(digits):
        total = int(digit) * int(factor) + carry
        rows.append(f"{digit} * {factor} + {carry} = {spaced(total)}")
        carry = total // 10
    return " , ".join(rows)


@cache
def most_divisors(
    limit: int, primes: tuple[int, ...] = (2, 3, 5, 7, 11, 13, 17, 19, 23), highest: int = 99
) -> int:
    """The most divisors that a number below `limit` has.

    The smallest number with given exponents has them in falling order over the first primes;
    `highest` bounds the next one's.
    """
    best, power = 1, 1
    for exponent in range(1, highest + 1):
        power *= primes[0] if primes else limit
        if power >= limit:
            break
        remaining = -(-limit // power)
        best = max(best, (exponent + 1) * most_divisors(remaining, primes[1:], exponent))
    return best
