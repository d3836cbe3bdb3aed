"""`python -m data.inspect`: problems as a person reads them, or the list of tasks."""

import os
import sys
import textwrap
from dataclasses import dataclass, fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .document import document_text, written_steps
from .split import SPLITS, evaluation_problems, problem_at, splittable
from .task_list import TASKS, find_task
from .task_table import chance, task_lines, terminal_width
from .tasks.task import TRACES, Problem, Task

NAMES = textwrap.fill(", ".join(TASKS), 80, subsequent_indent=10 * " ")

HELP = f"""\
Print problems of a task as a person reads them, or list the tasks.

  python -m data.inspect                                the list of tasks
  python -m data.inspect task=phop                      three problems at its easiest level
  python -m data.inspect task=phop level=8 trace=full   ... at level 8, with the whole solution
  python -m data.inspect task=s3 level=6 count=1 seed=4 split=test

Switches are key=value:

  task    one of {NAMES}
  level   how hard; the list of tasks says which levels each was trained on and which go beyond
  trace   what is written before the answer: {", ".join(TRACES)} (default full)
  count   how many problems (default 3)
  seed    another seed, other problems (default 0)
  split   {", ".join(SPLITS)} (default train); problems of one never occur in another

Each problem has its question, its trace (one step a line where steps are long) and its answer.
"""

LABEL_WIDTH = 11


@dataclass
class InspectConfig:
    """The switches of the verb."""

    task: str | None = None
    level: int | None = None
    trace: str | None = None
    count: int = 3
    seed: int = 0
    split: str = "train"


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit status, 2 for a mistake in the arguments."""
    if {"--help", "-h", "help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        config = parse(arguments)
        lines = problem_lines(config) if config.task is not None else task_lines()
    except ValueError as error:
        print(f"data.inspect: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def parse(arguments: list[str]) -> InspectConfig:
    """The switches; ValueError names the one that is wrong and what is allowed."""
    keys = [field.name for field in fields(InspectConfig)]
    config = OmegaConf.structured(InspectConfig)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            raise ValueError(
                f"{argument} is not a switch: use key=value with a key of {', '.join(keys)}"
                " (--help says more)"
            )
        try:
            config[key] = value
        except OmegaConfBaseException:
            raise ValueError(f"{argument} is not possible: {key} is a whole number") from None
    return checked(InspectConfig(**{key: config[key] for key in keys}))


def checked(config: InspectConfig) -> InspectConfig:
    """The config, where its values are possible; ValueError where they aren't."""
    if config.task is None and config != InspectConfig():
        raise ValueError(f"task=NAME is missing: use one of {', '.join(TASKS)}")
    known = TRACES if config.task is None else find_task(config.task).traces
    if config.trace is None:
        config.trace = "full" if "full" in known else "none"
    if config.trace not in known:
        raise ValueError(
            f"trace={config.trace} is not a trace mode of {config.task}: use one of"
            f" {', '.join(known)}"
        )
    if config.count < 1:
        raise ValueError(f"count={config.count} is not possible: use 1 or more")
    return config


def problem_lines(config: InspectConfig) -> list[str]:
    """The problems that the switches ask for."""
    task = find_task(str(config.task))
    level = task.levels[0] if config.level is None else config.level
    trace, split = str(config.trace), "test" if task.test_only else config.split
    lines = [f"{task.name}, level {level}, trace {trace}, split {split}"]
    task.check_level(level)
    if task.test_only:
        given = evaluation_problems(task.name, level, split, config.seed, config.count)
        return [*lines, *(line for each in given for line in ["", *shown(task, each, trace)])]
    if not splittable(task.name, level):
        lines[0] += f" (train-only: this level has just {task.num_problems(level)} questions)"
    for index in range(config.count):
        problem = problem_at(task.name, level, split, config.seed, index)
        lines += ["", f"problem {index} of seed {config.seed}", *shown(task, problem, trace)]
    return lines


def shown(task: Task, problem: Problem, trace: str) -> list[str]:
    """One problem, each part under its label."""
    steps = written_steps(problem, trace) if trace != "none" else ()
    by_line = any(" " in step for step in steps)
    size = f"{len(document_text(problem, trace).split())} symbols, minimal trace"
    return [
        *labelled("question", [problem.question]),
        *labelled(
            "trace", (list(steps) if by_line else [" ".join(steps)]) if steps else ["(none)"]
        ),
        *labelled("answer", [problem.answer]),
        *labelled(
            "document", [f"{size} {problem.minimal_trace}, chance {chance(task, problem.level)}"]
        ),
    ]


def labelled(label: str, texts: list[str]) -> list[str]:
    """Texts wrapped to the terminal beside a label."""
    width = max(terminal_width() - LABEL_WIDTH, 20)
    paragraphs = [line for text in texts for line in text.splitlines()]
    wrapped = [
        line
        for text in paragraphs
        for line in textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    ]
    margins = [f"  {label}".ljust(LABEL_WIDTH), *[" " * LABEL_WIDTH] * (len(wrapped) - 1)]
    return [margin + line for margin, line in zip(margins, wrapped, strict=True)]


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
