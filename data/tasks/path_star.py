"""Which arm of a star leads to the goal: the failure of teacher forcing (Bachmann 2403.06963)."""

from math import perm

import numpy as np

from .task import NODES, Problem, Task

ARMS = 3


class PathStar(Task):
    """`u v | u w | ... ? centre goal`: the nodes from the centre to the goal, one edge each.

    Three arms of `level` nodes leave the centre; edges are shuffled and nodes named at random. Each
    step of the path but the first has one continuation only, so all is decided at the first, which
    can't be found without the way back from the goal. The centre isn't repeated in the answer.

    The trace goes back from the goal edge by edge, `v u`, and then writes the path (`full`), writes
    the path alone (`short`, the minimal trace), or first walks down every arm, marking with `#`
    those that miss the goal (`verbose`).
    """

    name = "path_star"
    capability = "search"
    levels = (2, 3, 4, 6, 8)
    beyond = (10, 12)
    highest = (len(NODES) - 1) // ARMS

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Name the nodes, choose the arm, shuffle the edges."""
        names = [NODES[i] for i in rng.permutation(len(NODES))[: ARMS * level + 1].tolist()]
        centre = names[0]
        arms = [names[1 + arm * level : 1 + (arm + 1) * level] for arm in range(ARMS)]
        edges = [edge for arm in arms for edge in zip([centre, *arm], arm, strict=False)]
        path = arms[int(rng.integers(ARMS))]
        shown = " | ".join(" ".join(edges[i]) for i in rng.permutation(len(edges)).tolist())
        back = [f"{end} {start}" for start, end in zip([centre, *path], path, strict=False)][::-1]
        answer = " ".join(path)
        question = f"{shown} ? {centre} {path[-1]}"
        return Problem(self.name, level, question, answer, (*back, f"= {answer}"), level)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The path alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Every arm in the order of the question, then the full solution."""
        graph, asked = problem.question.split(" ? ")
        edges = [edge.split() for edge in graph.split(" | ")]
        centre, goal = asked.split()
        after = {start: end for start, end in edges if start != centre}
        walks = []
        for node in (end for start, end in edges if start == centre):
            walk = [node]
            while walk[-1] in after:
                walk.append(after[walk[-1]])
            walks.append(" ".join(walk) + ("" if walk[-1] == goal else " #"))
        return (*walks, *problem.steps)

    def chance(self, level: int) -> float:
        """One ordered choice of the path's nodes among all, each equally likely."""
        return 1 / perm(len(NODES), level)

    def num_problems(self, level: int) -> int | None:
        """So many that no two are ever alike."""
        return None

    def symbols(self) -> frozenset[str]:
        """The nodes."""
        return frozenset(NODES)
