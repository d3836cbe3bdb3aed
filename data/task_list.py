"""The list of tasks: a task's name here is its tag in configs, corpora and ledgers."""

from .adapters.borrowed import PREFIXES, borrowed_task
from .tasks.addition import Addition
from .tasks.ancestors import Ancestors
from .tasks.changing_recall import ChangingRecall
from .tasks.fuzzy_recall import FuzzyRecall
from .tasks.group_words import A5, S3, S5, S3Swaps
from .tasks.igsm import IGSM
from .tasks.knights_knaves import KnightsKnaves
from .tasks.mano import Mano
from .tasks.maze import Maze
from .tasks.mixed_chain import MixedChain, SmallMixedChain
from .tasks.mnns import MNNS
from .tasks.mqar import MultiQueryRecall
from .tasks.multiplication import Multiplication
from .tasks.noisy_recall import NoisyRecall
from .tasks.parity import Parity
from .tasks.path_star import PathStar
from .tasks.phop import PHop
from .tasks.prosqa import ProsQA, SmallProsQA
from .tasks.selective_copy import SelectiveCopy
from .tasks.shortest_path import ShortestPath
from .tasks.small_program import SmallProgram
from .tasks.sudoku import Sudoku4, Sudoku6
from .tasks.sudoku_hard import Sudoku9
from .tasks.task import Task
from .tasks.var_assign import VarAssign
from .texts.test_sets import TEST_SETS, test_set

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
        PathStar(),
        ShortestPath(),
        Ancestors(),
        Maze(),
        KnightsKnaves(),
        Sudoku4(),
        Sudoku6(),
        Sudoku9(),
        SmallProsQA(),
        SmallMixedChain(),
    )
}


def find_task(name: str) -> Task:
    """The task of that name: one of ours, a published test set, or one of another package.

    Raises:
        ValueError: there is none of that name, or its package isn't installed.
    """
    if name in TASKS:
        return TASKS[name]
    if name in TEST_SETS:
        return test_set(name)
    if name.startswith(PREFIXES):
        return borrowed_task(name)
    raise ValueError(
        f"task={name} is not a task: use one of {', '.join(TASKS)}; a test set"
        f" ({', '.join(TEST_SETS)}); or a borrowed one, which `python -m data.inspect` lists"
    )
