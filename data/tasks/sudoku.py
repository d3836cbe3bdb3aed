"""Sudokus of 4x4 and 6x6 fields that single candidates solve: constraint satisfaction."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import numpy as np

from .task import Problem, Task

Grid = list[int]
"""Values 1 to n row by row; 0 is an empty field."""


class Sudoku(Task):
    """Rows of digits and `.`, between which `|` stands; the answer is the filled grid, likewise.

    The trace writes each field as it is filled, `2 3 = 4` (row, column, digit), then the grid
    (`full`), the grid alone (`short`, the minimal trace), or each field with the digits that its
    row, column and box rule out, `2 3 # 1 2 3 = 4` (`verbose`).
    """

    capability: ClassVar[str] = "deduction"
    rows: ClassVar[int]
    columns: ClassVar[int]

    @property
    def side(self) -> int:
        """Fields of a row."""
        return self.rows * self.columns

    def written(self, grid: Grid) -> str:
        """The grid, row by row."""
        side = self.side
        signs = [str(value) if value else "." for value in grid]
        return " | ".join(" ".join(signs[row * side : (row + 1) * side]) for row in range(side))

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The grid alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """The steps with the digits that are ruled out."""
        grid = [0 if s == "." else int(s) for s in problem.question.split() if s != "|"]
        rows = []
        for step in problem.steps[:-1]:
            row, column, value = (int(word) for word in step.split() if word.isdigit())
            field = (row - 1) * self.side + column - 1
            seen = sorted({grid[peer] for peer in peers(self.rows, self.columns)[field]} - {0})
            rows.append(f"{row} {column} # {' '.join(map(str, seen))} = {value}")
            grid[field] = value
        return (*rows, problem.steps[-1])

    def symbols(self) -> frozenset[str]:
        """None beyond digits and operators."""
        return frozenset()

    def num_problems(self, level: int) -> int | None:
        """Grids times choices of fields: many."""
        return None


class EmptiedSudoku(Sudoku):
    """A grid that is filled first and then emptied; the level is the number of empty fields.

    Fields are emptied in random order, each only where a single candidate would fill it again:
    because no other digit fits it, or because its digit fits nowhere else in a row, column or box.
    So the solution is the only one, and the reverse of that order is a way to find it without
    guessing.
    """

    @abstractmethod
    def full_grid(self, rng: np.random.Generator) -> Grid:
        """A filled grid."""

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """A grid, and fields that can be emptied one after the other."""
        solution = self.full_grid(rng)
        emptied: list[int] = []
        while len(emptied) < level:
            emptied = emptied_fields(solution, self.rows, self.columns, rng, level)
        puzzle = list(solution)
        for field in emptied:
            puzzle[field] = 0
        answer = self.written(solution)
        steps = [
            f"{field // self.side + 1} {field % self.side + 1} = {solution[field]}"
            for field in reversed(emptied)
        ]
        question = self.written(puzzle)
        length = len(answer.split())
        return Problem(self.name, level, question, answer, (*steps, f": {answer}"), length)


class Sudoku4(EmptiedSudoku):
    """4x4: all 288 grids, each as likely."""

    name = "sudoku_4x4"
    rows, columns = 2, 2
    levels = (6, 8, 9, 10)
    beyond = (11,)
    lowest, highest = 6, 11

    def full_grid(self, rng: np.random.Generator) -> Grid:
        """One of them all."""
        grids = all_grids_4()
        return grids[int(rng.integers(len(grids)))]

    def chance(self, level: int) -> float:
        """One grid of 288."""
        return 1 / len(all_grids_4())


class Sudoku6(EmptiedSudoku):
    """6x6 with boxes of two rows and three columns: a random symmetry of a random grid."""

    name = "sudoku_6x6"
    rows, columns = 2, 3
    levels = (8, 12, 16, 20)
    beyond = (22, 24)
    lowest, highest = 4, 24
    constant_attains_chance = False

    def full_grid(self, rng: np.random.Generator) -> Grid:
        """A symmetry of one of 50 grids that were filled at random."""
        grid = some_grids_6()[int(rng.integers(50))]
        return transformed(grid, symmetry(rng, self.rows, self.columns))[0]

    def chance(self, level: int) -> float:
        """At most this: the first row alone is any order of six digits."""
        return 1 / 720


@cache
def peers(rows: int, columns: int) -> list[list[int]]:
    """For each field, the fields that share its row, column or box (of `rows` x `columns`)."""
    side = rows * columns
    found = []
    for field in range(side * side):
        found.append(
            sorted({other for unit in units(rows, columns)[field] for other in unit} - {field})
        )
    return found


@cache
def units(rows: int, columns: int) -> list[list[list[int]]]:
    """For each field, its row, its column and its box."""
    side = rows * columns
    fields = [divmod(field, side) for field in range(side * side)]
    keys = [
        [row for row, _ in fields],
        [column for _, column in fields],
        [row // rows * rows + column // columns for row, column in fields],
    ]
    groups = [
        {key: [f for f, other in enumerate(kind) if other == key] for key in set(kind)}
        for kind in keys
    ]
    return [
        [group[kind[field]] for group, kind in zip(groups, keys, strict=True)]
        for field in range(side * side)
    ]


def emptied_fields(
    solution: Grid, rows: int, columns: int, rng: np.random.Generator, most: int
) -> list[int]:
    """Fields in an order of emptying such that each could be filled again by a single candidate."""
    grid, emptied = list(solution), []
    for field in rng.permutation(len(grid)).tolist():
        if len(emptied) == most:
            break
        if is_single(grid, field, rows, columns):
            grid[field] = 0
            emptied.append(field)
    return emptied


def is_single(grid: Grid, field: int, rows: int, columns: int) -> bool:
    """Whether the value of a field, were it empty, would be its only candidate, or only there."""
    value, near = grid[field], peers(rows, columns)
    seen = {grid[peer] for peer in near[field]}
    seen.discard(0)
    if len(seen) == rows * columns - 1:
        return True
    return any(
        all(_excludes(grid, other, value, field, near) for other in unit if not grid[other])
        for unit in units(rows, columns)[field]
    )


def _excludes(grid: Grid, field: int, value: int, but: int, near: Sequence[Sequence[int]]) -> bool:
    """Whether a digit is ruled out at a field by some peer other than `but`."""
    return any(grid[peer] == value for peer in near[field] if peer != but)


def filled(rows: int, columns: int, rng: np.random.Generator, grid: Grid | None = None) -> Grid:
    """A filled grid, by trying digits in random order."""
    side = rows * columns
    grid = [0] * (side * side) if grid is None else grid
    if 0 not in grid:
        return grid
    near = peers(rows, columns)
    field = min(
        (f for f, value in enumerate(grid) if not value),
        key=lambda f: side - len({grid[peer] for peer in near[f]} - {0}),
    )
    taken = {grid[peer] for peer in near[field]}
    for value in (rng.permutation(side) + 1).tolist():
        if value not in taken:
            found = filled(rows, columns, rng, [*grid[:field], value, *grid[field + 1 :]])
            if found:
                return found
    return []


@cache
def all_grids_4() -> list[Grid]:
    """The 288 grids of 4x4."""
    grids: list[Grid] = [[0] * 16]
    for field in range(16):
        grids = [
            [*grid[:field], value, *grid[field + 1 :]]
            for grid in grids
            for value in range(1, 5)
            if value not in [grid[peer] for peer in peers(2, 2)[field]]
        ]
    return grids


@cache
def some_grids_6() -> list[Grid]:
    """50 grids of 6x6, always the same."""
    rng = np.random.default_rng(6)
    return [filled(2, 3, rng) for _ in range(50)]


Symmetry = tuple[list[int], list[int]]
"""`(fields, digits)`: new field f is old field `fields[f]`, new digit is `digits[old digit]`."""


def symmetry(rng: np.random.Generator, rows: int, columns: int) -> Symmetry:
    """A random one: bands and their rows, stacks and their columns, and digits change places."""
    side = rows * columns
    row_order = _shuffled(rng, columns, rows)
    column_order = _shuffled(rng, rows, columns)
    fields = [row * side + column for row in row_order for column in column_order]
    return fields, [0, *(rng.permutation(side) + 1).tolist()]


def _shuffled(rng: np.random.Generator, groups: int, size: int) -> list[int]:
    order = rng.permutation(groups).tolist()
    return [group * size + i for group in order for i in rng.permutation(size).tolist()]


def transformed(grid: Grid, change: Symmetry) -> tuple[Grid, list[int]]:
    """A grid after a symmetry, and where each old field now is."""
    fields, digits = change
    places = [0] * len(fields)
    for new, old in enumerate(fields):
        places[old] = new
    return [digits[grid[old]] for old in fields], places
