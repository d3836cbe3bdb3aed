"""Do answers depend on their thoughts? The same questions, with other thoughts in place.

Every question is asked with its thoughts as they are, with those of another question of its task
and level, with zeros in their place, and with fewer of them (early answering, as Lanham et al. do
with written thoughts: arXiv 2307.13702). What is changed is what a thought carries: the vector that
is read at its place.

Legend: Q questions, N thoughts, D width, M thoughts at hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.task_list import find_task
from eval.answers import answer_text
from eval.budget import Budget, BudgetConfig
from eval.config import EvalConfig
from eval.evaluate import Subject, evaluating
from eval.generate import AlterOf, Request, generate
from eval.progress import progress_bar
from eval.questions import Cell, make_request, plan
from models.latent.latent import Alter

AS_THEY_ARE = "as they are"
SWAPPED = "swapped"
ZEROED = "zeroed"
HALF = "half"
NONE = "none"
CHANGES = (AS_THEY_ARE, SWAPPED, ZEROED, HALF, NONE)


@dataclass(frozen=True)
class Check:
    """How the questions of one task, level and trace mode were answered with changed thoughts.

    Attributes:
        task: the task.
        level: its level.
        trace: trace mode of the prompt.
        change: what was done to the thoughts; one of `CHANGES`.
        latent_steps: thoughts that each question had.
        right: right answers.
        asked: questions.
        changed: answers that differ from those with thoughts as they are.
        chance: accuracy of guessing.
        beyond: whether the level is harder than every level trained on.
        train_only: whether the level is too small to be split.
    """

    task: str
    level: int
    trace: str
    change: str
    latent_steps: int
    right: int
    asked: int
    changed: int
    chance: float
    beyond: bool
    train_only: bool


def thinking_traces(config: EvalConfig) -> dict[str, list[str]]:
    """Return the trace modes of each task after which thoughts can stand.

    Raises:
        ValueError: no task has one.
    """
    found = {task: [t for t in config.traces(task) if t != "none"] for task in config.tasks}
    if not any(found.values()):
        raise ValueError(
            "eval.faithfulness=true needs a trace mode that opens a thought: add full to "
            "eval.budgets.traces"
        )
    return found


def check_thoughts(subject: Subject, config: EvalConfig) -> list[Check]:
    """Ask all levels of all tasks, at the backbone's own depth, the likeliest token each time.

    Args:
        subject: who is asked; its backbone has thoughts before an answer.
        config: which questions; of the budgets only the trace modes are taken.

    Returns:
        A check for each task, level, trace mode and change; none of a backbone with no thoughts.

    Raises:
        ValueError: no trace mode opens a thought.
    """
    thinking_traces(config)
    plain = replace(config, budgets=BudgetConfig(traces=config.budgets.traces))
    cells = [c for c in plan(plain, subject.backbone, subject.trained) if c.budget.thinks]
    checks: list[Check] = []
    with evaluating(subject.backbone), progress_bar(len(cells)) as progress:
        for cell in cells:
            progress.describe(f"{subject.name}: thoughts of {cell.task} {cell.level}")
            checks += _Asked(subject, config, cell).checks()
            progress.advance(1)
    return checks


class _Asked:
    """The questions of a cell, to be asked several times."""

    def __init__(self, subject: Subject, config: EvalConfig, cell: Cell) -> None:
        self.subject, self.config, self.cell = subject, config, cell
        self.own = subject.backbone.config.latent.slots()
        self.requests = [
            make_request(problem, index, cell.budget.trace, subject.tokenizer)
            for index, problem in enumerate(cell.problems)
        ]

    def checks(self) -> Iterator[Check]:
        """Ask under every change that makes sense for so many questions and thoughts."""
        if not self.own:
            return
        carried = Carried(len(self.requests))
        plain = self._answers(self.own, carried.look)
        yield self._check(AS_THEY_ARE, self.own, plain, plain)
        if len(self.requests) > 1:
            source = derangement(len(self.requests), (self.config.seed, self.cell.level))
            swapped = self._answers(self.own, lambda places: carried.give(source[list(places)]))
            yield self._check(SWAPPED, self.own, swapped, plain)
        yield self._check(ZEROED, self.own, self._answers(self.own, zeros), plain)
        # A single thought has no half: then none of it stays.
        for fewer, change in {self.own // 2: HALF, 0: NONE}.items():
            yield self._check(change, fewer, self._answers(fewer), plain)

    def _answers(self, thoughts: int, alter: AlterOf | None = None) -> list[str | None]:
        budget = replace(self.cell.budget, latent_steps=thoughts)
        return ask(self.subject, self.requests, budget, self.config, alter)

    def _check(
        self,
        change: str,
        thoughts: int,
        answers: Sequence[str | None],
        plain: Sequence[str | None],
    ) -> Check:
        cell, task = self.cell, find_task(self.cell.task)
        pairs = list(zip(cell.problems, answers, strict=True))
        return Check(
            cell.task,
            cell.level,
            cell.budget.trace,
            change,
            thoughts,
            right=sum(a is not None and task.verify(problem, a) for problem, a in pairs),
            asked=len(pairs),
            changed=sum(a != b for a, b in zip(answers, plain, strict=True)),
            chance=task.chance(cell.level),
            beyond=cell.beyond,
            train_only=cell.train_only,
        )


def ask(
    subject: Subject,
    requests: Sequence[Request],
    budget: Budget,
    config: EvalConfig,
    alter: AlterOf | None = None,
) -> list[str | None]:
    """Return the answer to each request; None where a text never ended."""
    given = (subject.backbone, requests, budget, subject.tokenizer, config.batch_size, config.seed)
    return [
        answer_text(samples[0].tokens, subject.tokenizer, budget.thinks)
        for samples in generate(*given, alter=alter)
    ]


class Carried:
    """What the thoughts of some questions carry: noted in one run, given to others in the next."""

    def __init__(self, questions: int) -> None:
        self.inputs: list[dict[int, Tensor]] = [{} for _ in range(questions)]

    def look(self, places: Sequence[int]) -> Alter:
        """Note what the thoughts of these questions carry, one question a row, and keep it."""

        def note(made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
            at = zip(rows_M.tolist(), numbers_M.tolist(), made_MD, strict=True)
            for row, number, made_D in at:
                self.inputs[places[row]][number] = made_D.clone()
            return made_MD

        return note

    def give(self, places: Sequence[int] | np.ndarray) -> Alter:
        """Put what the thoughts of these questions carried into the rows, one question a row."""

        def replaced(made_MD: Tensor, rows_M: Tensor, numbers_M: Tensor) -> Tensor:
            at = zip(rows_M.tolist(), numbers_M.tolist(), strict=True)
            return torch.stack([self.inputs[places[row]][number] for row, number in at])

        return replaced


def zeros(places: Sequence[int]) -> Alter:
    """Let the thoughts of any questions carry nothing."""
    return lambda made_MD, rows_M, numbers_M: torch.zeros_like(made_MD)


def derangement(count: int, seed: Sequence[int]) -> np.ndarray:
    """Return whose thoughts each question gets: never its own, everyone's once.

    All questions stand in one random circle, and each gets those of the one before it.
    """
    order = np.random.default_rng(seed).permutation(count)
    source = np.empty(count, dtype=np.int64)
    source[order] = np.roll(order, 1)
    return source
