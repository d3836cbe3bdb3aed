"""What was measured of looped backbones and their twins: rows, ratios, tables, targets."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.speed_graphs import GraphCount
from eval.speed_targets import verdict
from eval.table import Entry, Table

MODES = {"plain": "plain blocks", "compiled": "compiled blocks"}
"""How blocks run, and what tables call it."""
LEAST_RATIO = 0.9
"""Training FLOP/s of a looped backbone over its twin's, at least."""


@dataclass
class DepthRow:
    """Training steps of one backbone.

    Attributes:
        case: the looped backbone, also in the row of its twin.
        mode: of `MODES`.
        who: "looped" or "twin".
        loops: loops of a step (1 for a twin).
        block_calls: passes through blocks, forward.
        parameters: unique parameters.
        flops: model FLOPs of a step: three forward passes, one where no gradient is asked.
        seconds: of each step.
    """

    case: str
    mode: str
    who: str
    loops: int
    block_calls: int
    parameters: int
    flops: float
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """FLOP/s of the median step."""
        return self.flops / self.median


@dataclass(frozen=True)
class Pair:
    """A looped backbone and its twin, which took turns."""

    looped: DepthRow
    twin: DepthRow

    @property
    def ratio(self) -> float:
        """FLOP/s of the looped backbone over its twin's, of medians."""
        return self.looped.rate / self.twin.rate

    @property
    def rounds(self) -> list[float]:
        """The same ratio of each round."""
        work = self.looped.flops / self.twin.flops
        both = zip(self.looped.seconds, self.twin.seconds, strict=True)
        return [work * theirs / mine for mine, theirs in both]


def pairs_of(rows: Sequence[DepthRow]) -> dict[tuple[str, str], Pair]:
    """Return the pairs by case and mode, in the order of measuring."""
    found = {(row.case, row.mode, row.who): row for row in rows}
    keys = dict.fromkeys((row.case, row.mode) for row in rows)
    return {key: Pair(found[*key, "looped"], found[*key, "twin"]) for key in keys}


def depth_tables(rows: Sequence[DepthRow], graphs: Mapping[str, GraphCount]) -> list[Table]:
    """Lay the figures out: a table for each mode, and one of graphs."""
    pairs = pairs_of(rows)
    tables = [
        _table(title, [pair for (_, one), pair in pairs.items() if one == mode])
        for mode, title in MODES.items()
        if any(one == mode for _, one in pairs)
    ]
    return [*tables, _graph_table(graphs)] if graphs else tables


def _table(title: str, pairs: Sequence[Pair]) -> Table:
    columns = ["case", "backbone", "loops", "block calls", "parameters", "GFLOP a step"]
    columns += ["seconds", "GFLOP/s", "looped over twin", "over rounds"]
    lines = []
    for pair in pairs:
        low, high = min(pair.rounds), max(pair.rounds)
        said = [Entry(f"{pair.ratio:.2f}", "strong"), Entry(f"{low:.2f} to {high:.2f}")]
        lines.append([*_entries(pair.looped), *said])
        lines.append([*_entries(pair.twin), Entry(""), Entry("")])
    return Table(f"training steps, {title}", columns, lines, names=2)


def _entries(row: DepthRow) -> list[Entry]:
    figures = (
        f"{row.loops}",
        f"{row.block_calls}",
        f"{row.parameters:,}",
        f"{row.flops / 1e9:.2f}",
    )
    measured = (f"{row.median:.3f}", f"{row.rate / 1e9:.1f}")
    return [Entry(text) for text in (row.case, row.who, *figures, *measured)]


def _graph_table(graphs: Mapping[str, GraphCount]) -> Table:
    counts = next(iter(graphs.values())).counts
    lines = [
        [Entry(case), *(Entry(str(n)) for n in found.graphs), Entry(f"{found.added}", "strong")]
        for case, found in graphs.items()
    ]
    columns = ["case", *(f"{count}" for count in counts), "added"]
    title = "graphs compiled after training steps of 1 to that many loops"
    return Table(title, columns, lines, _graph_note(graphs), names=1)


def _graph_note(graphs: Mapping[str, GraphCount]) -> str:
    """Say what is counted, and why a block is several graphs."""
    told = [
        "Added: graphs that came at counts at which no kind of loop was new (the first, a later "
        "one, one before the gradient's window)."
    ]
    reasons = dict.fromkeys(why for found in graphs.values() for why in found.breaks)
    for why in reasons:
        broken = [
            f"{case} {found.breaks[why]} times"
            for case, found in graphs.items()
            if why in found.breaks
        ]
        told.append(f"Graphs broken, {', '.join(broken)}: {why}.")
    return " ".join(told)


def judge_depth(rows: Sequence[DepthRow], graphs: Mapping[str, GraphCount]) -> list[dict[str, Any]]:
    """Return each target with its figure and whether it is met."""
    verdicts = [
        verdict(
            f"{case}: training FLOP/s over its twin's, {MODES[mode]}",
            pair.ratio,
            LEAST_RATIO,
            at_least=True,
        )
        for (case, mode), pair in pairs_of(rows).items()
    ]
    for case, found in graphs.items():
        what = f"{case}: graphs added by more loops, of {found.graphs[-1]} in all"
        verdicts.append(verdict(what, found.added, 0, at_least=False))
    return verdicts


def depth_csv(rows: Iterable[DepthRow]) -> str:
    """Write rows as CSV: a line for each step."""
    text = io.StringIO()
    names = ["case", "mode", "who", "loops", "block_calls", "parameters", "flops"]
    writer = csv.DictWriter(
        text, [*names, "round", "seconds"], lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    for row in rows:
        for number, seconds in enumerate(row.seconds, start=1):
            writer.writerow(asdict(row) | {"round": number, "seconds": seconds})
    return text.getvalue()
