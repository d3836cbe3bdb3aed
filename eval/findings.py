"""Everything that a report says, computed once, before anything is drawn or written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from eval.currencies import ETA_CURRENCIES, scaled
from eval.faithfulness import Check
from eval.faithfulness_table import checks_of
from eval.group_costs import group_points
from eval.mechanism_tables import mechanism_notes
from eval.mechanisms import Mechanisms, mechanisms
from eval.metrics import cells, points, pooled
from eval.palette import Style, styles
from eval.runs import Run, combined_ledger, find_runs, read_runs
from eval.stopping import Way, stopping
from eval.twin_notes import twin_notes
from eval.verdict import Verdict, verdicts

MOST_SHOWN_ALONE = 12
"""With more runs that form groups, only the groups are shown: no legend holds so many lines."""


@dataclass(frozen=True)
class Findings:
    """The runs of a report and the tables computed from their ledgers.

    Attributes:
        runs: who was evaluated, in the order of the figures.
        unevaluated: run folders that were found without a ledger.
        ledger: all answers, with a `label` per run.
        cells: accuracy and costs per run, task, level and budget.
        points: the same, pooled over the held-out levels; empty if there are none.
        verdicts: who reaches the threshold at least cost.
        threshold: the accuracy to reach, a share.
        styles: the look of each label.
        mechanisms: runs that differ in seed and learning rate, taken together; None where there
            are none.
        grouped: their accuracy and costs over seeds; None where there are no groups or points.
        ways: ways to spend loops, where rules to stop by were tried.
        checks: answers with changed thoughts, by the label of the run, where those were asked for.
    """

    runs: Sequence[Run]
    unevaluated: Sequence[Path]
    ledger: pl.DataFrame
    cells: pl.DataFrame
    points: pl.DataFrame
    verdicts: Sequence[Verdict]
    threshold: float
    styles: Mapping[str, Style]
    mechanisms: Mechanisms | None = None
    grouped: pl.DataFrame | None = None
    ways: Sequence[Way] = ()
    checks: Mapping[str, Sequence[Check]] = field(default_factory=dict)

    @property
    def shows_groups_only(self) -> bool:
        """Whether the runs are too many to be shown one by one."""
        return self.mechanisms is not None and len(self.runs) > MOST_SHOWN_ALONE

    @property
    def tasks(self) -> list[str]:
        """The tasks that were answered, in the order of the figures."""
        return self.cells["task"].unique(maintain_order=True).to_list()

    def sizes(self) -> str:
        """Say in a sentence how large each backbone is and what its training cost."""
        said = []
        for run in self.runs:
            flops = run.cost.get("train_flops")
            trained = f" and {''.join(scaled(flops))}" if isinstance(flops, (int, float)) else ""
            said.append(f"{run.label} {''.join(scaled(run.cost['parameters']))}{trained}")
        return f"Parameters and training FLOPs: {'; '.join(said)}."

    def notes(self) -> list[str]:
        """Say, one sentence each, what a reader must know before comparing the runs."""
        grouped = [] if self.mechanisms is None else mechanism_notes(self.mechanisms)
        alone = [] if self.shows_groups_only else [*_pools(self), *_unmeasured(self.points)]
        notes = [*grouped, *alone, *twin_notes(self.runs), *_unequal(self.runs, self.ledger)]
        if self.unevaluated:
            names = ", ".join(folder.name for folder in self.unevaluated)
            notes.append(f"Trained but not evaluated, so not shown: {names}.")
        return notes


def gather(folders: Sequence[Path], threshold: float) -> Findings:
    """Read the runs at or under some folders and compute all that the report shows.

    Raises:
        eval.runs.RunError: no run, no ledger, or no parameter count.
        eval.ledger.LedgerError: a ledger that cannot be trusted.
    """
    found, unevaluated = find_runs(folders)
    runs = read_runs(found)
    ledger = combined_ledger(runs)
    by_cell = cells(ledger)
    by_budget = points(by_cell)
    groups = mechanisms(runs, by_cell)
    return Findings(
        runs=runs,
        unevaluated=unevaluated,
        ledger=ledger,
        cells=by_cell,
        points=by_budget,
        verdicts=verdicts(by_budget, threshold),
        threshold=threshold,
        styles=styles([run.label for run in runs]),
        mechanisms=groups,
        grouped=None
        if groups is None or by_budget.is_empty()
        else group_points(groups, runs, by_budget),
        ways=stopping(ledger, runs),
        checks=checks_of(runs),
    )


def _pools(findings: Findings) -> list[str]:
    """Per task: what a point pools, and which held-out levels it had to leave out."""
    notes = []
    held_out = findings.cells.filter(~pl.col("beyond"), ~pl.col("train_only"))
    for task in findings.tasks:
        levels = held_out.filter(pl.col("task") == task)["level"].unique().sort().to_list()
        rows = findings.points.filter(pl.col("task") == task)
        used = [] if rows.is_empty() else list(rows["levels"][0])
        notes.append(_pool(task, rows))
        if left_out := [str(level) for level in levels if level not in used]:
            notes.append(
                f"{task}: level {', '.join(left_out)} is not pooled, because not every run "
                "answered it at every budget; the figures by level show it."
            )
    return notes


def _pool(task: str, rows: pl.DataFrame) -> str:
    if rows.is_empty():
        return f"{task}: no held-out level was answered by every run at every budget: no points."
    return pooled(rows)


def _unmeasured(points: pl.DataFrame) -> list[str]:
    """Which points a currency leaves out, because it was not measured at every pooled level."""
    notes = []
    for currency in ETA_CURRENCIES:
        lacking = points.filter(pl.col(currency.column).is_null())
        if 0 < lacking.height < points.height:
            names = lacking["label"].unique(maintain_order=True)
            notes.append(
                f"{currency.title} was not measured at every level for {', '.join(names)}: "
                "points without it take no part in its comparison."
            )
    return notes


def _unequal(runs: Sequence[Run], ledger: pl.DataFrame) -> list[str]:
    """How far the runs differ in what must be equal for a fair comparison on a task."""
    notes = []
    sizes = [run.cost["parameters"] for run in runs]
    if len(runs) > 1:
        apart = 100 * (max(sizes) / min(sizes) - 1)
        notes.append(f"Parameters differ by {apart:.1f}% at most.")
    read = {run.name: run.cost.get("train_tokens") for run in runs}
    for (task,), rows in ledger.group_by("task", maintain_order=True):
        tokens = {read.get(name) for name in rows["run"].unique()}
        if len(tokens) > 1:
            known = sorted(int(count) for count in tokens if isinstance(count, (int, float)))
            spread = f"{known[0]:,} to {known[-1]:,}" if known else "not all known"
            notes.append(f"{task}: not trained on the same number of tokens ({spread}).")
    return notes
