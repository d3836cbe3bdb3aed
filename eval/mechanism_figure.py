"""Grouped runs as PNGs: which seeds solve what, and recall against the size of the state."""

from collections.abc import Mapping, Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from eval.currencies import scaled
from eval.mechanism_tables import NO_CONTROL
from eval.mechanisms import SOLVED, Mechanisms, Outcome
from eval.palette import GRID, INK, MUTED, SHADE, Style, styles
from eval.panels import DASHES, chance_key, frame, lay_out_accuracy, panels

_WIDTH = 7.0
_SOLVES, _FAILS, _HARDER = "#0072B2", "#D55E00", "#6a737d"


def draw_mechanisms(found: Mechanisms) -> Figure:
    """Draw a panel per task with a row per backbone: a dot for each seed, and how many solve it."""
    rows = -(-len(found.tasks) // 4)
    columns = -(-len(found.tasks) // rows)
    height = 0.9 + rows * (0.75 + 0.21 * len(found.labels))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for panel, task in zip(axes, found.tasks, strict=False):
        _draw_task(panel, found, task)
    for unused in axes[len(found.tasks) :]:
        unused.set_visible(False)
    caption = (
        "A dot is a training seed, at the learning rate with the least validation loss: its mean "
        f"accuracy over the held-out levels. Right: seeds with at least {100 * SOLVED:g}% at each "
        "of these levels. Greyed panels: no backbone solves the task on this budget, so nothing "
        "is concluded."
    )
    beyond = any(found.goes_beyond(task) for task in found.tasks)
    frame(figure, {}, [*_seed_keys()[: 3 if beyond else 2], chance_key()], caption)
    return figure


def _draw_task(panel: Axes, found: Mechanisms, task: str) -> None:
    outcomes, judged = found.of_task(task), found.controls[task] is not None
    first = next(iter(outcomes.values())).seeds[0]
    for place, label in enumerate(found.labels):
        if label in outcomes:
            _draw_seeds(panel, outcomes[label], place, judged, found.goes_beyond(task))
    panel.axvline(100 * first.chance, color=MUTED, lw=0.9, ls=DASHES, zorder=1)
    panel.axvline(100 * SOLVED, color=GRID, lw=0.9, zorder=1)
    if not judged:
        panel.set_facecolor(SHADE)
    said = "" if judged else f", {NO_CONTROL}"
    panel.set_title(f"{task}\nlevel {_span(first.levels)}{said}", fontsize=7.5, loc="left")
    panel.set_ylim(len(found.labels) - 0.5, -0.5)
    panel.set_yticks(range(len(found.labels)), list(found.labels))
    panel.set_xlim(-3, 122)
    panel.set_xticks([0, 50, 100], ["0", "50", "100%"])
    panel.tick_params(labelsize=7, length=2, color=MUTED, labelcolor=INK)
    panel.grid(axis="y", color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(MUTED)


def _span(levels: Mapping[int, float]) -> str:
    return f"{min(levels)} to {max(levels)}" if len(levels) > 1 else str(next(iter(levels)))


def _draw_seeds(panel: Axes, outcome: Outcome, place: int, judged: bool, beyond: bool) -> None:
    count = len(outcome.seeds)
    for number, result in enumerate(outcome.seeds):
        y = place + 0.36 * ((number + 0.5) / count - 0.5)
        colour = _SOLVES if result.solved else _FAILS
        fill = colour if result.solved else "white"
        if beyond and result.beyond:
            x = 100 * mean(result.beyond.values())
            panel.plot(x, y, "|", color=_HARDER, markersize=4.5, mew=1.0, zorder=2)
        panel.plot(
            100 * result.accuracy,
            y,
            "o",
            color=colour,
            markersize=4,
            markerfacecolor=fill,
            mew=0.9,
            zorder=3,
        )
    if judged:
        said = f"{outcome.solved}/{count}"
        weight = "bold" if outcome.solved == count else "normal"
        colour = INK if outcome.solved else MUTED
        panel.text(
            121, place, said, fontsize=7, va="center", ha="right", color=colour, fontweight=weight
        )


def _seed_keys() -> list[Line2D]:
    look = {"linestyle": "", "marker": "o", "markersize": 4.5}
    return [
        Line2D([], [], color=_SOLVES, label="seed that solves the task", **look),
        Line2D([], [], color=_FAILS, markerfacecolor="white", label="seed that doesn't", **look),
        Line2D([], [], color=_HARDER, marker="|", linestyle="", label="levels harder than trained"),
    ]


def draw_recall(found: Mechanisms, task: str) -> Figure:
    """Draw recall over the number of pairs, and at the hardest trained number against the state."""
    outcomes = found.of_task(task)
    looks = styles(list(outcomes))
    figure, (over_pairs, over_state) = panels(2, 2)
    levels = sorted({n for o in outcomes.values() for r in o.seeds for n in (*r.levels, *r.beyond)})
    hardest = max(next(iter(outcomes.values())).seeds[0].levels)
    for label, outcome in outcomes.items():
        _draw_over_pairs(over_pairs, outcome, levels, looks[label])
        _draw_over_state(over_state, outcome, hardest, looks[label])
    for place, level in enumerate(levels):
        if level > hardest:
            over_pairs.axvspan(place - 0.5, place + 0.5, color=SHADE, linewidth=0, zorder=0)
    over_pairs.set_xticks(range(len(levels)), [str(level) for level in levels])
    over_pairs.set_xlim(-0.5, len(levels) - 0.5)
    over_pairs.set_xlabel("Pairs (evenly spaced)", fontsize=7)
    over_state.set_xscale("log", base=2)
    over_state.xaxis.set_major_formatter(FuncFormatter(_bytes))
    over_state.minorticks_off()
    over_state.set_xlabel(f"State at the end of an answer over {hardest} pairs", fontsize=7)
    for panel in (over_pairs, over_state):
        lay_out_accuracy(panel)
    frame(figure, looks, [], f"{task}: mean and range over seeds. Shaded: harder than trained.")
    return figure


def _bytes(count: float, _: int) -> str:
    number, prefix = scaled(count, binary=True)
    return f"{number} {prefix}B"


def _draw_over_pairs(panel: Axes, outcome: Outcome, levels: Sequence[int], look: Style) -> None:
    accuracy = [{**result.levels, **result.beyond} for result in outcome.seeds]
    shown = [level for level in levels if all(level in own for own in accuracy)]
    x = [levels.index(level) for level in shown]
    values = [[100 * own[level] for own in accuracy] for level in shown]
    panel.plot(x, [mean(v) for v in values], look.marker, ls="-", color=look.colour, ms=4, lw=1.1)
    panel.vlines(x, [min(v) for v in values], [max(v) for v in values], color=look.colour, lw=0.8)


def _draw_over_state(panel: Axes, outcome: Outcome, level: int, look: Style) -> None:
    values = [100 * result.levels[level] for result in outcome.seeds]
    state = mean(result.state_bytes[level] for result in outcome.seeds)
    panel.plot(state, mean(values), look.marker, color=look.colour, ms=5)
    panel.vlines(state, min(values), max(values), color=look.colour, lw=0.8)
