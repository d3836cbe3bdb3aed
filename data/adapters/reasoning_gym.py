"""A vetted part of reasoning-gym (arXiv 2505.24760): tasks that survive what the tests ask of them.

Left out are tasks whose stored answer isn't accepted by their own verifier (boxnet, graph_color,
propositional_logic, rubiks_cube, rush_hour), that change with PYTHONHASHSEED (isomorphic_strings,
list_functions, ransom_note), whose items are so few that tests meet training (caesar_cipher,
coin_flip, tower_of_hanoi, self_reference, aiw, syllogism, calendar_arithmetic, largest_island),
whose verifier takes anything (game_of_life_halting) or anything after the answer (spell_backward),
that run code (codeio), and those that make fewer than 200 items a second at some level
(basic_arithmetic with 8 terms makes 12).

reasoning-gym draws item i of seed s as item i + 1 of seed s - 1 is drawn. So its seed stays 0, and
an item's number is 62 random bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar

import reasoning_gym

from ..tasks.task import TRACES, Problem
from .adapter import BorrowedTask

SIZE = 1 << 62
SEVERAL_ANSWERS = ("shortest_path",)  # any path of the least length is right
Settings = Mapping[str, Any]
Levels = Callable[[int], Settings]
"""`level -> settings of the dataset`, harder from level to level."""


@dataclass(frozen=True)
class Item:
    """What the package's verifier needs to score an answer."""

    entry: Mapping[str, Any]


class ReasoningGym(BorrowedTask):
    """One dataset of the package, with settings for each level."""

    licence: ClassVar[str] = "Apache-2.0"
    levels = (1, 2, 3, 4, 5)
    beyond = (6, 7)
    lowest, highest = 1, 7

    def __init__(self, dataset: str, capability: str, settings: Levels, has_states: bool) -> None:
        super().__init__()
        self.dataset, self._settings = dataset, settings
        self.name = f"rg_{dataset}"  # type: ignore[misc]
        self.capability = capability  # type: ignore[misc]
        self.traces = TRACES if has_states else ("none",)  # type: ignore[misc]
        self.unique = dataset not in SEVERAL_ANSWERS  # type: ignore[misc]
        self._datasets: dict[int, Any] = {}

    @cached_property
    def package(self) -> str:
        """Name and version, which enter the definition of a corpus."""
        return f"reasoning-gym=={version('reasoning-gym')}"

    @cached_property
    def source(self) -> str:  # type: ignore[override]
        """Where its documents come from."""
        return self.package

    def item(self, level: int, number: int) -> Problem:
        """One item; its trace is the list of states, where the dataset tells them."""
        entry = self._of_level(level)[number]
        question, answer = str(entry["question"]).strip(), entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"its answer is {answer!r}")
        states = entry["metadata"].get("states", []) if "full" in self.traces else []
        steps = tuple(map(_written, states))
        length = len(steps[-1].split()) if steps else 0
        return Problem(self.name, level, question, answer.strip(), steps, length, entry=Item(entry))

    def score(self, problem: Problem, text: str) -> float:
        """The dataset's own score."""
        return self._of_level(problem.level).score_answer(text, problem.entry.entry)

    def _of_level(self, level: int) -> Any:
        if level not in self._datasets:
            settings = self._settings(level)
            self._datasets[level] = reasoning_gym.create_dataset(
                self.dataset, size=SIZE, seed=0, **settings
            )
        return self._datasets[level]


def _written(state: Any) -> str:
    """A state as its answer would be written."""
    return " ".join(map(str, state)) if isinstance(state, list | tuple) else str(state)


def _task(
    dataset: str, capability: str, settings: Levels, has_states: bool = False
) -> ReasoningGym:
    return ReasoningGym(dataset, capability, settings, has_states)


def _span(low: str, high: str, name: str, values: list[int]) -> Levels:
    """The same number for the least and the most of something, one for each level."""
    return lambda level: {f"{low}_{name}": values[level - 1], f"{high}_{name}": values[level - 1]}


TASKS: dict[str, Any] = {
    task.name: task
    for task in (
        _task(
            "chain_sum",
            "arithmetic",
            lambda n: {"min_terms": n + 1, "max_terms": n + 1, "min_digits": 3, "max_digits": 4},
        ),
        _task(
            "products",
            "arithmetic",
            lambda n: {"min_terms": 2, "max_terms": 2, "min_digits": n + 2, "max_digits": n + 2},
        ),
        _task(
            "decimal_chain_sum",
            "arithmetic",
            lambda n: {"min_terms": n + 1, "max_terms": n + 1, "min_digits": 2, "max_digits": 3},
        ),
        _task("gcd", "arithmetic", lambda n: {"min_value": 10, "max_value": 10 ** (n + 2)}),
        _task("lcm", "arithmetic", lambda n: {"min_value": 10, "max_value": 10 ** (n + 2)}),
        _task(
            "fraction_simplification",
            "arithmetic",
            lambda n: {
                "max_value": 10 ** (n + 1),
                "max_factor": 10 ** (n + 1),
                "styles": ("plain",),
            },
        ),
        _task(
            "prime_factorization",
            "arithmetic",
            lambda n: {"min_value": 2, "max_value": 20_000 * 2**n},
        ),
        _task("base_conversion", "arithmetic", lambda n: {"max_value": 10 ** (n + 2)}),
        _task("bitwise_arithmetic", "arithmetic", lambda n: {"difficulty": n}),
        _task("count_bits", "arithmetic", lambda n: {"min_n": 1, "max_n": 1 << (12 + 2 * n)}),
        _task("leg_counting", "arithmetic", _span("min", "max", "animals", list(range(3, 10)))),
        _task("simple_equations", "algebra", _span("min", "max", "terms", [2, 3, 4, 5, 6, 7, 8])),
        _task(
            "letter_counting", "strings", _span("min", "max", "words", [5, 8, 11, 14, 17, 20, 24])
        ),
        _task("word_sorting", "sorting", _span("min", "max", "words", [3, 4, 6, 8, 10, 14, 18])),
        _task(
            "number_sorting", "sorting", _span("min", "max", "numbers", [3, 4, 6, 8, 10, 14, 18])
        ),
        _task(
            "number_filtering", "sorting", _span("min", "max", "numbers", [3, 4, 6, 8, 10, 14, 18])
        ),
        _task(
            "string_manipulation",
            "rewriting",
            lambda n: {
                "min_string_length": 4 + 2 * n,
                "max_string_length": 5 + 3 * n,
                "min_num_rules": 2 + n,
                "max_num_rules": 3 + n,
            },
            has_states=True,
        ),
        _task(
            "string_splitting",
            "rewriting",
            lambda n: {"min_initial_machines": 0, "max_initial_machines": 20 + 5 * n},
            has_states=True,
        ),
        _task("ab", "rewriting", lambda n: {"length": 8 + 2 * n}),
        _task(
            "path_star",
            "search",
            lambda n: {"degree": 2 + n // 2, "min_path_length": 2 + n, "max_path_length": 2 + n},
        ),
        _task(
            "shortest_path",
            "search",
            lambda n: {
                "min_rows": 3 + n,
                "max_rows": 3 + n,
                "min_cols": 3 + n,
                "max_cols": 3 + n,
            },
        ),
        _task(
            "course_schedule",
            "search",
            lambda n: {"min_num_courses": 4 + 2 * n, "max_num_courses": 4 + 2 * n},
        ),
        _task("spiral_matrix", "matrices", _span("min", "max", "n", [3, 4, 5, 6, 7, 9, 11])),
        _task("rotate_matrix", "matrices", _span("min", "max", "n", [3, 4, 5, 6, 7, 9, 11])),
        _task("binary_matrix", "matrices", _span("min", "max", "n", [5, 6, 7, 8, 9, 11, 13])),
        _task("knights_knaves", "deduction", lambda n: {"n_people": min(1 + n, 5 + n // 6)}),
        _task("mini_sudoku", "deduction", _span("min", "max", "empty", [6, 7, 8, 9, 10, 11, 12])),
    )
}
