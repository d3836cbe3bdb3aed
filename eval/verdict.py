"""The report's first answer: which backbone reaches an accuracy at least cost, on each currency."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from eval.currencies import ETA_CURRENCIES, Currency
from eval.frontier import cheapest

# Two measurements of one thing differ by this much, so they are called equal.
TIE = 0.05


@dataclass(frozen=True)
class Verdict:
    """The cheapest answers to one task on one currency.

    Attributes:
        task: the task.
        currency: what is spent.
        least: the points that reach the accuracy at the least cost; several if they tie (measured
            costs do within `TIE`), none if nothing reaches it. Rows of `eval.frontier.cheapest`.
        next: the cheapest point of a backbone that is not among them, or None.
        closest: where nothing reaches the accuracy, the most accurate point with a known cost.
    """

    task: str
    currency: Currency
    least: Sequence[dict[str, Any]]
    next: dict[str, Any] | None
    closest: dict[str, Any] | None


def verdicts(points: pl.DataFrame, threshold: float) -> list[Verdict]:
    """Judge every task on every currency that eta is stated in.

    Args:
        points: of `eval.metrics.points`.
        threshold: the accuracy to reach, a share; the point estimate counts, and `sure` in a row
            says whether its whole interval does.
    """
    tasks = points.partition_by("task", maintain_order=True)
    return [_judge(task, currency, threshold) for task in tasks for currency in ETA_CURRENCIES]


def _judge(points: pl.DataFrame, currency: Currency, threshold: float) -> Verdict:
    reached = cheapest(points, currency.column, threshold, TIE if currency.measured else 0.0)
    least = reached.filter("least")
    others = reached.filter(~pl.col("run").is_in(least["run"].to_list()))
    known = points.filter(pl.col(currency.column).is_not_null())
    closest = None
    if reached.is_empty() and not known.is_empty():
        closest = known.sort("accuracy", descending=True, maintain_order=True).row(0, named=True)
    return Verdict(
        task=points["task"][0],
        currency=currency,
        least=least.to_dicts(),
        next=None if others.is_empty() else others.row(0, named=True),
        closest=closest,
    )
