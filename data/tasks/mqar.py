"""Multi-query associative recall: recall (Arora et al. 2023, 2312.04927; HazyResearch/zoology)."""

from math import factorial, perm

import numpy as np

from .task import ELEMENTS, Problem, Task

KEYS = ELEMENTS[:60]
VALUES = ELEMENTS[60:]


class MultiQueryRecall(Task):
    """Key-value pairs, then every key once in another order; the level is the number of pairs.

    Question `k_1 v_1 ... k_n v_n ? q_1 ... q_n`; the answer is all n values in the order of the
    queries, and only the whole is correct. As in zoology, keys and values are drawn without
    replacement from separate halves of the vocabulary; unlike it, queries follow each other without
    filler, and their values are asked for after them rather than between.

    The trace writes each query with its value, `q v` (`full`), the values alone (`short`, also the
    minimal trace), or each query with the pair that answers it, `? q : q v` (`verbose`).
    """

    name = "mqar"
    capability = "recall"
    levels = (2, 4, 8, 16)
    beyond = (24, 32)
    highest = len(KEYS)

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Keys, values and the order of the queries are three independent permutations."""
        keys = [KEYS[index] for index in rng.permutation(len(KEYS))[:level].tolist()]
        values = [VALUES[index] for index in rng.permutation(len(VALUES))[:level].tolist()]
        order = rng.permutation(level).tolist()
        pairs = " ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
        queries, answer = [keys[i] for i in order], [values[i] for i in order]
        steps = tuple(f"{query} {value}" for query, value in zip(queries, answer, strict=True))
        question = f"{pairs} ? {' '.join(queries)}"
        return Problem(self.name, level, question, " ".join(answer), steps, level)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The values alone."""
        return tuple(step.split()[1] for step in problem.steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each query, then the pair that answers it."""
        return tuple(f"? {step.split()[0]} : {step}" for step in problem.steps)

    def chance(self, level: int) -> float:
        """One ordered choice of that many values among all."""
        return 1 / perm(len(VALUES), level)

    def num_problems(self, level: int) -> int:
        """Ordered choices of keys and of values, times the orders of the queries."""
        return perm(len(KEYS), level) * perm(len(VALUES), level) * factorial(level)

    def symbols(self) -> frozenset[str]:
        """Keys and values."""
        return frozenset(ELEMENTS)
