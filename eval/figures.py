"""The report's pictures as PNG files, for READMEs and papers.

They are drawn from the same tables as the interactive ones.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from data.atomic import write_atomically
from eval.axis import Axis, cost_axis
from eval.currencies import Currency
from eval.frontier import frontier, steps
from eval.level_figure import draw_levels
from eval.metrics import pooled, spent_currencies
from eval.palette import GRID, INK, MUTED, Style
from eval.panels import DASHES, chance_key, frame, lay_out_accuracy, panels, png

_HEADLINE = ("visible_tokens", "model_flops", "state_bytes", "serial_steps", "latency_b1_s")


def headline_currencies(points: pl.DataFrame) -> list[Currency]:
    """Return the three currencies of the combined picture (fewer, if fewer are spent)."""
    spent = {c.column: c for c in spent_currencies(points)}
    return [spent[name] for name in _HEADLINE if name in spent][:3]


def write_figures(
    points: pl.DataFrame,
    cells: pl.DataFrame,
    styles: Mapping[str, Style],
    sizes: str,
    folder: Path,
) -> list[Path]:
    """Write every PNG of the report into `folder`, each one complete or not at all.

    `frontier.png` holds the three headline currencies, `frontier_<column>.png` one currency each,
    `levels_<task>.png` accuracy against level. `sizes` is said below the frontiers.
    """
    drawn = _draw_all(points, cells, styles, sizes)
    for name, content in drawn.items():
        write_atomically(folder / name, content)
    return [folder / name for name in drawn]


def _draw_all(
    points: pl.DataFrame, cells: pl.DataFrame, styles: Mapping[str, Style], sizes: str
) -> dict[str, bytes]:
    drawn: dict[str, bytes] = {}
    if headline := headline_currencies(points):
        drawn["frontier.png"] = png(draw_frontiers, points, headline, styles, sizes)
    for currency in spent_currencies(points):
        drawn[frontier_file(currency)] = png(draw_frontiers, points, [currency], styles, sizes)
    for (task,), of_task in cells.group_by("task", maintain_order=True):
        drawn[level_file(str(task))] = png(draw_levels, of_task, styles)
    return drawn


def frontier_file(currency: Currency) -> str:
    """Name the PNG of one currency's frontier."""
    return f"frontier_{currency.column}.png"


def level_file(task: str) -> str:
    """Name the PNG of one task's levels; whatever is odd in the task's name becomes "_"."""
    return f"levels_{re.sub(r'[^A-Za-z0-9_-]', '_', task)}.png"


def draw_frontiers(
    points: pl.DataFrame, currencies: Sequence[Currency], styles: Mapping[str, Style], sizes: str
) -> Figure:
    """Draw accuracy against cost: a row of panels per task and a column per currency.

    With one currency the tasks stand side by side.
    """
    tasks = points["task"].unique(maintain_order=True).to_list()
    grid = [(task, currency) for task in tasks for currency in currencies]
    columns = len(currencies) if len(currencies) > 1 else min(3, len(tasks))
    figure, axes = panels(len(grid), columns)
    for panel, (task, currency) in zip(axes, grid, strict=True):
        _draw_frontier(panel, points.filter(pl.col("task") == task), currency, styles, columns > 1)
        if len(tasks) > 1:
            panel.set_title(task, fontsize=8, loc="left", color=INK)
    keys = [Line2D([], [], color=INK, linewidth=1.1, label="frontier"), chance_key()]
    said = " ".join(pooled(task) for task in points.partition_by("task", maintain_order=True))
    caption = f"{said} Whiskers: 95% Wilson intervals. Faded: dominated. {sizes}"
    frame(figure, styles, keys, caption)
    return figure


def _draw_frontier(
    panel: Axes,
    points: pl.DataFrame,
    currency: Currency,
    styles: Mapping[str, Style],
    narrow: bool,
) -> None:
    placed = frontier(points, currency.column)
    axis = cost_axis(placed["cost"], currency, most_ticks=5 if narrow else 8)
    if axis is None:
        panel.text(0.5, 0.5, "nothing spent", transform=panel.transAxes, ha="center", color=MUTED)
        return
    _draw_steps(panel, placed, axis, INK, 1.1)
    for (label,), own in placed.group_by("label", maintain_order=True):
        _draw_steps(panel, own, axis, styles[str(label)].colour, 0.5)
    chance = points.select(pl.col("chance").mean()).item()
    panel.axhline(100 * chance, color=MUTED, linewidth=0.9, linestyle=DASHES, zorder=1)
    for row in placed.iter_rows(named=True):
        _draw_point(panel, axis.place(row["cost"]), row, styles[row["label"]])
    _name_corners(panel, placed.filter(~pl.col("dominated")), axis)
    _lay_out_cost(panel, axis, currency)


def _draw_steps(panel: Axes, placed: pl.DataFrame, axis: Axis, colour: str, width: float) -> None:
    costs, heights = steps(placed["cost"], placed["accuracy"])
    where = [axis.place(cost) for cost in costs]
    panel.step(
        [*where, axis.high],
        [*(100 * heights), 100 * heights[-1]],
        where="post",
        color=colour,
        linewidth=width,
        alpha=1.0 if colour == INK else 0.6,
        zorder=2,
    )


def _draw_point(panel: Axes, x: float, row: Mapping[str, Any], style: Style) -> None:
    y, low, high = 100 * row["accuracy"], 100 * row["low"], 100 * row["high"]
    faded = row["dominated"]
    panel.errorbar(
        x,
        y,
        # Rounding can push a bound past the share that it surrounds.
        yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
        fmt=style.marker,
        color=style.colour,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        elinewidth=0.8,
        alpha=0.35 if faded else 1.0,
        zorder=3 if faded else 4,
    )


def _name_corners(panel: Axes, corners: pl.DataFrame, axis: Axis) -> None:
    """Write the budgets of the frontier's corners; one name for corners that lie together."""
    last: tuple[str, float, float] | None = None
    for row in corners.sort("cost", "accuracy", descending=[True, True]).iter_rows(named=True):
        x, y, name = axis.place(row["cost"]), 100 * row["accuracy"], row["budget"]
        if last and last[0] == name and last[1] / x < 1.25 and last[2] - y < 8:
            continue
        last = (name, x, y)
        below, right = y > 60, axis.share(x) > 0.7
        panel.annotate(
            name,
            (x, y),
            xytext=(-4 if right else 4, -5 if below else 5),
            textcoords="offset points",
            va="top" if below else "bottom",
            ha="right" if right else "left",
            fontsize=5.5,
            color=INK,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            zorder=5,
        )


def _lay_out_cost(panel: Axes, axis: Axis, currency: Currency) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xlim(axis.low, axis.high)
    panel.set_xticks(axis.ticks, axis.labels)
    panel.minorticks_off()
    if axis.zero is not None:
        panel.axvline(axis.zero * 2**0.5, color=GRID, linewidth=0.8, linestyle=":")
    panel.set_xlabel(f"{currency.title} per answer (log scale)", fontsize=7)
    lay_out_accuracy(panel)
