"""What the answers of grouped runs cost: accuracy over seeds against steps and FLOPs."""

from collections.abc import Mapping, Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.axis import cost_axis
from eval.currencies import CURRENCIES, Currency, amount
from eval.mechanism_tables import over_seeds
from eval.mechanisms import Mechanisms, group_labels
from eval.metrics import COSTS, spent_currencies
from eval.palette import INK, MUTED, Style, styles
from eval.panels import DASHES, chance_key, frame, lay_out_accuracy, panels
from eval.runs import Run
from eval.table import Entry, Table

_DRAWN = ("total_steps", "visible_tokens", "model_flops")
_LISTED = ("visible_tokens", "latent_steps", "model_flops", "serial_steps", "state_bytes")


def group_points(found: Mechanisms, runs: Sequence[Run], points: pl.DataFrame) -> pl.DataFrame:
    """Pool the seeds of each group, at the learning rate that was chosen for it.

    Returns:
        One row per group (`label`), task and budget: `accuracies`, those of its seeds; `chance`
        and the costs, means over seeds.
    """
    labels = group_labels(runs)
    rates = {run.name: float(run.cost.get("peak_learning_rate") or 0) for run in runs}
    chosen = [
        found.outcomes[labels[run], task].rate == rates[run]
        for run, task in points.select("run", "task").iter_rows()
    ]
    own = points.with_columns(label=pl.col("run").replace_strict(labels, return_dtype=pl.String))
    return (
        own.filter(pl.Series(chosen, dtype=pl.Boolean))
        .group_by("task", "label", "budget", maintain_order=True)
        .agg(
            pl.col("chance").mean(),
            *(pl.col(cost).mean() for cost in COSTS),
            accuracies=pl.col("accuracy"),
        )
    )


def cost_of_groups(pooled: pl.DataFrame) -> list[Table]:
    """List accuracy over seeds beside what an answer costs, a table per task."""
    spent = spent_currencies(pooled)
    listed = [c for c in CURRENCIES if c in spent and c.column in _LISTED]
    return [
        Table(
            title=f"{task}: what an answer costs",
            columns=["Backbone", "Budget", "Accuracy (%)", *(c.title for c in listed)],
            rows=[_row(row, listed) for row in own.iter_rows(named=True)],
            note="Accuracy: mean and range over seeds, held-out levels. Costs: means an answer.",
        )
        for (task,), own in pooled.group_by("task", maintain_order=True)
    ]


def _row(row: Mapping[str, object], listed: Sequence[Currency]) -> list[Entry]:
    accuracies = row["accuracies"]
    assert isinstance(accuracies, list)
    costs = [row[currency.column] for currency in listed]
    amounts = [
        Entry(amount(cost if isinstance(cost, float) else None, currency))
        for cost, currency in zip(costs, listed, strict=True)
    ]
    named = [Entry(str(row["label"])), Entry(str(row["budget"])), Entry(over_seeds(accuracies))]
    return [*named, *amounts]


def draw_costs(pooled: pl.DataFrame) -> Figure:
    """Draw accuracy against cost: a row of panels per task, a column per currency."""
    spent = {currency.column: currency for currency in spent_currencies(pooled)}
    shown = [spent[name] for name in _DRAWN if name in spent]
    # All steps and visible tokens are the same where nobody takes latent ones.
    shown = [c for c in shown if c.column != "visible_tokens" or "total_steps" not in spent]
    tasks = pooled["task"].unique(maintain_order=True).to_list()
    looks = styles(pooled["label"].unique(maintain_order=True).to_list())
    grid = [(task, currency) for task in tasks for currency in shown]
    figure, axes = panels(len(grid), len(shown))
    for panel, (task, currency) in zip(axes, grid, strict=True):
        _draw_panel(panel, pooled.filter(pl.col("task") == task), currency, looks)
        panel.set_title(task, fontsize=8, loc="left", color=INK)
    caption = (
        "A marker is the mean over seeds of one backbone at one budget, on the held-out levels; a "
        "small dot is one seed, a line their range. Markers whose costs are "
        "nearly equal are drawn side by side."
    )
    frame(figure, looks, [chance_key()], caption)
    return figure


def _draw_panel(
    panel: Axes, own: pl.DataFrame, currency: Currency, looks: Mapping[str, Style]
) -> None:
    own = own.filter(pl.col(currency.column).is_not_null())
    axis = cost_axis(own[currency.column], currency, most_ticks=6)
    if axis is None:
        panel.text(0.5, 0.5, "nothing spent", transform=panel.transAxes, ha="center", color=MUTED)
        return
    panel.set_xscale("log", base=2)
    panel.axhline(100 * own["chance"].to_numpy().mean(), color=MUTED, lw=0.9, ls=DASHES, zorder=1)
    apart, last = (axis.high / axis.low) ** 0.018, 0.0
    for row in own.sort(currency.column).iter_rows(named=True):
        last = max(axis.place(row[currency.column]), last * apart)
        _draw_group(panel, last, row, looks[row["label"]])
    panel.set_xlim(axis.low, axis.high)
    panel.set_xticks(axis.ticks, axis.labels)
    panel.minorticks_off()
    panel.set_xlabel(f"{currency.title} per answer (log scale)", fontsize=7)
    lay_out_accuracy(panel)


def _draw_group(panel: Axes, x: float, row: Mapping[str, list[float]], look: Style) -> None:
    shares = [100 * share for share in row["accuracies"]]
    panel.plot([x, x], [min(shares), max(shares)], color=look.colour, lw=0.8, zorder=2)
    panel.plot([x] * len(shares), shares, ".", color=look.colour, markersize=3, zorder=3)
    panel.plot(
        x,
        sum(shares) / len(shares),
        look.marker,
        color=look.colour,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4,
    )
