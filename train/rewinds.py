"""Going back before a spike, to read on behind the batches that led to it.

As PaLM was trained (arXiv 2204.02311, section 5.1): from a checkpoint about 100 steps before the
spike, without the batches that were read since. What was gone back from is written down, so the
batch of a step stays a pure function of settings and step, and a resumed run reads the same.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eval.checkpoint import checkpoint_step, checkpoints, remove_checkpoint

from .folder import write_json
from .stage import StagePlan

REWINDS_FILE = "rewinds.json"
MOST_TO_ONE_PLACE = 3
"""Times that a run goes back to the same step: more of them are no bad batches."""


@dataclass(frozen=True)
class Rewind:
    """One return to an earlier step.

    Attributes:
        step: the step (from 1) that spiked.
        to: the step whose checkpoint the run went back to; 0 is the beginning.
        stage: index of the stage of the spike.
        first: the first step (from 0) of that stage whose data are moved on.
        moved: batches by which they are, in all, from there to the stage's end.
        why: what spiked, in words.
    """

    step: int
    to: int
    stage: int
    first: int
    moved: int
    why: str

    @property
    def lost(self) -> int:
        """Steps that were done, and are not part of what the run becomes."""
        return self.step - self.to


class TooManyRewinds(ArithmeticError):
    """Going back did not help; the message says what to do."""


class Rewound(Exception):
    """Ends the training that spiked; `rewind` says where to begin again."""

    def __init__(self, rewind: Rewind) -> None:
        super().__init__(f"step {rewind.step}: {rewind.why}: back to step {rewind.to}")
        self.rewind = rewind


@dataclass(frozen=True)
class Rewinds:
    """All of a run's, in the order in which they happened."""

    records: tuple[Rewind, ...] = ()

    @classmethod
    def read(cls, run: Path) -> "Rewinds":
        """Read what a run folder has noted."""
        path = run / REWINDS_FILE
        if not path.exists():
            return cls()
        noted = json.loads(path.read_text())["rewinds"]
        return cls(tuple(Rewind(**record) for record in noted))

    def write(self, run: Path) -> None:
        """Note them in a run folder."""
        write_json(run / REWINDS_FILE, {"rewinds": [asdict(record) for record in self.records]})

    def moved(self, stage: int, step: int) -> int:
        """Batches by which the data of a step (from 0) are moved on within its stage."""
        for record in reversed(self.records):
            if record.stage == stage and record.first <= step:
                return record.moved
        return 0

    def back(self, step: int, to: int, plan: StagePlan, why: str) -> Rewind:
        """Plan to go back from a step (from 1) that spiked.

        Raises:
            TooManyRewinds: it went back there often enough.
        """
        if sum(record.to == to for record in self.records) >= MOST_TO_ONE_PLACE:
            raise TooManyRewinds(
                f"step {step}: {why}, and the run went back to step {to} {MOST_TO_ONE_PLACE} times "
                "already: these are no bad batches; lower the learning rate, raise "
                "trainer.spike_factor, or set trainer.spike=none"
            )
        place = plan.place(step - 1)
        first = max(to, step - 1 - place.step)
        moved = step + self.moved(place.stage, step - 1) - first
        return Rewind(step, to, place.stage, first, moved, why)

    def after(self, rewind: Rewind) -> "Rewinds":
        """Return them with one more."""
        return replace(self, records=(*self.records, rewind))


def place_before(step: int, back: int, every: int) -> int:
    """Return the step that a run goes back to, by at least `back`, where one in `every` is saved.

    Whatever else was saved, as when a run was stopped: one that was never stopped goes back alike.
    """
    return max(0, (step - back) // every * every)


def nearest(run: Path, wanted: int) -> int:
    """Return the step of the wanted checkpoint; 0 is the beginning.

    Where somebody has removed it, it is the next older one, or else the oldest.
    """
    steps = [checkpoint_step(path) for path in checkpoints(run)]
    older = [step for step in steps if step <= wanted]
    return 0 if wanted == 0 else max(older, default=min(steps, default=0))


def drop_newer(run: Path, step: int) -> None:
    """Remove the checkpoints after a step, the newest first: a kill between leaves a run whole."""
    for path in reversed(checkpoints(run)):
        if checkpoint_step(path) > step:
            remove_checkpoint(path)


def with_rewinds(cost: Mapping[str, Any], rewinds: Rewinds) -> dict[str, Any]:
    """Add what was trained and thrown away to what a run costs, at the price of a mean step."""
    lost = sum(record.lost for record in rewinds.records)
    if not lost:
        return dict(cost)
    share = 1 + lost / cost["train_steps"]
    spent = {name: cost[name] * share for name in ("train_flops", "teacher_flops") if name in cost}
    tokens = round(cost["train_tokens"] * share)
    return {**cost, **spent, "train_tokens": tokens, "lost_steps": lost}
