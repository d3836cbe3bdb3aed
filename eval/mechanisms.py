"""What each backbone can do: runs that differ in seed and learning rate, taken together.

A *group* holds the runs of one backbone on one task that differ in their seed and learning rate
only. Of each group one rate is reported, the one with the least validation loss at the end of
training (mean over seeds), so that no test question takes part in the choice. A seed *solves* a
task if its accuracy is at least 90% at each held-out level. A task is judged only where a *control*
passed: a backbone of the report that solves it, on the same budget, with at least half of its
seeds.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import mean
from typing import Any

import polars as pl
import yaml

from eval.runs import Run

SOLVED = 0.9
_METRICS_FILE = "metrics.csv"
# What runs of one group may differ in, beside the corpus, and what changes nothing that is learnt.
_FREE = ("seed", "data", "corpus", "experiment_name", "runs", "parallel", "logger", "eval", "study")


@dataclass(frozen=True)
class SeedResult:
    """One run on one task, answering directly where it was asked to.

    Attributes:
        label: its backbone, told apart where settings differ in more than seed and rate.
        task: the task.
        seed: training seed.
        rate: peak learning rate; 0 where it is not known.
        validation_loss: at the end of training; None where it was not measured.
        levels: accuracy at each held-out level.
        beyond: accuracy at each level that is harder than training.
        state_bytes: mean state held at the end of an answer, at each level.
        chance: mean accuracy of guessing over the held-out levels.
    """

    label: str
    task: str
    seed: int
    rate: float
    validation_loss: float | None
    levels: Mapping[int, float]
    beyond: Mapping[int, float]
    state_bytes: Mapping[int, float]
    chance: float

    @property
    def accuracy(self) -> float:
        """Mean over the held-out levels."""
        return mean(self.levels.values())

    @property
    def solved(self) -> bool:
        """Whether every held-out level is answered."""
        return min(self.levels.values()) >= SOLVED


@dataclass(frozen=True)
class Outcome:
    """One backbone on one task at the learning rate that was chosen.

    Attributes:
        rate: the chosen peak learning rate.
        seeds: its runs at that rate, by seed.
        losses: mean final validation loss at each rate that was tried; None where not measured.
        tried: all runs of the group.
    """

    rate: float
    seeds: Sequence[SeedResult]
    losses: Mapping[float, float | None]
    tried: Sequence[SeedResult]

    @property
    def solved(self) -> int:
        """How many seeds solve the task."""
        return sum(result.solved for result in self.seeds)

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the least or the greatest of several."""
        return len(self.losses) > 1 and self.rate in (min(self.losses), max(self.losses))


@dataclass(frozen=True)
class Mechanisms:
    """All groups of a report.

    Attributes:
        labels: backbones, in the order in which they come.
        tasks: tasks.
        outcomes: by backbone and task; a missing one was not run.
        controls: of each task, the backbone that solves it with most seeds; None where none does
            with at least half of its own.
    """

    labels: Sequence[str]
    tasks: Sequence[str]
    outcomes: Mapping[tuple[str, str], Outcome]
    controls: Mapping[str, str | None]

    def of_task(self, task: str) -> dict[str, Outcome]:
        """The outcomes of one task by backbone, in the report's order."""
        found = {label: self.outcomes.get((label, task)) for label in self.labels}
        return {label: outcome for label, outcome in found.items() if outcome is not None}

    def goes_beyond(self, task: str) -> bool:
        """Whether any seed is better than guessing at the levels that are harder than trained."""
        results = [result for o in self.of_task(task).values() for result in o.seeds]
        return any(r.beyond and mean(r.beyond.values()) > r.chance for r in results)


def mechanisms(runs: Sequence[Run], cells: pl.DataFrame) -> Mechanisms | None:
    """Group the runs of a report; None where every group would be a single run.

    Args:
        runs: the runs.
        cells: accuracy per run, task, level and budget.
    """
    labels = group_labels(runs)
    groups: dict[tuple[str, str], list[SeedResult]] = defaultdict(list)
    for task in cells["task"].unique(maintain_order=True):
        for result in _results(runs, labels, cells.filter(pl.col("task") == task)):
            groups[result.label, task].append(result)
    if all(len(group) == 1 for group in groups.values()):
        return None
    outcomes = {key: _outcome(group) for key, group in groups.items()}
    tasks = list(dict.fromkeys(task for _, task in groups))
    names = list(dict.fromkeys(label for label, _ in groups))
    return Mechanisms(names, tasks, outcomes, {task: _control(outcomes, task) for task in tasks})


def group_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Give each run, by name, its group's label: the backbone, and a hash where one is needed.

    It is needed where runs of one backbone differ in more than seed, rate and task.
    """
    setups: dict[str, set[str]] = defaultdict(set)
    corpora: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for run in runs:
        setups[run.backbone].add(_setup(run))
        for task in run.ledger["task"].unique():
            corpora[run.backbone, task].add(run.cost.get("corpus"))
    several = {backbone for (backbone, _), found in corpora.items() if len(found) > 1}
    labels = {}
    for run in runs:
        parts = [_setup(run)[:6]] if len(setups[run.backbone]) > 1 else []
        parts += [f"corpus {str(run.cost.get('corpus'))[:6]}"] if run.backbone in several else []
        labels[run.name] = f"{run.backbone} ({', '.join(parts)})" if parts else run.backbone
    return labels


def _setup(run: Run) -> str:
    """A hash of what the runs of a group have in common."""
    try:
        config = yaml.safe_load(run.config)
    except yaml.YAMLError:
        config = None
    plain = dict(config) if isinstance(config, dict) else {}
    for key in _FREE:
        plain.pop(key, None)
    optim = plain.get("optim")
    if isinstance(optim, dict):
        plain["optim"] = {key: value for key, value in optim.items() if key != "lr"}
    text = json.dumps(plain, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _results(
    runs: Sequence[Run], labels: Mapping[str, str], cells: pl.DataFrame
) -> Iterable[SeedResult]:
    """The runs of one task, over the held-out levels that all of them answered."""
    cells = cells.filter(pl.col("budget") == asked_budget(cells))
    answered = pl.col("run").n_unique()
    common = cells.filter(answered.over("level") == cells["run"].n_unique(), ~pl.col("train_only"))
    for run in runs:
        own = common.filter(pl.col("run") == run.name)
        held_out = own.filter(~pl.col("beyond"))
        if held_out.is_empty():
            continue
        yield SeedResult(
            label=labels[run.name],
            task=own["task"][0],
            seed=int(run.cost.get("seed", 0)),
            rate=float(run.cost.get("peak_learning_rate") or 0),
            validation_loss=_final_validation_loss(run.folder),
            levels=_by_level(held_out, "accuracy"),
            beyond=_by_level(own.filter(pl.col("beyond")), "accuracy"),
            state_bytes=_by_level(own, "state_bytes"),
            chance=mean(held_out["chance"]),
        )


def asked_budget(cells: pl.DataFrame) -> str:
    """The budget that a task is judged at: direct answers, or else the first."""
    budgets = cells["budget"].unique(maintain_order=True).to_list()
    return "direct" if "direct" in budgets else budgets[0]


def _by_level(cells: pl.DataFrame, column: str) -> dict[int, float]:
    return dict(cells.sort("level").select("level", column).iter_rows())


def _final_validation_loss(folder: Path) -> float | None:
    """The last validation loss of metrics.csv; None where there is none."""
    path = folder / _METRICS_FILE
    if not path.is_file():
        return None
    table = pl.read_csv(path, infer_schema_length=0)
    if "validation_loss" not in table.columns:
        return None
    losses = table["validation_loss"].cast(pl.Float64, strict=False).drop_nulls()
    return losses[-1] if len(losses) else None


def _outcome(group: Sequence[SeedResult]) -> Outcome:
    by_rate: dict[float, list[SeedResult]] = defaultdict(list)
    for result in sorted(group, key=lambda result: (result.rate, result.seed)):
        by_rate[result.rate].append(result)
    losses = {rate: _mean_loss(results) for rate, results in by_rate.items()}
    # A rate that diverged has fewer seeds; it can't win by the ones that are left.
    most = max(len(results) for results in by_rate.values())
    whole = [rate for rate, results in by_rate.items() if len(results) == most]
    rate = min(whole, key=lambda rate: _known(losses[rate]))
    return Outcome(rate, by_rate[rate], losses, group)


def _known(loss: float | None) -> float:
    return math.inf if loss is None else loss


def _mean_loss(results: Sequence[SeedResult]) -> float | None:
    losses = [r.validation_loss for r in results if r.validation_loss is not None]
    return mean(losses) if len(losses) == len(results) else None


def _control(outcomes: Mapping[tuple[str, str], Outcome], task: str) -> str | None:
    shares = {
        label: outcome.solved / len(outcome.seeds)
        for (label, of), outcome in outcomes.items()
        if of == task
    }
    best = max(shares, key=lambda label: shares[label])
    return best if shares[best] >= 0.5 else None
