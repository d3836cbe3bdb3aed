"""Time for a token and peak memory against length, as a PNG: a line a mixer, its peer dashed."""

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data.atomic import write_atomically
from eval.palette import GRID, INK, MUTED, styles
from eval.panels import DASHES, png
from eval.speed_rows import Row, Rows

Figures = Callable[[Row], float | None]
Look = tuple[str, str]
"""Colour and marker."""

# Mixers of one colour differ by markers that are told apart at a glance.
_MARKERS = ("o", "s", "^", "D", "X", "v")
_COLOURS = 7


def looks_of(mixers: list[str]) -> dict[str, Look]:
    """Give each mixer the report's colours in turn, and a new marker with each round of them."""
    palette = [look.colour for look in styles([str(place) for place in range(_COLOURS)]).values()]
    return {
        mixer: (palette[place % _COLOURS], _MARKERS[place // _COLOURS % len(_MARKERS)])
        for place, mixer in enumerate(mixers)
    }


def _time(row: Row) -> float | None:
    return row.microseconds


def _memory(row: Row) -> float | None:
    return None if row.peak_bytes is None else row.peak_bytes / 1e6


PANELS: tuple[tuple[str, str, str, Figures], ...] = (
    ("Forward", "forward", "Time for a token (µs)", _time),
    ("Forward + backward", "training", "Time for a token (µs)", _time),
    ("Decoding after so many tokens", "decoding", "Time for a token (µs)", _time),
    ("Peak memory of forward + backward", "training", "Over weights and inputs (MB)", _memory),
)


def save_speed_figure(rows: Rows, caption: str, path: Path) -> None:
    """Draw all panels and write them, complete or not at all."""
    write_atomically(path, png(draw_speed, rows, caption))


def draw_speed(rows: Rows, caption: str) -> Figure:
    """Draw four panels with the same mixers in the same look."""
    looks = looks_of(list(dict.fromkeys(row.mixer for row in rows.rows)))
    figure = Figure(figsize=(8.6, 7.6), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False).ravel().tolist()
    for panel, (title, kind, label, figures) in zip(axes, PANELS, strict=True):
        _draw_panel(panel, rows, kind, figures, looks)
        panel.set_title(title, fontsize=9, loc="left", color=INK)
        panel.set_ylabel(label, fontsize=7.5)
    _legend(figure, rows, looks)
    said = (
        "Medians, logarithmic axes. A line ends where the next call was predicted to take too much."
    )
    figure.supxlabel(f"{caption}. {said}", fontsize=6.5, color=MUTED, x=0.01, ha="left")
    return figure


def _draw_panel(
    panel: Axes, rows: Rows, kind: str, figures: Figures, looks: dict[str, Look]
) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for mixer, who, _ in rows.lines():
        found = [rows.get(mixer, who, kind, length) for length in rows.lengths]
        measured = [(row.length, figures(row)) for row in found if row is not None]
        points = [(x, y) for x, y in measured if y]
        if not points:
            continue
        look, ours = looks[mixer], who == "ours"
        panel.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=look[0],
            marker=look[1],
            markersize=4 if ours else 3.2,
            markerfacecolor=look[0] if ours else "white",
            markeredgecolor="white" if ours else look[0],
            markeredgewidth=0.5 if ours else 0.8,
            linewidth=1.2 if ours else 0.9,
            linestyle="-" if ours else DASHES,
            zorder=3 if ours else 2,
        )
        name = mixer if ours else f"{mixer}, transformers"
        if points[-1][0] == rows.lengths[-1]:
            ends.append((*points[-1], name, look[0]))
        else:
            panel.annotate(
                name, points[-1], (5, 2), textcoords="offset points", fontsize=5.5, color=look[0]
            )
    _lay_out(panel, rows.lengths)
    _name_lines(panel, ends, rows.lengths[-1] * 2 ** (0.045 * len(rows.lengths)))


def _name_lines(panel: Axes, ends: list[tuple[float, float, str, str]], right: float) -> None:
    """Write each line's name right of the panel, moved apart where lines end together."""
    if not ends:
        return
    low, high = (math.log(bound) for bound in panel.get_ylim())
    ends = sorted(ends, key=lambda end: end[1])
    apart = max((high - low) * 0.024, 0.0)
    places = [math.log(y) for _, y, _, _ in ends]
    for place in range(1, len(places)):
        places[place] = max(places[place], places[place - 1] + apart)
    over = max(0.0, places[-1] - high)
    places = [place - over * (place - low) / (places[-1] - low) for place in places]
    for (x, y, name, colour), place in zip(ends, places, strict=True):
        panel.annotate(
            name,
            (x, y),
            xytext=(right, math.exp(place)),
            textcoords="data",
            fontsize=5.5,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.5},
        )


def _lay_out(panel: Axes, lengths: list[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [f"{n:,}" for n in lengths])
    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.minorticks_off()
    panel.tick_params(labelsize=7, length=2, color=MUTED, labelcolor=INK)
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(MUTED)
    panel.set_xlabel("Sequence length (tokens)", fontsize=7.5)


def _legend(figure: Figure, rows: Rows, looks: dict[str, Look]) -> None:
    handles = [_handle(mixer, look, ours=True) for mixer, look in looks.items()]
    peers = [(mixer, layer) for mixer, who, layer in rows.lines() if who == "peer"]
    handles += [_handle(layer, looks[mixer], ours=False) for mixer, layer in peers]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=6 if len(handles) > 8 else 4,
        fontsize=7,
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _handle(label: str, look: Look, ours: bool) -> Line2D:
    return Line2D(
        [],
        [],
        color=look[0],
        marker=look[1],
        markersize=4.5 if ours else 3.5,
        markerfacecolor=look[0] if ours else "white",
        markeredgecolor="white" if ours else look[0],
        linewidth=1.2 if ours else 0.9,
        linestyle="-" if ours else DASHES,
        label=label,
    )
