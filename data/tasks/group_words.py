"""Word problems in permutation groups: state tracking (jopetty/word-problem; Merrill et al. 2024).

A question is a word g_1 ... g_n of group elements, its level is n, and its answer is their product.

Convention: words are read left to right, so that the product g_1 g_2 applies g_1 first, then g_2;
with permutations as maps, p_i(x) = g_i(p_{i-1}(x)). Elements are numbered in lexicographic order of
the tuples (g(0), g(1), ...), so e0 is the identity in every group.
"""

from functools import cache
from itertools import permutations
from typing import ClassVar

import numpy as np

from .task import ELEMENTS, Problem, Task

Permutation = tuple[int, ...]


class GroupWord(Task):
    """The running product of a word; subclasses say in which group and from which inputs.

    The trace writes the running product after every input (`full`), after every second one, the
    last included (`short`, which is also the minimal trace: two products a written symbol), or each
    product as an equation `p * g = q` (`verbose`).
    """

    capability: ClassVar[str] = "state tracking"
    levels: ClassVar[tuple[int, ...]] = (2, 4, 6, 8, 12, 16)
    beyond: ClassVar[tuple[int, ...]] = (24, 32)
    degree: ClassVar[int]
    even_only: ClassVar[bool] = False
    swaps_only: ClassVar[bool] = False

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """A word of uniform inputs, its running products from the multiplication table."""
        elements, inputs = group_elements(self.degree, self.even_only), self.inputs()
        word = [inputs[index] for index in rng.integers(0, len(inputs), size=level).tolist()]
        products = running_products(word, multiplication_table(elements))
        steps = tuple(ELEMENTS[product] for product in products)
        question = " ".join(ELEMENTS[element] for element in word)
        return Problem(self.name, level, question, steps[-1], steps, (level + 1) // 2, labels=steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each product with both its factors."""
        before = (ELEMENTS[0], *problem.steps)
        rows = zip(before, problem.symbols, problem.steps, strict=False)
        return tuple(f"{old} * {factor} = {new}" for old, factor, new in rows)

    def inputs(self) -> tuple[int, ...]:
        """The numbers of the elements that a word is made of."""
        elements = group_elements(self.degree, self.even_only)
        if not self.swaps_only:
            return tuple(range(len(elements)))
        return tuple(number for number, element in enumerate(elements) if is_swap(element))

    def chance(self, level: int) -> float:
        """One in the group's order: a product of uniform elements is uniform."""
        return 1 / len(group_elements(self.degree, self.even_only))

    def num_problems(self, level: int) -> int:
        """All words of that length."""
        return len(self.inputs()) ** level

    def symbols(self) -> frozenset[str]:
        """The group's elements."""
        return frozenset(ELEMENTS[: len(group_elements(self.degree, self.even_only))])


class S3(GroupWord):
    """The symmetric group on 3 points: 6 elements, solvable."""

    name = "s3"
    degree = 3


class S3Swaps(GroupWord):
    """S3 words of its 3 transpositions only; each is one reflection, hence one Householder step.

    The level tells the product's parity, and each product of that parity is equally likely: 1/3.
    """

    name = "s3_swaps"
    levels = (1, 2, 3, 4, 6, 8, 12, 16)
    degree = 3
    swaps_only = True

    def chance(self, level: int) -> float:
        """One in three: parity is known."""
        return 1 / 3


class A5(GroupWord):
    """The alternating group on 5 points: 60 elements, the smallest that is not solvable."""

    name = "a5"
    degree = 5
    even_only = True


class S5(GroupWord):
    """The symmetric group on 5 points: 120 elements; its word problem is complete for NC1."""

    name = "s5"
    degree = 5


@cache
def group_elements(degree: int, even_only: bool) -> tuple[Permutation, ...]:
    """All (even) permutations of range(degree), in lexicographic order."""
    return tuple(p for p in permutations(range(degree)) if not even_only or is_even(p))


@cache
def multiplication_table(elements: tuple[Permutation, ...]) -> list[list[int]]:
    """table[p][g] is the number of "p, then g"."""
    number = {element: index for index, element in enumerate(elements)}
    return [[number[tuple(g[x] for x in p)] for g in elements] for p in elements]


def running_products(word: list[int], table: list[list[int]]) -> list[int]:
    """The product of every prefix of the word."""
    products, product = [], 0
    for element in word:
        product = table[product][element]
        products.append(product)
    return products


def is_even(permutation: Permutation) -> bool:
    """Whether the number of inversions is even."""
    size = range(len(permutation))
    return sum(permutation[i] > permutation[j] for j in size for i in range(j)) % 2 == 0


def is_swap(permutation: Permutation) -> bool:
    """Whether exactly two points move."""
    return sum(image != point for point, image in enumerate(permutation)) == 2
