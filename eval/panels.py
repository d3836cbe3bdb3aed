"""What PNGs share: how they are made; panels, legend, caption and accuracy axis of a report's."""

import io
import math
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.palette import GRID, INK, MUTED, Style

Arguments = ParamSpec("Arguments")

# 7 inches at 200 dots are 1400 pixels: sharp at the width of a README.
DPI = 200
_WIDTH = 7.0
DASHES = (0, (4, 3))
_DASH_STEPS = (2, 3, 5, 7)


def png(
    draw: Callable[Arguments, Figure], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> bytes:
    """Draw a figure and return it as a PNG file's content.

    A name with dollar signs is a name, not a formula, when it is drawn and when it is saved.
    """
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):
        draw(*args, **kwargs).savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def dash_rank(loops: int) -> int:
    """Return which of five line patterns stands for a loop count: 1, 2, 3-4, 5-6, more."""
    return bisect_right(_DASH_STEPS, loops)


def panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` panels in rows of `columns`."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, 2.4 * rows + 0.75), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, grid[:count]


def frame(
    figure: Figure, styles: Mapping[str, Style], keys: Sequence[Artist], caption: str
) -> None:
    """Put the legend above and the caption below: backbones first, then the other `keys`."""
    handles = [_handle(label, style) for label, style in styles.items()]
    columns = max(3, math.ceil((len(handles) + len(keys)) / 2))
    longest = max(len(str(handle.get_label())) for handle in [*handles, *keys])
    figure.legend(
        handles=[*handles, *keys],
        loc="outside upper left",
        ncols=min(columns, max(1, 110 // (longest + 5))),
        fontsize=7,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.4,
    )
    text = textwrap.fill(caption, 150)
    figure.supxlabel(text, fontsize=6, color=MUTED, x=0.01, ha="left", linespacing=1.4)


def chance_key() -> Line2D:
    """Return the legend's entry for the accuracy of guessing."""
    return Line2D([], [], color=MUTED, linewidth=0.9, linestyle=DASHES, label="chance")


def _handle(label: str, style: Style) -> Line2D:
    return Line2D(
        [],
        [],
        color=style.colour,
        marker=style.marker,
        linestyle="",
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=label,
    )


def lay_out_accuracy(panel: Axes) -> None:
    """Give a panel its vertical axis, always from 0 to 100%, and the common look."""
    panel.set_ylim(0, 104)
    panel.set_yticks(range(0, 101, 20))
    panel.tick_params(labelsize=6.5, length=2, color=MUTED, labelcolor=INK)
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(MUTED)
    place = panel.get_subplotspec()
    if place is None or place.is_first_col():
        panel.set_ylabel("Accuracy (%)", fontsize=7)
