"""The words of a closed symbolic vocabulary: special tokens, what tasks share, what each adds.

A corpus has the words of the first tasks, in one fixed order, and after them those of the newer
tasks that it uses. So a new task changes neither the ids nor the size of any other vocabulary.
"""

import string
from collections.abc import Collection

from .task_list import TASKS
from .tasks.task import HIGHEST_LEVEL, TRACES

PAD, EOS, THINK, END_THINK = "<pad>", "<eos>", "<think>", "</think>"
MODES = {trace: f"<{trace}>" for trace in TRACES}
SPECIALS = (PAD, EOS, THINK, END_THINK, *MODES.values())

LEVELS = tuple(f"L{level}" for level in range(HIGHEST_LEVEL + 1))
OPERATORS = tuple("+-*/=<>?:;,.|#()")
LARGEST_SYMBOLIC = 512

# In every vocabulary. The list is closed: corpora and checkpoints rely on the ids that follow.
FIRST_TASKS = (
    *("parity", "s3", "s3_swaps", "a5", "s5", "phop"),
    *("mqar", "selective_copy", "addition", "prosqa", "igsm"),
)


def symbolic_vocabulary(tasks: Collection[str] = tuple(TASKS)) -> list[str]:
    """The vocabulary of a corpus of these tasks: padding first, then by order of introduction.

    Raises:
        ValueError: a task is not written in symbols, or all of them need too many.
    """
    vocabulary = list(first_vocabulary())
    for name in _newer(tasks):
        words = {task_token(name), *TASKS[name].symbols()}
        vocabulary += sorted(words - set(vocabulary))
    if len(vocabulary) > LARGEST_SYMBOLIC:
        raise ValueError(
            f"the tasks' symbols make a vocabulary of {len(vocabulary)} tokens, more than"
            f" {LARGEST_SYMBOLIC}: let the newest task share symbols (data/tasks/task.py)"
        )
    return vocabulary


def first_vocabulary() -> list[str]:
    """The special tokens, then all other words that every vocabulary has, sorted."""
    words = {*LEVELS, *string.digits, *string.ascii_letters, *OPERATORS}
    for name in FIRST_TASKS:
        words |= {task_token(name), *TASKS[name].symbols()}
    return [*SPECIALS, *sorted(words - set(SPECIALS))]


def _newer(tasks: Collection[str]) -> list[str]:
    """The tasks that the first vocabulary lacks, in the order of the list of tasks."""
    if borrowed := [name for name in tasks if name not in TASKS]:
        raise ValueError(
            f"task {borrowed[0]} is written in free text, which a symbolic vocabulary can't hold:"
            " use tokenizer.kind=bytes, bpe or huggingface"
        )
    return [name for name in TASKS if name in tasks and name not in FIRST_TASKS]


def task_token(task: str) -> str:
    """The token that announces a task."""
    return f"<{task}>"
