"""The histograms of a corpus's card, one row a source: lengths, levels, answers."""

import io

from matplotlib.figure import Figure

from .card_facts import Sampled

MOST_ANSWERS = 12
LONGEST_LABEL = 18
_COLOUR = "#3b6ea5"


def histograms(sampled: Sampled, context: int) -> str:
    """Three panels as SVG: tokens of a document, levels, and the most frequent answers."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    lengths, levels, answers = figure.subplots(1, 3, width_ratios=(1.2, 0.8, 1))
    lengths.hist(sampled.lengths, bins=30, color=_COLOUR)
    lengths.set_xlabel("tokens of a document")
    lengths.set_ylabel("documents")
    if max(sampled.lengths, default=0) >= context:
        lengths.axvline(context, color="black", linewidth=1, linestyle="--")
        lengths.text(context, lengths.get_ylim()[1], " a row", ha="right", va="top", fontsize=8)
    _bars(levels, [(str(level), count) for level, count in sorted(sampled.levels.items())])
    levels.set_xlabel("level")
    if sampled.answers:
        _answers(answers, sampled)
    else:
        answers.set_axis_off()
        answers.text(0.5, 0.5, "plain text: no answers", ha="center", va="center")
    for axes in (lengths, levels, answers):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return _svg(figure)


def _bars(axes, bars: list[tuple[str, int]]) -> None:
    axes.bar([label for label, _ in bars], [count for _, count in bars], color=_COLOUR)


def _answers(axes, sampled: Sampled) -> None:
    """The most frequent answers, lying, so that their names can be read."""
    common = sampled.answers.most_common(MOST_ANSWERS)[::-1]
    names = [
        name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
        for name, _ in common
    ]
    total = sum(sampled.answers.values())
    axes.barh(range(len(common)), [100 * count / total for _, count in common], color=_COLOUR)
    axes.set_yticks(range(len(common)), names)
    axes.set_xlabel(f"% of answers ({len(sampled.answers):,} distinct)")


def _short(name: str) -> str:
    """A label that fits; a dollar sign in it begins no formula."""
    line = " ".join(name.split()).replace("$", r"\$")
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue().decode()
    return svg[svg.index("<svg") :]
