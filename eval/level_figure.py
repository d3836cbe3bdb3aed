"""Accuracy against level as a PNG: what was learned by heart, what generalises, what breaks."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from eval.palette import INK, MUTED, SHADE, Style
from eval.panels import DASHES, chance_key, dash_rank, frame, lay_out_accuracy, panels

LOOP_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


def draw_levels(cells: pl.DataFrame, styles: Mapping[str, Style]) -> Figure:
    """Draw one task: a panel per budget, a line per backbone and loop count.

    Levels are spaced evenly. Those beyond training are shaded; those too small to be split, where
    a right answer may have been learned by heart, have hollow markers.
    """
    families = cells["family"].unique(maintain_order=True).to_list()
    figure, axes = panels(len(families), min(3, len(families)))
    levels = level_slots(cells)
    for panel, family in zip(axes, families, strict=True):
        _draw_family(panel, cells.filter(pl.col("family") == family), levels, styles)
        panel.set_title(f"{cells['task'][0]}: {family}", fontsize=8, loc="left", color=INK)
    frame(figure, styles, [*_keys(cells), chance_key()], "Whiskers: 95% Wilson intervals.")
    return figure


def level_slots(cells: pl.DataFrame) -> pl.DataFrame:
    """Return one task's levels in order, evenly spaced in `slot`, with status and chance."""
    slots = cells.group_by("level").agg(
        pl.col("beyond").any(), pl.col("train_only").any(), pl.col("chance").mean()
    )
    return slots.sort("level").with_row_index("slot")


def _draw_family(
    panel: Axes, cells: pl.DataFrame, levels: pl.DataFrame, styles: Mapping[str, Style]
) -> None:
    for slot in levels.filter("beyond")["slot"]:
        panel.axvspan(slot - 0.5, slot + 0.5, color=SHADE, linewidth=0, zorder=0)
    panel.plot(levels["slot"], 100 * levels["chance"], color=MUTED, lw=0.9, ls=DASHES, zorder=1)
    lines = cells.partition_by("label", "budget", maintain_order=True)
    for place, line in enumerate(lines):
        # A nudge apart, so that equal accuracies do not hide each other.
        nudge = min(0.06, 0.3 / len(lines)) * (place - (len(lines) - 1) / 2)
        line = line.join(levels.select("level", "slot"), on="level").sort("slot")
        _draw_line(panel, line, nudge, styles[line["label"][0]])
    panel.set_xlim(-0.5, len(levels) - 0.5)
    panel.set_xticks(levels["slot"].to_list(), [str(level) for level in levels["level"]])
    panel.set_xlabel("Level (evenly spaced)", fontsize=7)
    lay_out_accuracy(panel)


def _draw_line(panel: Axes, line: pl.DataFrame, nudge: float, style: Style) -> None:
    x, y = line["slot"].to_numpy() + nudge, 100 * line["accuracy"].to_numpy()
    low, high = 100 * line["low"].to_numpy(), 100 * line["high"].to_numpy()
    panel.plot(x, y, color=style.colour, alpha=0.7, lw=1.1, ls=_dash(line), zorder=2)
    panel.vlines(x, np.minimum(low, y), np.maximum(high, y), color=style.colour, lw=0.8, zorder=2)
    for train_only in (False, True):
        shown = line["train_only"].to_numpy() == train_only
        panel.plot(
            x[shown],
            y[shown],
            style.marker,
            color=style.colour,
            markersize=4,
            markerfacecolor="white" if train_only else style.colour,
            markeredgecolor=style.colour if train_only else "white",
            markeredgewidth=0.9 if train_only else 0.4,
            zorder=3,
        )


def _dash(line: pl.DataFrame) -> str | tuple[int, tuple[int, ...]]:
    return LOOP_DASHES[dash_rank(line["budget_loops"][0] or 1)]


def _keys(cells: pl.DataFrame) -> list[Line2D | Patch]:
    keys: list[Line2D | Patch] = []
    for loops in sorted(set(cells["budget_loops"].drop_nulls()) - {0, 1})[:4]:
        dash = LOOP_DASHES[dash_rank(loops)]
        keys.append(Line2D([], [], color=INK, lw=1.1, ls=dash, label=f"{loops} loops"))
    if cells["train_only"].any():
        look = {"color": MUTED, "marker": "o", "markerfacecolor": "white", "markersize": 4.5}
        keys.append(Line2D([], [], linestyle="", label="train-only level", **look))
    if cells["beyond"].any():
        keys.append(Patch(color=SHADE, label="harder than trained"))
    return keys
