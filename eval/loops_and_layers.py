"""How much of what layers buy do loops buy? The share of the gap that looping closes.

(k x L) is a group of k layers that runs L times. With the same depth kL, it has the parameters of
(k x 1) and the FLOPs of (kL x 1):

    gap closed = (accuracy of (k x L) - that of (1 x 1)) / (that of (kL x 1) - that of (1 x 1))

Source: Saunshi et al., arXiv 2502.17416, sections 3 and 4.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import polars as pl

from eval.currencies import interval
from eval.mechanism_tables import over_seeds
from eval.mechanisms import Mechanisms, Outcome, asked_budget, group_labels
from eval.runs import Run
from eval.statistics import wilson
from eval.table import Entry, Table

PUBLISHED = (
    "Published (arXiv 2502.17416), accuracy of (1 x 1), (1 x L), (L x 1) and the gap closed: p-hop "
    "with p = 32, 49.0, 99.5, 99.6 (99.8% of the gap); addition of 32 numbers, 0.0, 99.6, 100 "
    "(99.6%); symbolic i-GSM, 24.5, 73.2, 73.2 (100%)."
)
Shape = tuple[int, int]


def shape_of(cost: Mapping[str, Any]) -> Shape | None:
    """Return (k, L) of a run; None for a model with a prelude or a coda.

    Args:
        cost: the run's cost.json.
    """
    depth, calls = cost.get("depth") or {}, cost.get("block_calls_per_position")
    if not calls:
        return None
    if depth.get("kind") == "fixed":
        return int(calls), 1
    loops = depth.get("loops") or 0
    whole = depth.get("kind") == "looped" and not (depth.get("prelude") or depth.get("coda"))
    return (int(calls) // loops, loops) if whole and loops else None


def gap_table(found: Mechanisms | None, runs: Sequence[Run], cells: pl.DataFrame) -> Table | None:
    """Compare loops with layers on each task; None where there are none to compare."""
    if found is None:
        return None
    labels = group_labels(runs)
    shapes = {labels[run.name]: shape_of(run.cost) for run in runs}
    rows = []
    for task in found.tasks:
        by_shape = {shapes[label]: label for label in found.of_task(task) if shapes[label]}
        single = by_shape.get((1, 1))
        looped = [shape for shape in by_shape if shape and shape[1] > 1]
        compared = [s for s in looped if (s[0] * s[1], 1) in by_shape]
        if single is None or not compared:
            continue
        stacks = {(k * loops, 1) for k, loops in compared}
        for shape in sorted({(1, 1), *compared, *stacks}, key=lambda s: (s[0] * s[1], s)):
            outcome = found.outcomes[by_shape[shape], task]
            counted = _pooled(outcome, by_shape[shape], labels, runs, cells, task)
            gap = _gap(shape, task, by_shape, found)
            rows.append([Entry(task), Entry(f"({shape[0]} x {shape[1]})"), *counted, Entry(gap)])
    if not rows:
        return None
    return Table(
        title="Loops against layers",
        columns=["Task", "(layers x loops)", "Accuracy over seeds (%)", "95% of questions", "Gap"],
        rows=rows,
        note="Accuracy at the held-out levels: mean with the range over seeds, and the Wilson "
        "interval of all their questions. Gap: the share of what the deeper stack gains over one "
        f"layer that the loop gains too. {PUBLISHED}",
        grouped=True,
    )


def _gap(shape: Shape, task: str, by_shape: Mapping[Any, str], found: Mechanisms) -> str:
    k, loops = shape
    if loops == 1:
        return ""
    one, own, stack = (
        _accuracy(found.outcomes[by_shape[each], task]) for each in ((1, 1), shape, (k * loops, 1))
    )
    return f"{100 * (own - one) / (stack - one):.0f}%" if stack > one else "none to close"


def _accuracy(outcome: Outcome) -> float:
    return mean(result.accuracy for result in outcome.seeds)


def _pooled(
    outcome: Outcome,
    label: str,
    labels: Mapping[str, str],
    runs: Sequence[Run],
    cells: pl.DataFrame,
    task: str,
) -> list[Entry]:
    """The accuracy over seeds, and the Wilson interval of all questions of all seeds."""
    chosen = [
        run.name
        for run in runs
        if labels[run.name] == label
        and float(run.cost.get("peak_learning_rate") or 0) == outcome.rate
    ]
    of_task = cells.filter(pl.col("task") == task)
    asked = of_task.filter(pl.col("budget") == asked_budget(of_task), pl.col("run").is_in(chosen))
    own = asked.filter(~pl.col("train_only"), ~pl.col("beyond"))
    correct, items = int(own["correct"].sum()), int(own["items"].sum())
    low, high = (float(bound[0]) for bound in wilson(np.array([correct]), np.array([items])))
    return [
        Entry(over_seeds(result.accuracy for result in outcome.seeds)),
        Entry(interval(correct / items, low, high)),
    ]
