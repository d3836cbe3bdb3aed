"""What graph tasks and puzzles promise beyond what every task does."""

from collections import Counter

import numpy as np
import pytest

from data.split import problem_at
from data.task_list import TASKS
from data.tasks.knights_knaves import num_unique
from data.tasks.make_sudoku_bank import Solver, graded, minimal
from data.tasks.sudoku import all_grids_4, filled
from data.tasks.sudoku_hard import GUESSES, bank
from data.tasks.task import Problem


def draw(name: str, level: int, count: int) -> list[Problem]:
    rng = np.random.default_rng((level, count))
    return [TASKS[name].sample(rng, level) for _ in range(count)]


@pytest.mark.parametrize("name", ["path_star", "shortest_path"])
def test_places_in_the_question_tell_nothing(name: str) -> None:
    """The first step of the path is no more often first, last or most named than by chance."""
    level, right = 4, Counter[str]()
    problems = draw(name, level, 600)
    for problem in problems:
        graph, asked = problem.question.split(" ? ")
        start = asked.split()[0]
        edges = [edge.split() for edge in graph.split(" | ")]
        near = [({*edge} - {start}).pop() for edge in edges if start in edge]
        named = Counter(node for edge in edges for node in edge)
        first = problem.answer.split()[0]
        guesses = {
            "first": near[0],
            "last": near[-1],
            "smallest": min(near, key=lambda node: int(node[1:])),
        }
        right.update(key for key, guess in guesses.items() if guess == first)
        right["expected"] += 1 / len(near)  # type: ignore[assignment]
        assert named[start] == len(near)
    for key in ("first", "last", "smallest"):
        assert right[key] / len(problems) == pytest.approx(
            right["expected"] / len(problems), abs=4 * 0.5 / len(problems) ** 0.5
        )


def test_any_topological_order_is_right_and_no_other() -> None:
    task = TASKS["ancestors"]
    problem = Problem("ancestors", 2, "x1 x3 | x2 x3 | x3 x4 ? x3", "x1 x2 x3", (), 3)
    assert task.verify(problem, "x2 x1 x3") and task.verify(problem, "x1 x2 x3")
    for wrong in ("x1 x3 x2", "x1 x2", "x1 x2 x3 x4", "x1 x1 x3", "x3 x1 x2"):
        assert not task.verify(problem, wrong)


def test_a_parent_comes_before_its_child() -> None:
    for problem in draw("ancestors", 8, 30):
        nodes = problem.answer.split()
        assert not TASKS["ancestors"].verify(problem, " ".join(nodes[::-1]))


def test_all_grids_of_four() -> None:
    assert len(all_grids_4()) == len({tuple(grid) for grid in all_grids_4()}) == 288


def test_a_trace_of_a_sudoku_fills_it() -> None:
    for name, level in (("sudoku_4x4", 9), ("sudoku_6x6", 16), ("sudoku_9x9", 2)):
        side = {"sudoku_4x4": 4, "sudoku_6x6": 6, "sudoku_9x9": 9}[name]
        for problem in draw(name, level, 5):
            grid = [row.split() for row in problem.question.split(" | ")]
            for step in problem.steps[:-1]:
                row, column, _, value = step.split()
                assert grid[int(row) - 1][int(column) - 1] == "."
                grid[int(row) - 1][int(column) - 1] = value
            assert " | ".join(" ".join(row) for row in grid) == problem.answer
            assert all(len(set(row)) == side for row in grid)


def test_symmetries_of_a_hard_puzzle_stay_in_its_split() -> None:
    seen: dict[str, set[int]] = {}
    for split in ("train", "validation", "test"):
        problems = [problem_at("sudoku_9x9", 2, split, 0, index) for index in range(60)]
        seen[split] = {problem.entry for problem in problems}
        assert len({problem.question for problem in problems}) == 60
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_the_bank_is_graded_as_it_says() -> None:
    for level, puzzles in bank().items():
        assert len(puzzles) == 250
        assert len({tuple(puzzle) for puzzle, _, _ in puzzles}) == 250
        for puzzle, solution, order in puzzles[:8]:
            again, solved, filling = graded(puzzle)
            assert (again, solved, filling) == (level, solution, order)
            assert puzzle.count(0) == len(order)
            assert GUESSES[level - 1] > 0 or not any(guessed for _, guessed in order)


def test_a_minimal_puzzle_loses_its_one_solution_with_any_field() -> None:
    rng = np.random.default_rng(1)
    puzzle = minimal(filled(3, 3, rng), rng)
    assert len(Solver().solutions(puzzle, 2)) == 1
    for field, value in enumerate(puzzle):
        if value:
            fewer = [*puzzle[:field], 0, *puzzle[field + 1 :]]
            assert len(Solver().solutions(fewer, 2)) == 2


def test_the_number_of_questions_about_knights_is_exact() -> None:
    seen = {problem.question for problem in draw("knights_knaves", 3, 5_000)}
    assert len(seen) == num_unique(3)


def test_a_search_ends_in_the_roles() -> None:
    for problem in draw("knights_knaves", 6, 30):
        rows = TASKS["knights_knaves"].trace(problem, "verbose")
        tried = [row.split() for row in rows[: rows.index("|")]]
        last = {name: role for name, role, *dead in tried if not dead}
        assert " ".join(last.values()) == problem.answer


def test_moves_lead_through_a_maze() -> None:
    steps = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
    for problem in draw("maze", 5, 20):
        fields = [row.split() for row in problem.question.split(" | ")]
        place = next((r, row.index("S")) for r, row in enumerate(fields) if "S" in row)
        for move in problem.answer.split():
            for _ in range(2):
                place = place[0] + steps[move][0], place[1] + steps[move][1]
                assert fields[place[0]][place[1]] != "#"
        assert fields[place[0]][place[1]] == "G"
        assert len(problem.answer.split()) >= 5
