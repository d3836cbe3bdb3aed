"""Chains of variables that are copies of each other: depth by hops of lookup.

Variable assignment, a reasoning primitive of Saunshi et al. 2502.17416, here with the chains cut
into statements in random order, so that a hop is a lookup and its direction can't be read off.
"""

from itertools import pairwise
from string import ascii_letters, ascii_uppercase, digits

import numpy as np

from .recall import draw_distinct
from .task import Problem, Task

NUM_CHAINS = 3


class VarAssign(Task):
    """`b = a ; a = 3 ; ... ? b`: the value of a variable that many copies from a digit.

    Three chains of the same length start at three different digits, their statements shuffled
    together, and the end of one of them, at random, is asked for. The level is the number of hops
    from variable to variable. Without following the chain no statement says more than another:
    whoever picks one of the three digits is right one time in three.

    The trace writes the statements from the asked variable back to the digit, `b = a`, `a = 3`
    (`full`), only their right sides (`short`, also the minimal trace), or after the way back also
    the value of every variable on the way forth (`verbose`).
    """

    name = "var_assign"
    capability = "depth"
    levels = (1, 2, 4, 8)
    beyond = (12, 16)
    highest = len(ascii_letters) // NUM_CHAINS - 1

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Name the chains, give each a digit, shuffle the statements."""
        names = draw_distinct(rng, ascii_letters, NUM_CHAINS * (level + 1))
        values = draw_distinct(rng, digits, NUM_CHAINS)
        chains = [[value, *names[k::NUM_CHAINS]] for k, value in enumerate(values)]
        statements = [f"{new} = {old}" for chain in chains for old, new in pairwise(chain)]
        shuffled = " ; ".join(statements[i] for i in rng.permutation(len(statements)).tolist())
        asked = chains[0]  # names and digits are exchangeable, so the first is a random one
        steps = tuple(f"{new} = {old}" for new, old in pairwise(asked[::-1]))
        return Problem(
            self.name, level, f"{shuffled} ? {asked[-1]}", asked[0], steps, minimal_trace=level + 1
        )

    def short(self, problem: Problem) -> tuple[str, ...]:
        """What each variable is a copy of."""
        return tuple(step.split()[2] for step in problem.steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Back to the digit, then the digit put into every variable up to the asked one."""
        names = [step.split()[0] for step in reversed(problem.steps)]
        return (*problem.steps, *(f"{name} = {problem.answer}" for name in names[1:]))

    def chance(self, level: int) -> float:
        """One in ten: every digit is equally likely."""
        return 1 / len(digits)

    def num_problems(self, level: int) -> None:
        """Over a million at every level: the names alone see to that."""
        return None

    def symbols(self) -> frozenset[str]:
        """Capital letters."""
        return frozenset(ascii_uppercase)
