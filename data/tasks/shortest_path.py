"""The shortest path between two nodes of an undirected graph: search."""

from itertools import pairwise
from math import perm

import numpy as np

from .task import NODES, Problem, Task


class ShortestPath(Task):
    """`u v | v w | ... ? start goal`: the nodes of the one shortest path, after the start.

    The level is its length in edges. A tree grows from the start, one branch of it the path; then
    edges are added between nodes whose distances from the start differ by at most one, but none
    that would give a node of the path a second way back. So distances stay those of the tree, and
    the path stays the only shortest one, while longer ways around it abound. An edge has no
    direction: its two ends stand in random order.

    The trace writes the path edge by edge, `u v`, and then the path (`full`), the path alone
    (`short`, the minimal trace), or first the nodes at each distance from the start, `: u v w`
    (`verbose`).
    """

    name = "shortest_path"
    capability = "search"
    levels = (2, 3, 4, 5, 6)
    beyond = (8, 10)
    lowest = 2
    highest = 12

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Grow the graph, name its nodes, shuffle edges and their ends."""
        depths, edges = grow(rng, level)
        names = [NODES[i] for i in rng.permutation(len(NODES))[: len(depths)].tolist()]
        order, turned = (
            rng.permutation(len(edges)).tolist(),
            rng.integers(0, 2, len(edges)).tolist(),
        )
        shown = [
            edges[i][::-1] if turn else edges[i] for i, turn in zip(order, turned, strict=True)
        ]
        graph = " | ".join(f"{names[a]} {names[b]}" for a, b in shown)
        path = names[: level + 1]
        answer = " ".join(path[1:])
        steps = tuple(f"{a} {b}" for a, b in pairwise(path))
        question = f"{graph} ? {path[0]} {path[-1]}"
        return Problem(self.name, level, question, answer, (*steps, f"= {answer}"), level)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The path alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Breadth first: what lies at each distance, as far as the goal, then the solution."""
        graph, asked = problem.question.split(" ? ")
        start, goal = asked.split()
        near: dict[str, list[str]] = {}
        for a, b in (edge.split() for edge in graph.split(" | ")):
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        seen, front, rows = {start}, [start], []
        while goal not in front:
            front = list(dict.fromkeys(b for a in front for b in near[a] if b not in seen))
            seen.update(front)
            rows.append(f": {' '.join(front)}")
        return (*rows, *problem.steps)

    def chance(self, level: int) -> float:
        """One ordered choice of the path's nodes among all, each equally likely."""
        return 1 / perm(len(NODES), level)

    def num_problems(self, level: int) -> int | None:
        """So many that no two are ever alike."""
        return None

    def symbols(self) -> frozenset[str]:
        """The nodes."""
        return frozenset(NODES)


def grow(rng: np.random.Generator, level: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Distances of nodes from node 0, and edges; nodes 0 to `level` are the path."""
    size = min(len(NODES), 3 * level + 8)
    depths = list(range(level + 1))
    edges = [(node - 1, node) for node in range(1, level + 1)]
    by_depth = [[node] for node in range(level + 1)] + [[]]
    draws = rng.random((2 * size, 2)).tolist()
    for first, second in draws[: size - level - 1]:
        depth = 1 + int(first * (level + 1))
        above = by_depth[depth - 1]
        edges.append((above[int(second * len(above))], len(depths)))
        by_depth[depth].append(len(depths))
        depths.append(depth)
    there = set(edges)
    for first, second in draws[size : size + size // 2]:
        a, b = sorted((int(first * size), int(second * size)), key=lambda node: depths[node])
        if a == b or depths[b] - depths[a] > 1 or {(a, b), (b, a)} & there:
            continue
        if b <= level and depths[a] < depths[b]:  # a second way back from the path
            continue
        edges.append((a, b))
        there.add((a, b))
    return depths, edges
