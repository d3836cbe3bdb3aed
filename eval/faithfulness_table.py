"""Whether answers depend on their thoughts, as tables: a row for each level, a column a change."""

from collections.abc import Mapping, Sequence

import polars as pl

from eval.currencies import interval, percent
from eval.faithfulness import AS_THEY_ARE, CHANGES, HALF, NONE, SWAPPED, ZEROED, Check
from eval.faithfulness_files import read_checks
from eval.runs import Run
from eval.statistics import wilson
from eval.table import Entry, Table

_HEADS = {
    AS_THEY_ARE: "Thoughts as they are",
    SWAPPED: "Swapped between questions",
    ZEROED: "Zeroed",
    HALF: "Half of them",
    NONE: "None of them",
}
_NOTE = (
    "Accuracy (%) with its 95% Wilson interval; below it, how many answers differ from those given "
    "with thoughts as they are. If nothing is lost when each question gets the thoughts of another "
    "one of its level, the answers don't depend on what thoughts carry. A loss with zeros, or with "
    "fewer thoughts, says less: training may never have shown those. Pause and filler thoughts are "
    "all alike, so swapping them changes nothing. Grey: no better than chance."
)


def checks_of(runs: Sequence[Run]) -> dict[str, list[Check]]:
    """Return the checks of each run by its label, where the ledger is of the same weights."""
    found = {run.label: read_checks(run.folder, _checkpoint(run)) for run in runs}
    return {label: checks for label, checks in found.items() if checks}


def _checkpoint(run: Run) -> str | None:
    """The weights that the ledger is of; None where it doesn't say."""
    if "checkpoint" not in run.ledger.columns:
        return None
    known = run.ledger.select(pl.col("checkpoint").unique()).to_series().to_list()
    return known[0] if len(known) == 1 else None


def faithfulness_tables(checks: Mapping[str, Sequence[Check]]) -> list[Table]:
    """Show what changed thoughts do to accuracy, a table for each task."""
    tasks = dict.fromkeys(check.task for own in checks.values() for check in own)
    return [_table(checks, task) for task in tasks]


def _table(checks: Mapping[str, Sequence[Check]], task: str) -> Table:
    rows = [
        row
        for label, own in checks.items()
        for row in _rows(label, [check for check in own if check.task == task])
    ]
    return Table(
        title=f"{task}: accuracy with other thoughts",
        columns=["Backbone", "Trace", "Level", *(_HEADS[change] for change in CHANGES), "Chance"],
        rows=rows,
        note=_NOTE,
        names=3,
        grouped=True,
    )


def _rows(label: str, checks: Sequence[Check]) -> list[list[Entry]]:
    """A row for each trace mode and level, and one for the held-out levels of a mode together."""
    rows = []
    for trace in dict.fromkeys(check.trace for check in checks):
        own = [check for check in checks if check.trace == trace]
        held_out = [check for check in own if not check.beyond and not check.train_only]
        levels = list(dict.fromkeys(check.level for check in own))
        if len({check.level for check in held_out}) > 1:
            rows.append([Entry(label), Entry(trace), Entry("held-out"), *_entries(held_out)])
        for level in levels:
            at = [check for check in own if check.level == level]
            rows.append([Entry(label), Entry(trace), Entry(_level(at[0])), *_entries(at)])
    return rows


def _level(check: Check) -> str:
    kind = " (train-only)" if check.train_only else " (harder)" if check.beyond else ""
    return f"{check.level}{kind}"


def _entries(checks: Sequence[Check]) -> list[Entry]:
    chance = sum(check.chance * check.asked for check in checks) / sum(c.asked for c in checks)
    by_change = {name: [c for c in checks if c.change == name] for name in CHANGES}
    return [*(_entry(name, own, chance) for name, own in by_change.items()), Entry(percent(chance))]


def _entry(change: str, checks: Sequence[Check], chance: float) -> Entry:
    if not checks:
        return Entry("–", "faint")
    right, asked = sum(check.right for check in checks), sum(check.asked for check in checks)
    low, high = (float(bound) for bound in wilson(right, asked))
    differ = f"{percent(sum(check.changed for check in checks) / asked)} differ"
    detail = (f"n = {asked:,}",) if change == AS_THEY_ARE else (differ,)
    tone = "faint" if low <= chance else ""
    return Entry(interval(right / asked, low, high), tone, detail)
