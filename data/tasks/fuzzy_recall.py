"""Recall of motifs: keys and values of several symbols (MAD, Poli et al. 2024, 2403.17844)."""

import re
from math import factorial, perm

import numpy as np

from .recall import Recall
from .task import Problem

KEY_LETTERS = "abcdefgh"
VALUE_LETTERS = "ijklmnop"
LONGEST = 3
NUM_MOTIFS = sum(len(KEY_LETTERS) ** length for length in range(1, LONGEST + 1))

# A key is a run of its letters, a value the run of its own letters that follows.
PAIR = re.compile(rf"([{KEY_LETTERS} ]*[{KEY_LETTERS}]) ([{VALUE_LETTERS} ]*[{VALUE_LETTERS}])")


class FuzzyRecall(Recall):
    """Pairs of motifs, then every key; the level is the number of pairs.

    As in MAD, a motif has 1 to 3 symbols, each length equally likely, and keys and values have
    separate alphabets (here 8 letters each), so a pair ends where the next key's letters begin. A
    key may be the beginning or the end of another, and only a whole motif counts: `a b` is not `a`.
    Unlike in MAD, a motif may repeat a letter, and the queries have keys of every length.

    Question `a b i c j k l ? c | a b`, answer `j k l | i`: keys are distinct, values independent.
    The trace writes the queries as `c : j k l`; `verbose` first cuts the stream: `a b : i`.
    """

    name = "fuzzy_recall"

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Distinct keys, any values, and the queries in random order."""
        keys, values = draw_keys(rng, level), draw_motifs(rng, VALUE_LETTERS, level)
        order = rng.permutation(level).tolist()
        stream = " ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
        queries, answer = (" | ".join(motifs[i] for i in order) for motifs in (keys, values))
        steps = (*(f"{keys[i]} : {values[i]}" for i in order), f"= {answer}")
        return Problem(
            self.name, level, f"{stream} ? {queries}", answer, steps, len(answer.split())
        )

    def notes(self, problem: Problem) -> tuple[str, ...]:
        """The pairs in the order of the question."""
        pairs = PAIR.findall(problem.question.split(" ? ")[0])
        return tuple(f"{key.strip()} : {value.strip()}" for key, value in pairs)

    def chance(self, level: int) -> float:
        """Any one value of a single letter in every place: the likeliest, and independent."""
        return (LONGEST * len(VALUE_LETTERS)) ** -float(level)

    def num_problems(self, level: int) -> int:
        """Ordered choices of keys, times values, times orders of the queries."""
        return perm(NUM_MOTIFS, level) * NUM_MOTIFS**level * factorial(level)

    def symbols(self) -> frozenset[str]:
        """None beyond letters and operators."""
        return frozenset()


def draw_motifs(rng: np.random.Generator, letters: str, count: int) -> list[str]:
    """Motifs of uniform length and uniform letters."""
    lengths = rng.integers(1, LONGEST + 1, size=count).tolist()
    rows = rng.integers(0, len(letters), size=(count, LONGEST)).tolist()
    return [
        " ".join(letters[index] for index in row[:length])
        for length, row in zip(lengths, rows, strict=True)
    ]


def draw_keys(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct motifs: those that came up before are left out."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys |= dict.fromkeys(draw_motifs(rng, KEY_LETTERS, count + 2))
    return list(keys)[:count]
