"""The list of tasks that `python -m data.inspect` prints: what each is, how long, how fast."""

import shutil
import textwrap
import time

from .adapters.borrowed import installed_tasks
from .document import document_text
from .split import problem_at, splittable
from .task_list import TASKS
from .tasks.task import TRACES, Task
from .texts.test_sets import TEST_SETS

SECONDS_PER_TASK = 0.05


def task_lines() -> list[str]:
    """The tables of our tasks, of borrowed ones, and the test sets."""
    header = ("task", "capability", "levels", "beyond", "chance", "tokens", "problems/s")
    ours = aligned([header, *map(task_row, TASKS.values())])
    return [*ours, "", *wrapped(LEGEND), "", *borrowed_lines(), "", *wrapped(test_set_line())]


def borrowed_lines() -> list[str]:
    """The table of borrowed tasks, or how to install them."""
    tasks = installed_tasks()
    if not tasks:
        return wrapped("borrowed: none is installed; pip install -e '.[corpora]' brings some")
    header = ("borrowed task", "capability", "levels", "beyond", "traces", "bytes", "problems/s")
    rows = [header, *map(borrowed_row, tasks.values())]
    packages = sorted({task.source for task in tasks.values()})
    legend = f"From {', '.join(packages)}. They are free text: bytes is the length of a question."
    return [*aligned(rows), "", *wrapped(legend)]


def borrowed_row(task: Task) -> tuple[str, ...]:
    """One line of the table of borrowed tasks."""
    level = task.levels[len(task.levels) // 2]
    question = problem_at(task.name, level, "train", 0, 0).question
    return (
        task.name,
        task.capability,
        " ".join(map(str, task.levels)),
        " ".join(map(str, task.beyond)),
        " ".join(task.traces),
        f"{len(question.encode()):,}",
        f"{problems_per_second(task, level):,.0f}",
    )


def test_set_line() -> str:
    """The published test sets, which are only evaluated on."""
    said = [
        f"{name} (levels {kind.levels[0]} to {kind.levels[-1]})" for name, kind in TEST_SETS.items()
    ]
    return f"Test sets, to evaluate on: {', '.join(said)}."


test_set_line.__test__ = False  # type: ignore[attr-defined]


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def wrapped(text: str) -> list[str]:
    """A text in lines as wide as the terminal."""
    return textwrap.wrap(text, terminal_width())


LEGEND = (
    "*: train-only, the level has too few questions to hold any out. chance: best accuracy of a"
    " guesser that knows only the level. tokens: symbols of a document with trace"
    f" {' / '.join(TRACES)}. problems/s: drawn on one core of this machine just now. The last three"
    " are of the middle level. See problems with task=NAME; --help says more."
)


def task_row(task: Task) -> tuple[str, ...]:
    """One line of the table."""
    level = task.levels[len(task.levels) // 2]
    problem = problem_at(task.name, level, "train", 0, 0)
    tokens = [len(document_text(problem, trace).split()) for trace in TRACES]
    return (
        task.name,
        task.capability,
        marked(task, task.levels),
        marked(task, task.beyond),
        chance(task, level),
        " / ".join(map(str, tokens)),
        f"{problems_per_second(task, level):,.0f}",
    )


def marked(task: Task, levels: tuple[int, ...]) -> str:
    """Levels as a person reads them, with a star at those that are train-only."""
    return " ".join(f"{level}{'' if splittable(task.name, level) else '*'}" for level in levels)


def chance(task: Task, level: int) -> str:
    """Chance to three significant digits."""
    return f"{task.chance(level):.3g}"


def problems_per_second(task: Task, level: int) -> float:
    """How fast training problems are drawn, measured for a moment."""
    start, index = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS_PER_TASK:
        problem_at(task.name, level, "train", 0, index)
        index += 1
    return index / (time.perf_counter() - start)


def terminal_width() -> int:
    """Columns to fill; a pipe gets 100."""
    return shutil.get_terminal_size((100, 24)).columns
