"""One colour and one marker per backbone, the same in every figure of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

INK = "#1b1f24"
MUTED = "#6a737d"
GRID = "#e6e8eb"
SHADE = "#f3f1ec"

# Okabe and Ito (2008), without the yellow, which vanishes on white: told apart under every common
# kind of colour blindness. Markers repeat the distinction for black-and-white print. The two
# lengths have no common divisor, so the first 56 backbones have 56 looks.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_MARKERS = (
    ("o", "circle", "M8 2a6 6 0 1 0 .01 0z"),
    ("s", "square", "M3 3h10v10H3z"),
    ("D", "diamond", "M8 1l7 7-7 7-7-7z"),
    ("^", "triangle-up", "M8 2l6.5 11h-13z"),
    ("v", "triangle-down", "M8 14L1.5 3h13z"),
    ("P", "cross", "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z"),
    ("X", "x", "M4 1l4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4-4-4z"),
    ("h", "hexagon", "M8 1l6 3.5v7L8 15l-6-3.5v-7z"),
)


@dataclass(frozen=True)
class Style:
    """How a backbone looks.

    Attributes:
        colour: hexadecimal.
        marker: matplotlib's name of the marker.
        symbol: plotly's name of the same marker.
        path: the same marker as an SVG path in a box of 16 by 16.
    """

    colour: str
    marker: str
    symbol: str
    path: str


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Give each label its look, by its place in the sequence."""
    return {
        label: Style(_COLOURS[place % len(_COLOURS)], *_MARKERS[place % len(_MARKERS)])
        for place, label in enumerate(labels)
    }
