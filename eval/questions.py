"""What is asked: the cells of an evaluation, and each question as a prompt with its limits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.document import encode_pieces
from data.roles import Role
from data.split import evaluation_problems, splittable
from data.task_list import find_task
from data.tasks.task import Problem
from data.tokenizer import Tokenizer
from eval.budget import Budget, fitting
from eval.config import EvalConfig
from eval.generate import Request
from models.backbone import Backbone

# A text longer than twice its reference, and some, is given up: it can hardly end right.
LIMIT_FACTOR = 2
LIMIT_MARGIN = 8


@dataclass(frozen=True)
class Cell:
    """The questions of one task and level under one budget.

    Attributes:
        task: the task's name.
        level: its level.
        split: where the questions come from: train for a level too small to be split.
        beyond: whether the level is harder than every level trained on.
        budget: what each question may cost.
        problems: the questions, in the order of their indices.
    """

    task: str
    level: int
    split: str
    beyond: bool
    budget: Budget
    problems: Sequence[Problem]

    @property
    def train_only(self) -> bool:
        """Whether the level is too small to be split."""
        return not splittable(self.task, self.level)


def plan(
    config: EvalConfig, backbone: Backbone, trained: Mapping[str, Collection[int]] | None = None
) -> list[Cell]:
    """List the cells of an evaluation.

    Args:
        config: what to ask.
        backbone: budgets that it can't run are left out.
        trained: the levels that each task was trained on; None takes the tasks' own.

    Raises:
        ValueError: the backbone can run no budget of a task, or a level has too few questions.
    """
    cells = []
    for task in config.tasks:
        budgets = _budgets(config, task, backbone)
        for level in config.levels(task):
            problems = evaluation_problems(task, level, config.split, config.seed, config.items)
            split = config.split if splittable(task, level) else "train"
            beyond = level > hardest_trained(task, trained)
            cells += [Cell(task, level, split, beyond, budget, problems) for budget in budgets]
    return cells


def _budgets(config: EvalConfig, task: str, backbone: Backbone) -> list[Budget]:
    asked = config.budgets.budgets(config.traces(task))
    depth = backbone.depth
    budgets = fitting(asked, backbone)
    if not budgets:
        wanted = config.budgets
        raise ValueError(
            f"eval.budgets has loops={wanted.loops}, latent_steps={wanted.latent_steps} and stops="
            f"{wanted.stops}, but this backbone "
            + ("takes no latent steps, or not that rule" if depth.adjustable else "takes none")
            + ": add null, its own"
        )
    return budgets


def hardest_trained(task: str, trained: Mapping[str, Collection[int]] | None) -> int:
    """Return the hardest level that a task was trained on; 0 if it wasn't trained on at all."""
    levels = find_task(task).levels if trained is None else trained.get(task, ())
    return max(levels, default=0)


def make_request(problem: Problem, index: int, trace: str, tokenizer: Tokenizer) -> Request:
    """Turn a question into a prompt, with limits from the length of its reference solution."""
    tokens, roles = encode_pieces(problem, trace, tokenizer)
    return Request(
        prompt=tokens[roles == Role.QUESTION].tolist(),
        index=index,
        max_trace=_limit(roles, Role.TRACE),
        max_answer=_limit(roles, Role.ANSWER),
    )


def _limit(roles: np.ndarray, role: Role) -> int:
    return LIMIT_FACTOR * int((roles == role).sum()) + LIMIT_MARGIN
