"""The list of tasks: a task's name here is its tag in configs, corpora and ledgers."""

from .tasks.addition import Addition
from .tasks.group_words import A5, S3, S5, S3Swaps
from .tasks.igsm import IGSM
from .tasks.mqar import MultiQueryRecall
from .tasks.parity import Parity
from .tasks.phop import PHop
from .tasks.prosqa import ProsQA
from .tasks.selective_copy import SelectiveCopy
from .tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Parity(),
        S3(),
        S3Swaps(),
        A5(),
        S5(),
        PHop(),
        MultiQueryRecall(),
        SelectiveCopy(),
        Addition(),
        ProsQA(),
        IGSM(),
    )
}


def find_task(name: str) -> Task:
    """The task of that name; ValueError names the known ones."""
    if name not in TASKS:
        raise ValueError(f"task={name} is not a task: use one of {', '.join(TASKS)}")
    return TASKS[name]
