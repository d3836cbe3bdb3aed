"""Looped backbones beside their twins, as a PNG: ratios of FLOP/s, and graphs against loops."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.atomic import write_atomically
from eval.palette import GRID, INK, MUTED, Style, styles
from eval.panels import DASHES, png
from eval.speed_depth_rows import LEAST_RATIO, MODES, DepthRow, Pair, pairs_of
from eval.speed_graphs import GraphCount


def save_depth_figure(
    rows: Sequence[DepthRow], graphs: Mapping[str, GraphCount], caption: str, path: Path
) -> None:
    """Draw both panels and write them, complete or not at all."""
    write_atomically(path, png(draw_depth, rows, graphs, caption))


def draw_depth(rows: Sequence[DepthRow], graphs: Mapping[str, GraphCount], caption: str) -> Figure:
    """Draw the ratios of every case and, where blocks were compiled, their graphs."""
    cases = list(dict.fromkeys(row.case for row in rows))
    figure = Figure(figsize=(8.6, 1.6 + 0.45 * max(len(cases), 3)), layout="constrained")
    panels = figure.subplots(1, 2 if graphs else 1, squeeze=False).ravel().tolist()
    _draw_ratios(panels[0], cases, pairs_of(rows))
    if graphs:
        _draw_graphs(panels[1], graphs, styles(cases))
    said = "Small marks are single rounds, large ones are of medians. "
    said += "FLOPs are the model's, executed: loops without gradients count one pass, others three."
    said += " Lines of graphs that coincide are drawn a little apart." if graphs else ""
    text = textwrap.fill(f"{caption}. {said}", 170)
    figure.supxlabel(text, fontsize=6.5, color=MUTED, x=0.01, ha="left")
    return figure


def _draw_ratios(panel: Axes, cases: Sequence[str], pairs: Mapping[tuple[str, str], Pair]) -> None:
    modes = [mode for mode in MODES if any(one == mode for _, one in pairs)]
    for style, mode in zip(styles(modes).values(), modes, strict=True):
        shift = 0.16 * (2 * modes.index(mode) - len(modes) + 1)
        for place, case in enumerate(cases):
            if (case, mode) in pairs:
                _draw_pair(panel, pairs[case, mode], place + shift, style)
        panel.plot([], [], style.marker, color=style.colour, label=MODES[mode])
    panel.axvline(1, color=MUTED, linewidth=0.9)
    panel.axvline(LEAST_RATIO, color=MUTED, linewidth=0.9, linestyle=DASHES)
    at = (LEAST_RATIO, 1.0)
    panel.annotate(f"target {LEAST_RATIO:g} ", at, xycoords=("data", "axes fraction"), **_BESIDE)
    panel.set_yticks(range(len(cases)), cases)
    panel.set_ylim(len(cases) - 0.5, -0.75)
    _lay_out(panel, "Speed for each executed FLOP", "Training FLOP/s, looped over its twin")
    panel.legend(fontsize=7, frameon=False, loc="lower right")


_BESIDE: dict[str, Any] = {"fontsize": 6.5, "color": MUTED, "ha": "right", "va": "top"}
_OFFSET: dict[str, Any] = {"textcoords": "offset points"}


def _draw_pair(panel: Axes, pair: Pair, height: float, style: Style) -> None:
    """A line and points over rounds, a mark and a number at the ratio of medians."""
    rounds, colour = pair.rounds, style.colour
    ends = [min(rounds), max(rounds)]
    panel.plot(ends, [height] * 2, color=colour, linewidth=1, alpha=0.5)
    panel.plot(rounds, [height] * len(rounds), ".", color=colour, markersize=3, alpha=0.6, zorder=2)
    panel.plot(
        pair.ratio,
        height,
        style.marker,
        color=colour,
        markersize=6,
        markeredgecolor="white",
        zorder=3,
    )
    at = {"fontsize": 6.5, "va": "center", "color": colour}
    panel.annotate(f"{pair.ratio:.2f}", (ends[1], height), (4, 0), **at, **_OFFSET)


def _draw_graphs(panel: Axes, graphs: Mapping[str, GraphCount], looks: Mapping[str, Style]) -> None:
    """Draw a line a case; those that lie on one another are moved apart by a little."""
    top = max(max(found.graphs) for found in graphs.values()) + 1
    for place, (case, found) in enumerate(graphs.items()):
        apart = 0.012 * top * (place - (len(graphs) - 1) / 2)
        look = looks[case]
        panel.plot(
            found.counts,
            [number + apart for number in found.graphs],
            color=look.colour,
            marker=look.marker,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linewidth=1.1,
            label=case,
        )
    panel.set_ylim(0, top)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("Graphs compiled so far", fontsize=7.5)
    _lay_out(panel, "Compiled blocks, loop count varying", "Loops of the training step, rising")
    panel.legend(fontsize=7, frameon=False, loc="best")


def _lay_out(panel: Axes, title: str, below: str) -> None:
    panel.set_title(title, fontsize=9, loc="left", color=INK)
    panel.set_xlabel(below, fontsize=7.5)
    panel.tick_params(labelsize=7, length=2, color=MUTED, labelcolor=INK)
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(MUTED)
