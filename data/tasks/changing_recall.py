"""Recall of what changes: keys are written again and only the latest value counts.

Multi-query associative recall (Arora et al. 2023, 2312.04927) with updates of the keys, as in the
forgetting MQAR of the later recall-against-state studies: a state that only adds up can't do it.
"""

from math import comb, factorial, perm

import numpy as np

from .mqar import KEYS, VALUES
from .recall import Recall, draw_distinct
from .task import Problem


class ChangingRecall(Recall):
    """A stream of `key value` writes, then every key once; the level is the number of keys.

    There are twice as many writes as keys: one for each key and as many for keys drawn uniformly,
    all in random order. So a key is written twice on average, and about a third of them (more at
    low levels, where few keys share the writes) just once. All values of a question differ, keys
    and values are those of `mqar`, and the queries, all at the end, ask for the latest value.

    `verbose` first writes what each write does: `k v` for a new key, `k v > w` for a changed one.
    """

    name = "changing_recall"
    beyond = (24, 30)
    highest = len(VALUES) // 2

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Which key each write is for, the values, and the order of the queries."""
        keys, values = draw_distinct(rng, KEYS, level), draw_distinct(rng, VALUES, 2 * level)
        targets = np.concatenate((np.arange(level), rng.integers(0, level, size=level)))
        writes = [
            (keys[target], value)
            for target, value in zip(rng.permutation(targets).tolist(), values, strict=True)
        ]
        latest = dict(writes)
        queries = [keys[index] for index in rng.permutation(level).tolist()]
        stream = " ".join(f"{key} {value}" for key, value in writes)
        answer = " ".join(latest[query] for query in queries)
        steps = (*(f"{query} {latest[query]}" for query in queries), f"= {answer}")
        return Problem(
            self.name, level, f"{stream} ? {' '.join(queries)}", answer, steps, minimal_trace=level
        )

    def notes(self, problem: Problem) -> tuple[str, ...]:
        """Each write, with the value that it replaces."""
        stream, table, notes = problem.question.split(" ? ")[0].split(), {}, []
        for key, value in zip(stream[::2], stream[1::2], strict=True):
            notes.append(f"{key} {table[key]} > {value}" if key in table else f"{key} {value}")
            table[key] = value
        return tuple(notes)

    def chance(self, level: int) -> float:
        """One ordered choice of that many values among all, each equally likely."""
        return 1 / perm(len(VALUES), level)

    def num_problems(self, level: int) -> int:
        """Choices of keys, streams in which all occur, ordered values, orders of the queries.

        Streams that leave no key out are counted by inclusion and exclusion.
        """
        streams = sum((-1) ** k * comb(level, k) * (level - k) ** (2 * level) for k in range(level))
        orders = factorial(level)
        return comb(len(KEYS), level) * streams * perm(len(VALUES), 2 * level) * orders

    def symbols(self) -> frozenset[str]:
        """Keys and values."""
        return frozenset((*KEYS, *VALUES))
