"""The way through a maze without loops: search in a plane."""

from itertools import pairwise

import numpy as np

from .guessing import measured_chance
from .task import Problem, Task

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}


class Maze(Task):
    """A map of walls `#` and floor `.` from S to G: the moves `U D L R`, a field each.

    The level n is the side of the maze in rooms: a map of 2 n + 1 rows, between which `|` stands,
    and columns. Rooms are joined by a random depth-first tree, so there is one way between any two;
    it has at least n moves between rooms. A move goes from room to room, over the door between.

    The trace writes each move with the room that it leads to, `R : 2 3` (row and column), and then
    all moves (`full`), the moves alone (`short`, the minimal trace), or the search depth first from
    the start, with `#` where it turns back (`verbose`).
    """

    name = "maze"
    capability = "search"
    levels = (5, 6, 7)
    beyond = (8, 9)
    lowest, highest = 5, 9

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Carve the maze, choose two rooms far enough apart, draw the map."""
        doors = carve(rng, level)
        path: list[tuple[int, int]] = []
        while len(path) <= level:
            ends = rng.permutation(level * level)[:2].tolist()
            start, goal = (divmod(end, level) for end in ends)
            path = way(doors, start, goal)
        moves = [move_between(a, b) for a, b in pairwise(path)]
        steps = [
            f"{move} : {row + 1} {column + 1}"
            for move, (row, column) in zip(moves, path[1:], strict=True)
        ]
        answer = " ".join(moves)
        question = drawn(doors, level, path[0], path[-1])
        return Problem(self.name, level, question, answer, (*steps, f"= {answer}"), len(moves))

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The moves alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Depth first: rooms as they are entered, `#` where nothing is left to enter."""
        doors, start, goal = read(problem.question)
        rows, seen, stack = [], {start}, [start]
        while stack[-1] != goal:
            room = stack[-1]
            ahead = next((other for other in sorted(doors[room]) if other not in seen), None)
            if ahead is None:
                stack.pop()
                rows.append(f"# {stack[-1][0] + 1} {stack[-1][1] + 1}")
                continue
            seen.add(ahead)
            stack.append(ahead)
            rows.append(f"{move_between(room, ahead)} : {ahead[0] + 1} {ahead[1] + 1}")
        return (*rows, "|", *problem.steps)

    def chance(self, level: int) -> float:
        """Of the most frequent way; measured."""
        return measured_chance(self, level)

    def num_problems(self, level: int) -> int | None:
        """Many: 25 rooms have over 500 million trees (if not all as likely), times the ends."""
        return None

    def symbols(self) -> frozenset[str]:
        """Moves and the two ends; all of them letters that the vocabulary has."""
        return frozenset((*MOVES, "S", "G"))


Doors = dict[tuple[int, int], list[tuple[int, int]]]


def carve(rng: np.random.Generator, side: int) -> Doors:
    """A random depth-first tree over the rooms: which rooms each is joined to."""
    doors: Doors = {divmod(room, side): [] for room in range(side * side)}
    draws = iter(rng.random(4 * side * side).tolist())
    first = divmod(int(next(draws) * side * side), side)
    stack, seen = [first], {first}
    while stack:
        row, column = stack[-1]
        near = [(row + down, column + right) for down, right in MOVES.values()]
        open_ = [room for room in near if room in doors and room not in seen]
        if not open_:
            stack.pop()
            continue
        room = open_[int(next(draws) * len(open_))]
        doors[stack[-1]].append(room)
        doors[room].append(stack[-1])
        seen.add(room)
        stack.append(room)
    return doors


def way(doors: Doors, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """The rooms from start to goal."""
    before = {goal: goal}
    rooms = [goal]
    for room in rooms:
        for other in doors[room]:
            if other not in before:
                before[other] = room
                rooms.append(other)
    path = [start]
    while path[-1] != goal:
        path.append(before[path[-1]])
    return path


def move_between(room: tuple[int, int], other: tuple[int, int]) -> str:
    """The move from a room to its neighbour."""
    step = other[0] - room[0], other[1] - room[1]
    return next(move for move, direction in MOVES.items() if direction == step)


def drawn(doors: Doors, side: int, start: tuple[int, int], goal: tuple[int, int]) -> str:
    """The map, row by row."""
    fields = [["#"] * (2 * side + 1) for _ in range(2 * side + 1)]
    for (row, column), others in doors.items():
        fields[2 * row + 1][2 * column + 1] = "."
        for down, right in others:
            fields[row + down + 1][column + right + 1] = "."
    for (row, column), sign in ((start, "S"), (goal, "G")):
        fields[2 * row + 1][2 * column + 1] = sign
    return " | ".join(" ".join(row) for row in fields)


def read(question: str) -> tuple[Doors, tuple[int, int], tuple[int, int]]:
    """The doors and both ends, from the map."""
    fields = [row.split() for row in question.split(" | ")]
    side = len(fields) // 2
    rooms = [divmod(room, side) for room in range(side * side)]
    doors: Doors = {room: [] for room in rooms}
    ends = {}
    for row, column in rooms:
        ends[fields[2 * row + 1][2 * column + 1]] = (row, column)
        for down, right in MOVES.values():
            if fields[2 * row + 1 + down][2 * column + 1 + right] != "#":
                doors[row, column].append((row + down, column + right))
    return doors, ends["S"], ends["G"]
