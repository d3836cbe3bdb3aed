"""Recall among noise: selection and recall in one (MAD, Poli et al. 2024, 2403.17844)."""

from math import comb, factorial, perm

import numpy as np

from .mqar import KEYS, VALUES
from .recall import Recall, draw_distinct
from .task import Problem

NOISE = "abcdefghijklmnop"


class NoisyRecall(Recall):
    """Key-value pairs with as much noise strewn in, then every key; the level counts the pairs.

    A question of level n is the 2 n symbols of n pairs and 2 n noise letters, at uniformly random
    places, then `?` and every key once. So the noise fraction is one half (MAD's baseline has 0.2,
    its hardest setting 0.8), and noise also separates a key from its value, so that no fixed shift
    finds it. As in MAD there are 16 noise symbols; keys and values are those of `mqar`, drawn
    without replacement, and each pair is shown once.

    `verbose` first writes the pairs without the noise, `k v`.
    """

    name = "noisy_recall"
    highest = len(KEYS)

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Keys, values, noise, places and the order of the queries are all independent."""
        keys, values = draw_distinct(rng, KEYS, level), draw_distinct(rng, VALUES, level)
        content = [symbol for pair in zip(keys, values, strict=True) for symbol in pair]
        noise = [NOISE[index] for index in rng.integers(0, len(NOISE), size=2 * level).tolist()]
        is_noise = np.zeros(4 * level, dtype=bool)
        is_noise[rng.permutation(4 * level)[: 2 * level]] = True
        sources = (iter(content), iter(noise))
        stream = " ".join(next(sources[which]) for which in is_noise.tolist())
        order = rng.permutation(level).tolist()
        queries, answer = [keys[i] for i in order], " ".join(values[i] for i in order)
        steps = (*(f"{keys[i]} {values[i]}" for i in order), f"= {answer}")
        return Problem(
            self.name, level, f"{stream} ? {' '.join(queries)}", answer, steps, minimal_trace=level
        )

    def notes(self, problem: Problem) -> tuple[str, ...]:
        """The pairs in the order of the question."""
        stream = problem.question.split(" ? ")[0].split()
        content = [symbol for symbol in stream if symbol not in NOISE]
        pairs = zip(content[::2], content[1::2], strict=True)
        return tuple(f"{key} {value}" for key, value in pairs)

    def chance(self, level: int) -> float:
        """One ordered choice of that many values among all, each equally likely."""
        return 1 / perm(len(VALUES), level)

    def num_problems(self, level: int) -> int:
        """Ordered choices of keys and of values, orders of queries, and the noise in its places."""
        pairs = perm(len(KEYS), level) * perm(len(VALUES), level) * factorial(level)
        return pairs * comb(4 * level, 2 * level) * len(NOISE) ** (2 * level)

    def symbols(self) -> frozenset[str]:
        """Keys and values; noise is letters."""
        return frozenset((*KEYS, *VALUES))
