"""The list of tasks: a task's name here is its tag in configs, corpora and ledgers."""

from .tasks.addition import Addition
from .tasks.changing_recall import ChangingRecall
from .tasks.fuzzy_recall import FuzzyRecall
from .tasks.group_words import A5, S3, S5, S3Swaps
from .tasks.igsm import IGSM
from .tasks.mano import Mano
from .tasks.mixed_chain import MixedChain
from .tasks.mnns import MNNS
from .tasks.mqar import MultiQueryRecall
from .tasks.multiplication import Multiplication
from .tasks.noisy_recall import NoisyRecall
from .tasks.parity import Parity
from .tasks.phop import PHop
from .tasks.prosqa import ProsQA
from .tasks.selective_copy import SelectiveCopy
from .tasks.small_program import SmallProgram
from .tasks.task import Task
from .tasks.var_assign import VarAssign

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
        NoisyRecall(),
        FuzzyRecall(),
        ChangingRecall(),
        VarAssign(),
        Mano(),
        Multiplication(),
        MixedChain(),
        MNNS(),
        SmallProgram(),
    )
}


def find_task(name: str) -> Task:
    """The task of that name; ValueError names the known ones."""
    if name not in TASKS:
        raise ValueError(f"task={name} is not a task: use one of {', '.join(TASKS)}")
    return TASKS[name]
