"""Which of two nodes is reachable in a directed graph: search (ProsQA of Coconut, 2412.06769).

As in ProsQA, two roots grow in one acyclic graph and the question names a node that only the first
reaches and one that only the second reaches. At level 4 it has the reference's 23 nodes and 36
edges (mean path there: 3.8).
"""

from itertools import pairwise
from typing import ClassVar

import numpy as np

from .task import NODES, Problem, Task

# What an extra node belongs to: side 0 and side 1 hang on one root each; from both sides edges may
# lead into sinks, and from sources into everything, but never from sink to side or side to source.
SIDES, SINK, SOURCE = (0, 1), 2, 3
EXTRA_SHARES = (0.35, 0.35, 0.15, 0.15)


class ProsQA(Task):
    """`u v | u v | ... ? root one other`: which of the last two does the root reach?

    The level is the length in edges of the shortest path to the answer. Both roots stand in the
    graph with a path of that length to their own target, and a fair coin says which root is asked:
    whatever a guesser reads off the graph and the two candidates, without the root it is right half
    the time. So `chance` is one half, although naming one fixed node would do far worse.

    The trace writes the path edge by edge, `u v` (`full`), the node after each edge (`short`, also
    the minimal trace), or each edge with what follows, `u v = root v` (`verbose`). Where several
    paths are shortest, it is the one that the graph was grown from.
    """

    name = "prosqa"
    capability = "search"
    constant_attains_chance = False
    levels: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6)
    beyond: ClassVar[tuple[int, ...]] = (8, 10)
    highest = 12
    extra: ClassVar[int] = 13

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Grow the graph, name its nodes, choose the root, shuffle edges and candidates."""
        edges = rng.permutation(grow(rng, level, self.extra)).tolist()
        names = [NODES[index] for index in rng.permutation(len(NODES)).tolist()]
        asked, swapped = rng.integers(0, 2, size=2).tolist()
        length = level + 1
        path = names[asked * length : (asked + 1) * length]
        candidates = [names[length - 1], names[2 * length - 1]]
        graph = " | ".join(f"{names[start]} {names[end]}" for start, end in edges)
        shown = " ".join(candidates[::-1] if swapped else candidates)
        steps = tuple(f"{start} {end}" for start, end in pairwise(path))
        return Problem(
            self.name, level, f"{graph} ? {path[0]} {shown}", path[-1], steps, minimal_trace=level
        )

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The node after each edge."""
        return tuple(step.split()[1] for step in problem.steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each edge, then that the root reaches its end."""
        root = problem.symbols[-3]
        return tuple(f"{step} = {root} {step.split()[1]}" for step in problem.steps)

    def chance(self, level: int) -> float:
        """One of two candidates."""
        return 0.5

    def num_problems(self, level: int) -> None:
        """Over a million at every level: the names alone see to that."""
        return None

    def symbols(self) -> frozenset[str]:
        """The node names."""
        return frozenset(NODES)


class SmallProsQA(ProsQA):
    """ProsQA with 3 nodes beside the two paths instead of 13: what a small backbone can search."""

    name = "prosqa_small"
    levels = (1, 2, 3, 4)
    beyond = (5, 6)
    extra = 3


def grow(rng: np.random.Generator, level: int, extra: int) -> np.ndarray:
    """The graph's edges, [E, 2]: two paths of `level` edges, then random ones among those allowed.

    There are `extra` nodes beside the paths, and in all as many edges more than nodes. Nodes
    0..level are the first path from its root to its target, the next level + 1 the second.
    """
    num_nodes = 2 * (level + 1) + extra
    keys = np.where(allowed_edges(rng, level, extra), rng.random((num_nodes, num_nodes)), np.inf)
    chosen = np.zeros((num_nodes, num_nodes), dtype=bool)
    path = np.arange(2 * (level + 1)).reshape(2, -1)
    chosen[path[:, :-1], path[:, 1:]] = True
    attach_extras(keys, chosen, extra)
    keys[chosen] = np.inf
    missing = num_nodes + extra - int(chosen.sum())
    best = np.argpartition(keys, missing, axis=None)[:missing]
    best = best[np.isfinite(keys.ravel()[best])]
    chosen.ravel()[best] = True
    return np.argwhere(chosen)


def allowed_edges(rng: np.random.Generator, level: int, extra: int) -> np.ndarray:
    """[N, N] bool: edges that keep the graph acyclic, the sides apart and the paths shortest."""
    length = level + 1
    side = np.concatenate((np.repeat(SIDES, length), rng.choice(4, size=extra, p=EXTRA_SHARES)))
    depth = np.concatenate((np.tile(np.arange(length), 2), rng.integers(0, length, extra)))
    place = np.concatenate((np.tile(np.arange(length) / level, 2), rng.random(extra)))
    start, end = side[:, None], side[None, :]
    keeps_sides = (start == end) | (end == SINK) | (start == SOURCE)
    # An edge gains at most one of depth, so no path from depth 0 to `level` is shorter than that.
    keeps_shortest = depth[None, :] <= depth[:, None] + 1
    return keeps_sides & keeps_shortest & (place[:, None] < place[None, :])


def attach_extras(keys: np.ndarray, chosen: np.ndarray, extra: int) -> None:
    """Give every extra node one edge, where it may have one, so that it occurs in the question."""
    num_nodes = len(keys)
    for node in range(num_nodes - extra, num_nodes):
        into, out = int(keys[:, node].argmin()), int(keys[node].argmin())
        start, end = (into, node) if keys[into, node] < keys[node, out] else (node, out)
        if np.isfinite(keys[start, end]):
            chosen[start, end] = True
