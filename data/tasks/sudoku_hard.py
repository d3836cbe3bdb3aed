"""Hard 9x9 sudokus, up to such that single candidates hardly begin: search with backtracking.

Puzzles with one solution can't be found by the thousand in a second, so a bank of them is kept
(`sudoku_bank.txt`, made by `python -m data.tasks.make_sudoku_bank`), and a problem is a random
symmetry of one: there are 9! x 6^8 x 2 of them. Train, validation and test have different puzzles
of the bank, not only different symmetries.
"""

from functools import cache
from pathlib import Path

import numpy as np

from .sudoku import Grid, Sudoku, Symmetry, symmetry, transformed
from .task import Problem

BANK = Path(__file__).parent / "sudoku_bank.txt"
# Up to how many guesses the solver makes at each level: none, and then ever more.
GUESSES = (0, 2, 6, 14, 10_000)


class Sudoku9(Sudoku):
    """9x9; the level says how many digits a solver must guess that fills single candidates first.

    Level 1 needs no guess; level 2 up to 2, level 3 up to 6, level 4 up to 14, level 5 more. The
    solver guesses the first digit of the field with the fewest candidates and goes back where that
    fails; its guesses count whether they fail or not.

    Traces are those of the smaller grids, in the order in which the solver fills the fields once it
    guesses right; a guessed one is marked with `?`, `2 3 ? 4`.
    """

    name = "sudoku_9x9"
    rows, columns = 3, 3
    levels = (1, 2, 3)
    beyond = (4, 5)
    lowest, highest = 1, 5
    constant_attains_chance = False

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """A symmetry of a puzzle of the bank."""
        puzzles = bank()[level]
        number = int(rng.integers(len(puzzles)))
        puzzle, solution, order = puzzles[number]
        change = turned(rng, symmetry(rng, 3, 3))
        shown, places = transformed(puzzle, change)
        solved, _ = transformed(solution, change)
        answer = self.written(solved)
        steps = []
        for field, guessed in order:
            row, column = divmod(places[field], 9)
            steps.append(
                f"{row + 1} {column + 1} {'?' if guessed else '='} {solved[places[field]]}"
            )
        length = len(answer.split())
        question = self.written(shown)
        return Problem(
            self.name, level, question, answer, (*steps, f": {answer}"), length, entry=number
        )

    def split_key(self, problem: Problem) -> str:
        """The puzzle of the bank, whose symmetries all belong to one split."""
        return f"{problem.level} {problem.entry}"

    def chance(self, level: int) -> float:
        """At most this: the first row alone is any order of nine digits."""
        return 1 / 362_880


Puzzle = tuple[Grid, Grid, list[tuple[int, bool]]]
"""The puzzle, its solution, and the fields in the order of filling, each with whether by guess."""


@cache
def bank() -> dict[int, list[Puzzle]]:
    """The puzzles of each level."""
    puzzles: dict[int, list[Puzzle]] = {level: [] for level in range(1, 6)}
    for line in BANK.read_text().splitlines():
        level, puzzle, solution, order = line.split()
        fields = [(int(word.rstrip("?")), word.endswith("?")) for word in order.split(",")]
        puzzles[int(level)].append(([*map(int, puzzle)], [*map(int, solution)], fields))
    return puzzles


def turned(rng: np.random.Generator, change: Symmetry) -> Symmetry:
    """The symmetry, half the time with rows and columns exchanged as well."""
    fields, digits = change
    if rng.integers(2):
        fields = [old % 9 * 9 + old // 9 for old in fields]
    return fields, digits
