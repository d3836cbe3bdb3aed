"""Accuracies, efficiencies and costs per answer: pure functions from a ledger to small tables.

A *cell* is one (run, task, level, budget). A *point* pools the cells of one (run, task, budget)
over the held-out levels: those trained on and large enough to be split, answered under every
budget by every run of the report, so that points are comparable. docs/metrics.md says what each
figure hides.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from eval.columns import BUDGET_COLUMNS
from eval.currencies import CURRENCIES, ETA_CURRENCIES, Currency
from eval.statistics import wilson

WHO: tuple[str, ...] = ("run", "label")
POINT: tuple[str, ...] = (*WHO, "task", *BUDGET_COLUMNS)
LEVEL: tuple[str, ...] = ("level", "beyond", "train_only")
COSTS: tuple[str, ...] = tuple(c.column for c in CURRENCIES)
TRACES: tuple[str, ...] = ("none", "short", "full", "verbose")


def cells(ledger: pl.DataFrame) -> pl.DataFrame:
    """Summarise a ledger by cell.

    Returns:
        One row a cell: `items`, `correct`, `chance`, the mean of each cost over the items where it
        was measured (null where on none), `accuracy` with its 95% Wilson interval `low`, `high`,
        and the chance-corrected `quality` with `quality_low`, `quality_high`.
    """
    ledger = ledger if "label" in ledger.columns else ledger.with_columns(label="backbone")
    ledger = ledger.with_columns(total_steps=pl.col("visible_tokens") + pl.col("latent_steps"))
    table = ledger.group_by(*POINT, *LEVEL, maintain_order=True).agg(
        items=pl.len(),
        correct=pl.col("correct").sum(),
        chance=pl.col("chance").mean(),
        **{cost: pl.col(cost).mean() for cost in COSTS},
    )
    return in_order(_with_shares(table))


def points(cells: pl.DataFrame) -> pl.DataFrame:
    """Pool cells over the held-out levels that every run and budget of the task answered.

    Costs are means over the pooled items; a cost that was measured at some of the levels only is
    null, because its mean would belong to other questions. `levels` lists what was pooled.
    """
    pooled = (
        common_levels(cells)
        .group_by(POINT, maintain_order=True)
        .agg(
            levels=pl.col("level").unique().sort(),
            correct=pl.col("correct").sum(),
            chance=_item_mean("chance"),
            **{cost: _item_mean(cost) for cost in COSTS},
            items=pl.col("items").sum(),
        )
    )
    return in_order(_with_shares(pooled))


def common_levels(cells: pl.DataFrame) -> pl.DataFrame:
    """Keep the cells of held-out levels that all runs and budgets of the task have in common."""
    held_out = cells.filter(~pl.col("beyond"), ~pl.col("train_only"))
    answered = pl.struct(POINT).n_unique()
    return held_out.filter(answered.over("task", "level") == answered.over("task"))


def pooled(points: pl.DataFrame) -> str:
    """Say what the points of one task pool: how many questions, of which levels."""
    levels = list(points["levels"][0])
    fewest, most = points["items"].min(), points["items"].max()
    items = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    said = f"level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"
    return f"{points['task'][0]}: {items} held-out questions a point, of {said}."


def _item_mean(column: str) -> pl.Expr:
    weighted = (pl.col(column) * pl.col("items")).sum() / pl.col("items").sum()
    return pl.when(pl.col(column).null_count() == 0).then(weighted).otherwise(None)


def _with_shares(table: pl.DataFrame) -> pl.DataFrame:
    low, high = wilson(table["correct"].to_numpy(), table["items"].to_numpy())
    table = table.with_columns(
        accuracy=pl.col("correct") / pl.col("items"), low=pl.Series(low), high=pl.Series(high)
    )
    return table.with_columns(
        quality=_quality("accuracy"), quality_low=_quality("low"), quality_high=_quality("high")
    )


def _quality(accuracy: str) -> pl.Expr:
    """Return Q' = max(0, (Q - q0) / (1 - q0)): 0 for a guesser, 1 for a perfect answerer."""
    corrected = (pl.col(accuracy) - pl.col("chance")) / (1 - pl.col("chance"))
    return pl.max_horizontal(pl.lit(0.0), corrected)


def eta(points: pl.DataFrame, currency: Currency) -> pl.DataFrame:
    """Efficiency at each budget: mean over tasks of dataset-level Q'/C (arXiv 2503.21614, eq. 1).

    The ratio is formed per task and then averaged, never as a ratio of averages. C is the mean
    cost of an answer in units of `currency.scale`. Where C = 0 nothing of the currency was spent,
    the ratio has no value, and neither has the mean: it is null, not infinite. It is null, too,
    where C was not measured.

    Returns:
        One row per (run, budget): `eta`; `low` and `high`, the means of the ratios at the Wilson
        bounds of each task's accuracy (C taken as known); `tasks`, how many tasks were averaged;
        `complete`, whether these are all the tasks of the report.
    """
    cost = pl.col(currency.column) / currency.scale
    ratios = {
        name: pl.when(cost > 0).then(pl.col(quality) / cost)
        for name, quality in (("eta", "quality"), ("low", "quality_low"), ("high", "quality_high"))
    }
    by_task = points.select(*POINT, "budget", **ratios)
    defined = pl.col("eta").null_count() == 0
    return by_task.group_by(*WHO, *BUDGET_COLUMNS, "budget", maintain_order=True).agg(
        *(pl.when(defined).then(pl.col(name).mean()).alias(name) for name in ratios),
        tasks=pl.len(),
        complete=pl.len() == points["task"].n_unique(),
    )


def best_eta(points: pl.DataFrame) -> pl.DataFrame:
    """Return each run's best budget in each currency: the rows of `eta` with a column `currency`.

    Only budgets at which every task of the report was answered compete; equal efficiencies leave
    the shorter thought in front.
    """
    best = [
        eta(points, currency)
        .filter("complete", pl.col("eta").is_not_null())
        .sort("eta", descending=True, maintain_order=True)
        .group_by("run", maintain_order=True)
        .first()
        .with_columns(currency=pl.lit(currency.column))
        for currency in ETA_CURRENCIES
    ]
    return pl.concat(best)


def cost_per_correct(points: pl.DataFrame, currency: Currency) -> pl.DataFrame:
    """Total cost divided by the number of correct answers, in the currency's own unit.

    Returns:
        The points with `per_correct`, and `per_low`, `per_high` at the Wilson bounds of the
        accuracy (cost taken as known). Null where nothing was answered correctly: no amount buys
        an answer there.
    """
    cost = pl.col(currency.column)
    return points.with_columns(
        per_correct=pl.when(pl.col("correct") > 0).then(cost / pl.col("accuracy")),
        per_low=pl.when(pl.col("high") > 0).then(cost / pl.col("high")),
        per_high=pl.when(pl.col("low") > 0).then(cost / pl.col("low")),
    )


def spent_currencies(points: pl.DataFrame) -> list[Currency]:
    """Return the currencies that at least one point spends; the others have no axis to draw.

    Where nobody takes latent steps, all steps are visible ones, and aren't shown twice.
    """
    found = [c for c in CURRENCIES if (points[c.column].fill_null(0) > 0).any()]
    thinks = (points["latent_steps"].fill_null(0) > 0).any()
    return [c for c in found if thinks or c.column != "total_steps"]


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Sort budgets from direct answers to the longest thought and name them.

    Runs keep the order in which they come. `budget` is the whole name; `family` leaves the loop
    count out, so that panels can hold a family and lines its loop counts.
    """
    runs = {run: place for place, run in enumerate(table["run"].unique(maintain_order=True))}
    traces = {trace: place for place, trace in enumerate(TRACES)}
    order = [
        pl.col("run").replace_strict(runs, return_dtype=pl.Int64),
        pl.col("task"),
        pl.col("budget_trace").replace_strict(traces, default=9, return_dtype=pl.Int64),
        pl.col("budget_forced_end").fill_null(2**62),
        *(pl.col(name).fill_null(0) for name in BUDGET_COLUMNS[2:] if name != "budget_stop"),
        pl.col("budget_stop").fill_null(""),
        *(pl.col(name) for name in ("level",) if name in table.columns),
    ]
    table = table.sort(order, maintain_order=True)
    several = table["run"].is_in(_runs_with_several_loops(table))
    rows = list(zip(table.select(BUDGET_COLUMNS).iter_rows(named=True), several, strict=True))
    return table.with_columns(
        budget=pl.Series([budget_name(row, many) for row, many in rows], dtype=pl.String),
        family=pl.Series([budget_name(row, None) for row, _ in rows], dtype=pl.String),
    )


def _runs_with_several_loops(table: pl.DataFrame) -> list[str]:
    counts = table.group_by("run").agg(pl.col("budget_loops").n_unique())
    return counts.filter(pl.col("budget_loops") > 1)["run"].to_list()


def budget_name(budget: Mapping[str, Any], several_loops: bool | None) -> str:
    """Name a budget as people say it: "direct", "full trace, cut at 8", "direct, 2 loops".

    Args:
        budget: the ledger's budget columns.
        several_loops: whether the run was asked for several loop counts, so that one loop is
            worth naming too; None leaves loops out.
    """
    trace, loops = budget["budget_trace"], budget["budget_loops"]
    parts = ["direct" if trace == "none" else f"{trace} trace"]
    if budget["budget_forced_end"] is not None:
        parts.append(f"cut at {budget['budget_forced_end']}")
    if several_loops is not None and loops is not None and (several_loops or loops > 1):
        parts.append(f"{loops} loop{'s' if loops != 1 else ''}")
    if budget["budget_latent_steps_allowed"]:
        parts.append(f"{budget['budget_latent_steps_allowed']} latent steps")
    if budget["budget_stop"] is not None:
        parts.append("all loops" if budget["budget_stop"] == "none" else budget["budget_stop"])
    if budget["budget_samples"] > 1:
        parts.append(f"vote of {budget['budget_samples']}")
    return ", ".join(parts)
