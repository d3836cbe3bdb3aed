"""When to stop: each stopping rule beside every fixed number of loops and an oracle.

The *need* of a question is the fewest loops after which the model, run that far everywhere, answers
it right. The oracle exit spends exactly that (one loop where no number is right): it is what a rule
could reach at best, and no rule can know it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import polars as pl

from eval.mechanism_tables import over_seeds
from eval.runs import Run
from eval.statistics import wilson
from eval.table import Entry, Table
from models.depth.stop import Stop

QUESTION = ("task", "level", "split", "index")
ORACLE = "oracle"
FIXED = "fixed"


@dataclass(frozen=True)
class Way:
    """One way to spend loops on the questions of one task, a number for each seed.

    Attributes:
        backbone: who answers.
        task: the task.
        kind: fixed, oracle, or the name of a rule.
        number: loops, or the rule's number; 0 for the oracle.
        accuracy: share of right answers.
        correct: right answers of all seeds, of the `asked`.
        flops: mean model FLOPs of a question.
        block_calls: mean block calls of a question.
        seconds: mean seconds of a question in its batch; empty where they weren't measured.
        loops: mean loops at the positions that the answer was read out from.
        by_level: the same at each level, a mean over seeds.
        with_level: rank correlation of these loops with the level; None where they don't vary.
        with_need: the same with the need, over questions that have one.
    """

    backbone: str
    task: str
    kind: str
    number: float
    accuracy: Sequence[float]
    correct: int
    asked: int
    flops: Sequence[float]
    block_calls: Sequence[float]
    seconds: Sequence[float]
    loops: Sequence[float]
    by_level: dict[int, float]
    with_level: Sequence[float]
    with_need: Sequence[float]

    @property
    def name(self) -> str:
        """What a table calls it."""
        if self.kind == ORACLE:
            return "oracle"
        if self.kind == FIXED:
            return f"{self.number:g} loop{'s' if self.number != 1 else ''}"
        rule, *holes = self.kind.split(" ")
        return " ".join([f"{rule}:{self.number:g}", *holes])


def stopping(ledger: pl.DataFrame, runs: Sequence[Run]) -> list[Way]:
    """Return every way that some run was asked for; nothing where no rule was tried.

    Runs of one backbone are its seeds. All levels that were asked count, but for those harder than
    trained.
    """
    if not is_about_stopping(ledger):
        return []
    backbones = {run.name: run.backbone for run in runs}
    rows = ledger.filter(pl.col("budget_trace") == "none", ~pl.col("beyond")).with_columns(
        who=pl.col("run").replace_strict(backbones, default="?"),
        way=pl.col("budget_stop").fill_null("none"),
        # The backbone's own count, asked for as such, is a count like the others.
        fixed=pl.coalesce("budget_loops", pl.col("mean_loops").cast(pl.Int64)),
    )
    rows = rows.filter(pl.col("who").is_in(_who_stops(rows)))
    return [way for task in rows["task"].unique(maintain_order=True) for way in _ways(rows, task)]


def is_about_stopping(ledger: pl.DataFrame) -> bool:
    """Whether a rule was tried."""
    return "answer_loops" in ledger.columns and bool(
        (ledger["budget_stop"].fill_null("none") != "none").any()
    )


def _who_stops(rows: pl.DataFrame) -> list[str]:
    return rows.filter(pl.col("way") != "none")["who"].unique(maintain_order=True).to_list()


def _ways(rows: pl.DataFrame, task: str) -> Iterator[Way]:
    for who in rows["who"].unique(maintain_order=True):
        own = rows.filter(pl.col("task") == task, pl.col("who") == who)
        fixed = own.filter(pl.col("way") == "none")
        needs = fixed.filter("correct").group_by("run", *QUESTION).agg(need=pl.col("fixed").min())
        own = own.join(needs, on=["run", *QUESTION], how="left")
        for (loops,), group in own.filter(pl.col("way") == "none").group_by("fixed"):
            yield _way(who, task, FIXED, float(str(loops)), group)
        for (text,), group in own.filter(pl.col("way") != "none").group_by("way"):
            stop = Stop.parse(str(text))
            kind = f"{stop.rule} ({stop.holes})" if stop.holes else stop.rule
            yield _way(who, task, kind, stop.at, group)
        yield _way(who, task, ORACLE, 0.0, _oracle(own))


def _oracle(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that spend what each question needs."""
    fixed = rows.filter(pl.col("way") == "none")
    return fixed.filter(pl.col("fixed") == pl.col("need").fill_null(pl.col("fixed").min()))


def _way(who: str, task: str, kind: str, number: float, rows: pl.DataFrame) -> Way:
    seeds = [group for _, group in sorted(rows.group_by("run"), key=lambda part: str(part[0]))]
    levels = rows.group_by("level").agg(pl.col("answer_loops").mean()).sort("level")
    needed = [group.filter(pl.col("need").is_not_null()) for group in seeds]
    return Way(
        who,
        task,
        kind,
        number,
        accuracy=[_mean(group, "correct") for group in seeds],
        correct=int(rows["correct"].sum()),
        asked=rows.height,
        flops=[_mean(group, "model_flops") for group in seeds],
        block_calls=[_mean(group, "block_calls") for group in seeds],
        seconds=[_mean(group, "batch_s") for group in seeds if group["batch_s"].null_count() == 0],
        loops=[_mean(group, "answer_loops") for group in seeds],
        by_level=dict(zip(levels["level"], levels["answer_loops"], strict=True)),
        with_level=[r for group in seeds for r in _ranked(group, "level")],
        with_need=[r for group in needed for r in _ranked(group, "need")],
    )


def _mean(rows: pl.DataFrame, column: str) -> float:
    return mean(rows[column].cast(pl.Float64))


def _ranked(rows: pl.DataFrame, column: str) -> list[float]:
    """Spearman's rank correlation of loops with a column; nothing where one is constant."""
    if rows["answer_loops"].n_unique() < 2 or rows[column].n_unique() < 2:
        return []
    return [float(rows.select(pl.corr("answer_loops", column, method="spearman")).item())]


def in_order(ways: Sequence[Way]) -> list[Way]:
    """Fixed counts, then rules, each from cheap to dear, the oracle last."""
    kinds = {FIXED: 0, ORACLE: 2}
    return sorted(
        ways,
        key=lambda way: (
            *(way.task, way.backbone, kinds.get(way.kind, 1), way.kind),
            mean(way.flops),
        ),
    )


def stopping_tables(ways: Sequence[Way]) -> list[Table]:
    """Show each way: what it gets right, what it spends, whether it spends it where it must."""
    return [_table(ways, *key) for key in dict.fromkeys((w.task, w.backbone) for w in ways)]


def _table(ways: Sequence[Way], task: str, backbone: str) -> Table:
    chosen = in_order([way for way in ways if (way.task, way.backbone) == (task, backbone)])
    levels = ", ".join(map(str, sorted(chosen[0].by_level)))
    seeds, asked = len(chosen[0].accuracy), chosen[0].asked
    return Table(
        title=f"When to stop: {backbone} on {task}",
        columns=[
            *("Loops", "Accuracy over seeds (%)", "95% of questions", "MFLOPs", "Block calls"),
            *("Batch ms", "Loops at the answer"),
            *("Rank correlation with the level", "with the need"),
        ],
        rows=[_row(way) for way in chosen],
        note=f"Mean with the range over {seeds} seeds, and the Wilson interval of all {asked:,} "
        f"answers, to questions of levels {levels}. The need of a question is the fewest loops "
        "that answer it right; the oracle runs just these. FLOPs count what a rule reads out. "
        "Batch ms: a question's share of its batch's time, on the machine as busy as it was.",
        names=1,
    )


def _row(way: Way) -> list[Entry]:
    tone = "strong" if way.kind == ORACLE else ""
    return [
        Entry(way.name, tone),
        Entry(over_seeds(way.accuracy)),
        Entry(_wilson(way)),
        Entry(f"{mean(way.flops) / 1e6:.2f}"),
        Entry(f"{mean(way.block_calls):.0f}"),
        Entry(f"{1e3 * mean(way.seconds):.2f}" if way.seconds else "–"),
        Entry(f"{mean(way.loops):.2f}"),
        Entry(_correlation(way.with_level)),
        Entry(_correlation(way.with_need)),
    ]


def _wilson(way: Way) -> str:
    low, high = (100 * float(b[0]) for b in wilson(np.array([way.correct]), np.array([way.asked])))
    return f"[{low:.1f}, {high:.1f}]"


def _correlation(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
