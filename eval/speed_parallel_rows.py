"""What was measured of processes: ways to train, their steps, the table, and what is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from eval.speed_parallel_runs import Steps
from eval.speed_show import ratio_entries
from eval.speed_targets import verdict
from eval.table import Entry, Table

MOST_PERCENT = 3.0
"""What FSDP2 of one process may add to a step's time on a GPU."""


@dataclass(frozen=True)
class Way:
    """How one backbone is trained.

    Attributes:
        strategy: single, ddp or fsdp2.
        processes: that share each global batch out.
        threads: CPU threads of each process.
    """

    strategy: str
    processes: int
    threads: int

    @property
    def name(self) -> str:
        """What people are told."""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.strategy}, {processes} of {threads}"

    @property
    def width(self) -> int:
        """How many threads work at once; on GPUs, in proportion to the processes."""
        return self.processes * self.threads


@dataclass
class ParallelRow:
    """One backbone, trained in one way, beside the way that it is measured against.

    Attributes:
        backbone: its name.
        way: how it is trained.
        rounds: the steps of each round's run.
        first: those of the way that comes first, of the same rounds; its own for that way itself.
        first_way: that way.
    """

    backbone: str
    way: Way
    rounds: list[Steps]
    first: list[Steps]
    first_way: Way

    @property
    def seconds(self) -> float:
        """Median seconds of a step, over the steps of all rounds."""
        return median(second for steps in self.rounds for second in steps.seconds)

    @property
    def ratios(self) -> list[float]:
        """Seconds of a step over those of the first way, in each round; medians of its steps."""
        both = zip(self.rounds, self.first, strict=True)
        return [mine.median / theirs.median for mine, theirs in both]

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of a step over its median seconds."""
        return median(steps.tokens for steps in self.rounds) / self.seconds

    @property
    def efficiency(self) -> float:
        """Speed-up over the first way, over how many times as many threads or GPUs work."""
        return self.first_way.width / self.way.width / self.ratio

    @property
    def loss_apart(self) -> float:
        """How far the last losses are from the first way's in its first round, relative to that."""
        reference = self.first[0].loss
        return max(abs(steps.loss / reference - 1) for steps in self.rounds)

    def facts(self) -> dict[str, Any]:
        """Return the row as plain data, with what follows from it."""
        return {
            "backbone": self.backbone,
            "strategy": self.way.strategy,
            "processes": self.way.processes,
            "threads": self.way.threads,
            "seconds": [steps.seconds for steps in self.rounds],
            "median": self.seconds,
            "over_the_first": self.ratio,
            "over_the_first_by_round": self.ratios,
            "tokens_per_second": self.tokens_per_second,
            "efficiency": self.efficiency,
            "last_losses": [steps.loss for steps in self.rounds],
            "loss_apart": self.loss_apart,
        }


def parallel_table(rows: Sequence[ParallelRow], title: str, note: str) -> Table:
    """Lay the figures out, a line for each backbone and way."""
    columns = ["backbone", "strategy", "processes", "threads each", "seconds", "over the first"]
    columns += ["over rounds", "tokens/s", "efficiency", "last loss", "apart"]
    return Table(title, columns, [_entries(row) for row in rows], note, names=2, grouped=True)


def _entries(row: ParallelRow) -> list[Entry]:
    ratio, spread = ratio_entries(row.ratio, row.ratios, digits=3)
    is_first = row.way == row.first_way
    texts = [row.backbone, row.way.strategy, str(row.way.processes), str(row.way.threads)]
    return [
        *map(Entry, (*texts, f"{row.seconds:.4f}")),
        ratio,
        Entry("") if is_first else spread,
        Entry(f"{row.tokens_per_second:,.0f}"),
        Entry("" if is_first else f"{row.efficiency:.0%}"),
        Entry(f"{row.rounds[0].loss:.6f}"),
        Entry(f"{row.loss_apart:.1e}"),
    ]


def judge_parallel(rows: Sequence[ParallelRow], device: str) -> list[dict[str, Any]]:
    """Return the target of each backbone with its figure; it is one of GPUs."""
    return [
        verdict(
            f"{row.backbone}: what fsdp2 of one process adds to a step, percent",
            100 * (row.ratio - 1),
            MOST_PERCENT,
            at_least=False,
        )
        for row in rows
        if device == "cuda" and (row.way.strategy, row.way.processes) == ("fsdp2", 1)
    ]


def wrong_losses(rows: Sequence[ParallelRow], allowed: float) -> list[str]:
    """Say which ways ended with another loss: they did not do the same work."""
    return [
        f"{row.backbone}: {row.way.name}: the last loss is {row.loss_apart:.1e} off that of "
        f"{row.first_way.name}, and {allowed:g} is allowed: they did not do the same work"
        for row in rows
        if not row.loss_apart <= allowed
    ]
