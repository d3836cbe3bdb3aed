"""`python -m data.tasks.make_sudoku_bank`: make the bank of hard 9x9 sudokus again, from a seed.

Each puzzle is a random full grid from which fields are taken, in random order, as long as one
solution is left; then it is graded by the guesses of the solver below. It takes some minutes.
"""

import sys

import numpy as np

from .sudoku import Grid, filled, peers, units
from .sudoku_hard import BANK, GUESSES

PER_LEVEL = 250
Order = list[tuple[int, bool]]


class Solver:
    """Fills single candidates, and guesses where there is none; candidates are bits."""

    def __init__(self) -> None:
        self.guesses = 0
        self.near = peers(3, 3)
        self.units = [unit for unit in {tuple(unit) for field in units(3, 3) for unit in field}]
        self.units.sort()

    def solutions(self, puzzle: Grid, most: int) -> list[tuple[Grid, Order]]:
        """Up to `most` solutions, each with the order in which its fields were filled."""
        grid, candidates = [0] * 81, [0x1FF] * 81
        order: Order = []
        for field, value in enumerate(puzzle):
            if value and not self._fill(grid, candidates, field, value):
                return []
        found: list[tuple[Grid, Order]] = []
        self._search(grid, candidates, order, found, most)
        return found

    def _fill(self, grid: Grid, candidates: list[int], field: int, value: int) -> bool:
        bit = 1 << value - 1
        if not candidates[field] & bit or grid[field]:
            return False
        grid[field], candidates[field] = value, 0
        for peer in self.near[field]:
            if candidates[peer] & bit:
                candidates[peer] &= ~bit
                if not candidates[peer] and not grid[peer]:
                    return False
        return True

    def _singles(self, grid: Grid, candidates: list[int], order: Order) -> bool:
        """Fill what has one candidate or one place, until nothing has; False where none is left."""
        while True:
            single = self._next_single(grid, candidates)
            if single is None:
                return True
            field, value = single
            if field < 0 or not self._fill(grid, candidates, field, value):
                return False
            order.append((field, False))

    def _next_single(self, grid: Grid, candidates: list[int]) -> tuple[int, int] | None:
        for field, bits in enumerate(candidates):
            if bits and not bits & bits - 1:
                return field, bits.bit_length()
        for unit in self.units:
            once = twice = held = 0
            for field in unit:
                twice |= once & candidates[field]
                once |= candidates[field]
                held |= 1 << grid[field] >> 1
            if once | held != 0x1FF:
                return -1, 0
            if single := once & ~twice:
                bit = single & -single
                return next(f for f in unit if candidates[f] & bit), bit.bit_length()
        return None

    def _search(
        self,
        grid: Grid,
        candidates: list[int],
        order: Order,
        found: list[tuple[Grid, Order]],
        most: int,
    ) -> None:
        if not self._singles(grid, candidates, order):
            return
        if all(grid):
            found.append((grid, order))
            return
        field = min((f for f in range(81) if not grid[f]), key=lambda f: candidates[f].bit_count())
        for value in range(1, 10):
            if candidates[field] >> value - 1 & 1 and len(found) < most:
                self.guesses += 1
                tried, left = list(grid), list(candidates)
                if self._fill(tried, left, field, value):
                    self._search(tried, left, [*order, (field, True)], found, most)


def minimal(solution: Grid, rng: np.random.Generator) -> Grid:
    """A puzzle with this one solution, from which no field can be taken any more."""
    puzzle = list(solution)
    for field in rng.permutation(81).tolist():
        value, puzzle[field] = puzzle[field], 0
        if len(Solver().solutions(puzzle, 2)) > 1:
            puzzle[field] = value
    return puzzle


def graded(puzzle: Grid) -> tuple[int, Grid, Order]:
    """Its level, its solution, and the order of filling."""
    solver = Solver()
    ((solution, order),) = solver.solutions(puzzle, 2)
    level = next(i for i, most in enumerate(GUESSES, 1) if solver.guesses <= most)
    return level, solution, order


def main() -> None:
    """Write the bank."""
    rng, lines = np.random.default_rng(9), {level: [] for level in range(1, 6)}
    while any(len(found) < PER_LEVEL for found in lines.values()):
        puzzle = minimal(filled(3, 3, rng), rng)
        level, solution, order = graded(puzzle)
        if len(lines[level]) < PER_LEVEL:
            fields = ",".join(f"{field}{'?' if guessed else ''}" for field, guessed in order)
            row = ("".join(map(str, puzzle)), "".join(map(str, solution)), fields)
            lines[level].append(f"{level} {' '.join(row)}\n")
        counts = " ".join(f"{level}:{len(found)}" for level, found in lines.items())
        print(f"\rpuzzles of each level: {counts}", end="", file=sys.stderr, flush=True)
    BANK.write_text("".join(line for found in lines.values() for line in found))
    print(f"\nbank: {BANK}")


if __name__ == "__main__":
    main()
