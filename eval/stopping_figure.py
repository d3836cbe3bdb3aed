"""When to stop, as a PNG: accuracy against FLOPs, the depth sweep, and loops against the level."""

from collections.abc import Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.palette import INK, MUTED, Style, styles
from eval.panels import DASHES, frame, lay_out_accuracy, panels
from eval.stopping import FIXED, ORACLE, Way, in_order


def draw_stopping(ways: Sequence[Way], trained_mean: float | None) -> Figure:
    """Draw the ways of one backbone on one task.

    Args:
        ways: all of them.
        trained_mean: mean number of loops in training; twice of it is marked.
    """
    ways = in_order(ways)
    rules = [
        kind for kind in dict.fromkeys(way.kind for way in ways) if kind not in (FIXED, ORACLE)
    ]
    looks = styles(rules)
    figure, (cost, sweep, spent) = panels(3, 3)
    _draw_cost(cost, ways, looks)
    _draw_sweep(sweep, [way for way in ways if way.kind == FIXED], trained_mean)
    _draw_spent(spent, ways, looks)
    keys = [
        Line2D([], [], color=INK, marker=".", lw=1, label="a fixed number of loops"),
        Line2D([], [], color=INK, marker="*", ls="", ms=9, label="oracle: the fewest needed"),
    ]
    caption = (
        "Means over seeds; bars are the range. Left: each rule at several of its numbers. Middle: "
        "the same number of loops everywhere. Right: loops run where the answer is read out, for "
        "each rule at the number whose accuracy comes within one point of its best at least cost."
    )
    frame(figure, looks, keys, caption)
    return figure


def _draw_cost(panel: Axes, ways: Sequence[Way], looks: dict[str, Style]) -> None:
    for kind in (FIXED, *looks):
        own = [way for way in ways if way.kind == kind]
        colour = INK if kind == FIXED else looks[kind].colour
        marker = "." if kind == FIXED else looks[kind].marker
        x = [mean(way.flops) / 1e6 for way in own]
        y = [100 * mean(way.accuracy) for way in own]
        panel.plot(x, y, marker, ls="-", color=colour, ms=4, lw=0.9, zorder=3)
    for way in ways:
        if way.kind == ORACLE:
            x, y = mean(way.flops) / 1e6, 100 * mean(way.accuracy)
            panel.plot(x, y, "*", color=INK, ms=10, zorder=4)
    panel.set_xscale("log")
    ticks = _ticks([mean(way.flops) / 1e6 for way in ways])
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("Model MFLOPs a question (log)", fontsize=7)
    lay_out_accuracy(panel)


def _ticks(values: Sequence[float]) -> list[float]:
    steps = [base * 10**power for power in range(-3, 7) for base in (1, 2, 5)]
    return [step for step in steps if min(values) <= step <= max(values)]


def _draw_sweep(panel: Axes, fixed: Sequence[Way], trained_mean: float | None) -> None:
    loops = [way.number for way in fixed]
    low, high = ([100 * end(way.accuracy) for way in fixed] for end in (min, max))
    panel.plot(loops, [100 * mean(way.accuracy) for way in fixed], ".-", color=INK, ms=4, lw=0.9)
    panel.vlines(loops, low, high, color=INK, lw=0.8)
    if trained_mean is not None:
        for times, said in ((1, "trained mean"), (2, "twice")):
            panel.axvline(times * trained_mean, color=MUTED, lw=0.9, ls=DASHES, zorder=1)
            panel.text(times * trained_mean + 0.1, 4, said, fontsize=6, color=MUTED, rotation=90)
    panel.set_xlabel("Loops, the same everywhere", fontsize=7)
    lay_out_accuracy(panel)


def _draw_spent(panel: Axes, ways: Sequence[Way], looks: dict[str, Style]) -> None:
    levels = sorted(ways[0].by_level)
    for kind, look in looks.items():
        way = frugal([way for way in ways if way.kind == kind])
        y = [way.by_level[level] for level in levels]
        panel.plot(range(len(levels)), y, look.marker, ls="-", color=look.colour, ms=4, lw=0.9)
    for way in ways:
        if way.kind == ORACLE:
            y = [way.by_level[level] for level in levels]
            panel.plot(range(len(levels)), y, "*-", color=INK, ms=7, lw=0.9)
    lay_out_accuracy(panel)
    panel.set_ylim(0, 1.08 * max(way.number for way in ways if way.kind == FIXED))
    panel.set_yticks(range(0, int(max(way.number for way in ways if way.kind == FIXED)) + 1, 2))
    panel.set_xticks(range(len(levels)), [str(level) for level in levels])
    panel.set_ylabel("Loops at the answer", fontsize=7)
    panel.set_xlabel("Level: swaps of the word (evenly spaced)", fontsize=7)


def frugal(ways: Sequence[Way]) -> Way:
    """Return the cheapest way whose accuracy comes within one point of the best."""
    best = max(mean(way.accuracy) for way in ways)
    near = [way for way in ways if mean(way.accuracy) >= best - 0.01]
    return min(near, key=lambda way: mean(way.flops))
