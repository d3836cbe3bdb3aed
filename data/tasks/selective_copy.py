"""Selective copying: keep or let go (Gu and Dao 2023, 2312.00752; MAD, Poli et al., 2403.17844)."""

from math import comb

import numpy as np

from .task import ELEMENTS, Problem, Task

CONTENT = ELEMENTS[:16]
NOISE = "."
SYMBOLS_PER_TOKEN = 4


class SelectiveCopy(Task):
    """Copy the content tokens and leave the noise out; the level is the number of content tokens.

    A question of level n has 4 n symbols: n content tokens, drawn with replacement from 16, stand
    at places drawn without replacement, and each of the other 3 n is the one noise symbol. The
    answer is all content tokens in their order, and only the whole is correct. As in Mamba's and
    MAD's task, the gaps are random, so that no fixed shift solves it; unlike them, the length grows
    with the level (at 16 tokens it is 64, MAD's is 256), and the answer is written token by token
    rather than beside blanks.

    The trace is the answer itself: the tokens (`full`, `short`, and the minimal trace), or each
    twice (`verbose`).
    """

    name = "selective_copy"
    capability = "selection"
    levels = (2, 4, 8, 16)
    beyond = (24, 32)

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Content tokens and their places, independent of each other."""
        content = [CONTENT[index] for index in rng.integers(0, len(CONTENT), size=level).tolist()]
        symbols = [NOISE] * (SYMBOLS_PER_TOKEN * level)
        places = np.sort(rng.permutation(len(symbols))[:level]).tolist()
        for place, token in zip(places, content, strict=True):
            symbols[place] = token
        answer = " ".join(content)
        return Problem(self.name, level, " ".join(symbols), answer, tuple(content), level)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """Every token: none can be left out."""
        return problem.steps

    def chance(self, level: int) -> float:
        """Every string of that many content tokens is equally likely."""
        return len(CONTENT) ** -float(level)

    def num_problems(self, level: int) -> int:
        """The places of the content, times its tokens."""
        return comb(SYMBOLS_PER_TOKEN * level, level) * len(CONTENT) ** level

    def symbols(self) -> frozenset[str]:
        """The content tokens; noise is an operator."""
        return frozenset(CONTENT)
