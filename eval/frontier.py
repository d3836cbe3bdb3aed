"""The frontier of accuracy against a cost: step-shaped, over all budgets and backbones.

A step, not a hull: between two measured points nothing was measured, and mixing two budgets on one
question is not a budget. A point is *dominated* when another is at least as accurate, costs no
more, and is better in one of the two; equal points stand side by side.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl


def dominated(costs: npt.ArrayLike, accuracies: npt.ArrayLike) -> np.ndarray:
    """Tell for each point whether another one beats it.

    Args:
        costs: finite, lower is better, [n].
        accuracies: higher is better, [n].

    Returns:
        Booleans, [n].
    """
    cost, accuracy = np.asarray(costs, dtype=float), np.asarray(accuracies, dtype=float)
    no_dearer = cost[:, None] <= cost[None, :]
    no_worse = accuracy[:, None] >= accuracy[None, :]
    better = (cost[:, None] < cost[None, :]) | (accuracy[:, None] > accuracy[None, :])
    return np.asarray((no_dearer & no_worse & better).any(axis=0))


def steps(costs: npt.ArrayLike, accuracies: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the frontier: its costs, rising, and the accuracy from each on.

    The accuracy that a cost buys is that of the last corner at or below it.
    """
    cost, accuracy = np.asarray(costs, dtype=float), np.asarray(accuracies, dtype=float)
    on_it = ~dominated(cost, accuracy)
    corners = sorted(set(zip(cost[on_it].tolist(), accuracy[on_it].tolist(), strict=True)))
    return np.array([c for c, _ in corners]), np.array([a for _, a in corners])


def frontier(points: pl.DataFrame, column: str, by: Sequence[str] = ("task",)) -> pl.DataFrame:
    """Flag the dominated points within each group, on one cost axis.

    Args:
        points: a table with `accuracy` and the cost.
        column: the cost column; points where it is null cannot be placed and are left out.
        by: the columns that form a group; a frontier never spans two tasks.

    Returns:
        The placed points with `cost` and `dominated`, groups and rows in their order.
    """
    placed = points.filter(pl.col(column).is_not_null()).with_columns(cost=pl.col(column))
    if placed.is_empty():
        return placed.with_columns(dominated=pl.lit(False))
    groups = placed.partition_by(list(by), maintain_order=True)
    return pl.concat(
        group.with_columns(dominated=pl.Series(dominated(group["cost"], group["accuracy"])))
        for group in groups
    )


def cheapest(
    points: pl.DataFrame, column: str, threshold: float, tolerance: float = 0.0
) -> pl.DataFrame:
    """Return the points of one task that reach an accuracy, from the least cost up.

    Args:
        points: the points of one task.
        column: the cost column.
        threshold: the accuracy to reach, a share.
        tolerance: costs that exceed the least by no more than this share are equal to it.

    Returns:
        The points with `accuracy >= threshold` and a known cost; `sure` says whether the whole
        interval lies at or above the threshold; `least` marks those that share the least cost.
        Equal costs are ordered by accuracy. Empty where nothing reaches the threshold.
    """
    reached = points.filter(pl.col("accuracy") >= threshold, pl.col(column).is_not_null())
    least = pl.col(column) <= pl.col(column).min() * (1 + max(tolerance, 1e-9))
    return (
        reached.with_columns(sure=pl.col("low") >= threshold, least=least)
        .with_columns(cost=pl.col(column))
        .sort("cost", "accuracy", descending=[False, True], maintain_order=True)
    )
