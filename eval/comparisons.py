"""Which differences between backbones are more than luck: paired on the same questions."""

from typing import Any

import polars as pl

from eval.columns import BUDGET_COLUMNS, QUESTION_COLUMNS
from eval.statistics import Difference, paired_difference

_CLUSTER = "template"


def comparisons(ledger: pl.DataFrame, points: pl.DataFrame) -> list[tuple[Any, Any, Difference]]:
    """Compare, task by task, each run at its most accurate budget with the most accurate run.

    Both answered the same questions, so the comparison is paired, over the levels that points
    pool. Where the ledger names templates, they are the clusters.

    Returns:
        Triples of the best point, another run's best point (as rows), and their difference, best
        minus other. Runs that share no question with the best are left out.
    """
    found = []
    for task in points.partition_by("task", maintain_order=True):
        best, *others = (
            task.sort("accuracy", descending=True, maintain_order=True)
            .group_by("run", maintain_order=True)
            .first()
            .iter_rows(named=True)
        )
        for other in others:
            shared = _shared(ledger, best, other)
            if not shared.is_empty():
                clusters = shared[_CLUSTER] if _CLUSTER in shared.columns else None
                gap = paired_difference(shared["correct"], shared["correct_other"], clusters)
                found.append((best, other, gap))
    return found


def _shared(ledger: pl.DataFrame, best: dict[str, Any], other: dict[str, Any]) -> pl.DataFrame:
    """The questions that both points answered, with the correctness of each."""
    # The same index is the same question only if the same seed drew it; the text proves it.
    key = [*QUESTION_COLUMNS, "seed", *(n for n in ("question_text",) if n in ledger.columns)]
    extra = [_CLUSTER] if _CLUSTER in ledger.columns and not ledger[_CLUSTER].has_nulls() else []
    first, second = _answers(ledger, best), _answers(ledger, other)
    return first.select(*key, *extra, "correct").join(
        second.select(*key, "correct"), on=key, suffix="_other", nulls_equal=True
    )


def _answers(ledger: pl.DataFrame, point: dict[str, Any]) -> pl.DataFrame:
    same = [pl.col(name).eq_missing(point[name]) for name in ("run", "task", *BUDGET_COLUMNS)]
    held_out = ~pl.col("beyond") & ~pl.col("train_only")
    return ledger.filter(*same, held_out, pl.col("level").is_in(list(point["levels"])))
