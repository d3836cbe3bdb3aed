"""Everything that a node depends on, in order: Brevo of Physics of Language Models 4.1.

Allen-Zhu, "Physics of Language Models: Part 4.1" (2025): edges of a directed acyclic graph in
random order, then a node; the answer is all its ancestors, each after those it depends on.
"""

from math import factorial, perm

import numpy as np

from .task import NODES, Problem, Task

MOST_PARENTS = 4


class Ancestors(Task):
    """`u v | ... ? q`: the ancestors of q in topological order, then q; `u v` says u before v.

    The level is the number of ancestors. As many other nodes hang below the graph, which may depend
    on anything but on which no ancestor depends. A node has at most four parents. Any order in
    which each ancestor follows its own parents is right, and `verify` takes every one; the one that
    is written is that in which the graph was grown.

    The trace writes each ancestor with its parents, `v : u w`, and then the answer (`full`), the
    answer alone (`short`, the minimal trace), or first goes back from q, naming the parents of each
    node when it is first met (`verbose`).
    """

    name = "ancestors"
    capability = "search"
    unique = False
    constant_attains_chance = False
    levels = (2, 4, 6, 8, 12)
    beyond = (14, 16)
    highest = 19

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Grow the graph, name its nodes, shuffle its edges."""
        parents = grow(rng, level)
        names = [NODES[i] for i in rng.permutation(len(NODES))[: len(parents)].tolist()]
        edges = [(start, end) for end, starts in enumerate(parents) for start in starts]
        order = rng.permutation(len(edges)).tolist()
        shown = " | ".join(f"{names[edges[i][0]]} {names[edges[i][1]]}" for i in order)
        answer = " ".join(names[: level + 1])
        steps = [
            f"{names[node]} : {' '.join(names[start] for start in starts)}".rstrip()
            for node, starts in enumerate(parents[: level + 1])
        ]
        question = f"{shown} ? {names[level]}"
        return Problem(self.name, level, question, answer, (*steps, f"= {answer}"), level + 1)

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether `text` names each ancestor once, after its parents, and the node last."""
        if not isinstance(text, str):
            return False
        nodes, right = text.split(), problem.answer.split()
        if sorted(nodes) != sorted(right) or nodes[-1] != right[-1]:
            return False
        place = {node: index for index, node in enumerate(nodes)}
        edges = (edge.split() for edge in problem.question.split(" ? ")[0].split(" | "))
        return all(
            place[start] < place[end] for start, end in edges if start in place and end in place
        )

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The answer alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Back from the node, level by level, then the solution."""
        parents = {step.split()[0]: step.split()[2:] for step in problem.steps[:-1]}
        met = [problem.answer.split()[-1]]
        for node in met:
            met += [parent for parent in parents[node] if parent not in met]
        back = [f"{node} # {' '.join(parents[node])}".rstrip() for node in met]
        return (*back, *problem.steps)

    def chance(self, level: int) -> float:
        """At most this: one ordered choice of nodes, times the orders that may all be right."""
        return factorial(level) / perm(len(NODES), level + 1)

    def num_problems(self, level: int) -> int | None:
        """So many that no two are ever alike."""
        return None

    def symbols(self) -> frozenset[str]:
        """The nodes."""
        return frozenset(NODES)


def grow(rng: np.random.Generator, level: int) -> list[list[int]]:
    """The parents of each node: the ancestors, the asked node, and what depends on them."""
    size = min(len(NODES), 2 * level + 1)
    draws = rng.random((size, MOST_PARENTS + 2)).tolist()
    parents: list[list[int]] = [[] for _ in range(size)]
    for node in range(level):  # each ancestor leads to a later one, or to the asked node
        # The node before a node always finds room at it: the others leave one place.
        room = [end for end in range(node + 2, level + 1) if len(parents[end]) < MOST_PARENTS - 1]
        room.append(node + 1)
        parents[room[int(draws[node][0] * len(room))]].append(node)
    for node in range(1, size):
        wanted = 1 + int(draws[node][1] * 2)
        for draw in draws[node][2:]:
            parent = int(draw * node)
            if len(parents[node]) < wanted and parent not in parents[node]:
                parents[node].append(parent)
    return [sorted(starts) for starts in parents]
