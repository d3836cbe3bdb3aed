"""Run budgets on a backbone and fill the ledger's rows, cell by cell."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from data.task_list import find_task
from data.tokenizer import Tokenizer
from eval.answers import answer_text, majority
from eval.budget import Budget
from eval.config import EvalConfig
from eval.energy import EnergyMeter
from eval.fill import FillMeter, check_budgets, fill, fill_requests
from eval.generate import Generation, Request, generate
from eval.progress import Progress, progress_bar
from eval.questions import Cell, make_request, plan
from eval.spending import Meter
from models.backbone import Backbone

Row = dict[str, Any]


@dataclass
class Subject:
    """Who is asked.

    Attributes:
        backbone: on the device to use.
        tokenizer: the one that it was trained with.
        run: name of its run.
        name: name of the backbone.
        checkpoint: identity of its weights; rows of another one are not kept.
        trained: levels that each task was trained on; None takes the tasks' own.
        fills: whether it was trained to fill answers in; a non-causal backbone can do nothing else.
    """

    backbone: Backbone
    tokenizer: Tokenizer
    run: str
    name: str
    checkpoint: str
    trained: Mapping[str, Collection[int]] | None = None
    fills: bool = False

    def __post_init__(self) -> None:
        """Let a backbone that sees ahead fill in."""
        self.fills = self.fills or not self.backbone.causal


def evaluate(
    subject: Subject,
    config: EvalConfig,
    existing: Iterable[Row] = (),
    on_cell: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Ask every question under every budget.

    Args:
        subject: who is asked.
        config: what is asked.
        existing: rows of an earlier evaluation; complete cells of the same checkpoint are kept.
        on_cell: told all rows so far after each new cell, to save them.

    Returns:
        A row for each answered question, with the columns of the ledger and a few more.

    Raises:
        ValueError: on impossible settings, naming the key.
    """
    config.validate()
    _check_vocabulary(subject, config)
    if subject.fills:
        check_budgets(config, subject.backbone)
    cells = plan(config, subject.backbone, subject.trained)
    rows = _kept(cells, existing, subject, config)
    done = {_key(row) for row in rows}
    todo = [cell for cell in cells if _key(_cell_columns(cell, subject, config)) not in done]
    examiner = _Examiner(subject, config)
    with evaluating(subject.backbone), progress_bar(sum(map(examiner.weight, todo))) as progress:
        for cell in todo:
            progress.describe(f"{subject.name}: {cell.task} {cell.level}, {cell.budget.label}")
            rows += examiner.examine(cell, progress)
            if on_cell is not None:
                on_cell(rows)
    return rows


class _Examiner:
    """Asks a subject the questions of a cell, and counts and times what it does."""

    def __init__(self, subject: Subject, config: EvalConfig) -> None:
        self.subject, self.config = subject, config
        self.device = next(subject.backbone.parameters()).device
        self.energy = EnergyMeter(self.device)
        self.meters: dict[tuple[int | None, str | None], Meter | FillMeter] = {}

    def weight(self, cell: Cell) -> int:
        """About how much work a cell is: block passes over what its answers are expected to be."""
        request = make_request(cell.problems[0], 0, cell.budget.trace, self.subject.tokenizer)
        passes = self.subject.backbone.block_calls_per_position(cell.budget.loops)
        positions = len(cell.problems) * cell.budget.samples * _expected(request, cell)
        return round(positions * passes)

    def examine(self, cell: Cell, progress: Progress) -> list[Row]:
        """Ask the questions of a cell."""
        requests = self._requests(cell)
        share = self.weight(cell) // (len(requests) * cell.budget.samples)
        joules, start = self.energy.joules(), self._now()
        answers = self._generate(requests, cell, lambda count: progress.advance(count * share))
        seconds = (self._now() - start) / len(requests)
        joules = None if joules is None else ((self.energy.joules() or 0) - joules) / len(requests)
        shared = {
            **_cell_columns(cell, self.subject, self.config),
            "latency_b1_s": self._latency(requests, cell),
            "batch_s": seconds,
            "joules": joules,
        }
        return [
            {**shared, **self._columns(cell, index, samples)}
            for index, samples in enumerate(answers)
        ]

    def _requests(self, cell: Cell) -> list[Request]:
        if self.subject.fills:
            return fill_requests(cell.problems, self.subject.tokenizer)
        return [
            make_request(problem, index, cell.budget.trace, self.subject.tokenizer)
            for index, problem in enumerate(cell.problems)
        ]

    def _generate(
        self,
        requests: Sequence[Request],
        cell: Cell,
        on_finished: Callable[[int], None] | None = None,
        batch_size: int | None = None,
    ) -> Sequence[Sequence[Generation]]:
        subject, rows = self.subject, batch_size or self.config.batch_size
        given = (subject.backbone, requests, cell.budget, subject.tokenizer, rows)
        if subject.fills:
            return [[answer] for answer in fill(*given, on_finished)]
        return generate(*given, self.config.seed, on_finished)

    def _latency(self, requests: Sequence[Request], cell: Cell) -> float | None:
        """Median seconds of a question alone; its samples run side by side."""
        if not self.config.latency_items:
            return None
        self._generate(requests[:1], cell, batch_size=1)
        return median(
            self._seconds(lambda r=request: self._generate([r], cell, batch_size=1))
            for request in requests[: self.config.latency_items]
        )

    def _seconds(self, work: Callable[[], object]) -> float:
        start = self._now()
        work()
        return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _columns(self, cell: Cell, index: int, samples: Sequence[Generation]) -> Row:
        """What one question adds: its verdict, its counts and its texts."""
        problem, tokenizer = cell.problems[index], self.subject.tokenizer
        answers = [answer_text(s.tokens, tokenizer, cell.budget.thinks) for s in samples]
        answer = majority(answers)
        return {
            "index": index,
            "correct": answer is not None and find_task(cell.task).verify(problem, answer),
            **asdict(self._meter(cell.budget).spend(samples)),
            "question_text": problem.question,
            "answer_text": problem.answer,
            "output_text": tokenizer.decode(samples[answers.index(answer)].tokens),
        }

    def _meter(self, budget: Budget) -> Meter | FillMeter:
        key = budget.loops, budget.stop
        if key not in self.meters:
            backbone, fills = self.subject.backbone, self.subject.fills
            self.meters[key] = FillMeter(backbone, key[0]) if fills else Meter(backbone, *key)
        return self.meters[key]


def _cell_columns(cell: Cell, subject: Subject, config: EvalConfig) -> Row:
    """The columns that all questions of a cell have in common."""
    return {
        "run": subject.run,
        "backbone": subject.name,
        "checkpoint": subject.checkpoint,
        "task": cell.task,
        "level": cell.level,
        "split": cell.split,
        **cell.budget.columns(),
        "temperature": cell.budget.temperature,
        "chance": find_task(cell.task).chance(cell.level),
        "seed": config.seed,
        "beyond": cell.beyond,
        "train_only": cell.train_only,
    }


def _expected(request: Request, cell: Cell) -> int:
    trace = request.max_trace if cell.budget.thinks else 0
    forced = cell.budget.forced_end
    return (trace if forced is None else min(trace, forced)) + request.max_answer


# What was done before

_KEYS = (
    *("run", "checkpoint", "task", "level", "split", "seed", "temperature"),
    *("budget_trace", "budget_forced_end", "budget_loops"),
    *("budget_latent_steps_allowed", "budget_samples", "budget_stop"),
)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEYS)


def _kept(
    cells: Sequence[Cell], existing: Iterable[Row], subject: Subject, config: EvalConfig
) -> list[Row]:
    """The rows of complete cells that are asked for again."""
    rows = list(existing)
    found = Counter(map(_key, rows))
    complete = {
        key
        for cell in cells
        if found[key := _key(_cell_columns(cell, subject, config))] == len(cell.problems)
    }
    return [row for row in rows if _key(row) in complete]


def _check_vocabulary(subject: Subject, config: EvalConfig) -> None:
    known, used = subject.tokenizer.vocab_size, subject.backbone.config.vocab_size
    if known != used:
        raise ValueError(
            f"backbone.vocab_size={used} isn't the tokenizer's {known}: "
            "take the tokenizer that the run was trained with"
        )
    config.check_words(subject.tokenizer)


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Put a backbone into evaluation mode while the block runs."""
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)
