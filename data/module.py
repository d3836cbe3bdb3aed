"""The corpus as Lightning reads it: the batch of a step is a pure function of (seed, stage, step).

No loader state is ever saved: where a run stands follows from its step, so a resumed run reads
exactly what an uninterrupted one reads, at any world size.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from .batch import Batch
from .corpus import Corpus, PackedRows
from .order import GlobalOrder
from .thoughts import Thinking

Place = Callable[[int], tuple[int, int, int]]
"""`step of the run -> (stage, step within the stage, steps of the stage)`."""

MovedAt = Callable[[int], int]
"""`step of the run -> batches by which its data are moved on within its stage`."""

ThinkingAt = Callable[[int], Thinking | None]
"""`step of the run -> what becomes of traces`; None leaves them as they are written."""


class StepRows(IterableDataset[Batch]):
    """The micro-batches that one rank reads, from a step on.

    Args:
        rows: the split to read.
        rows_per_step: rows of a global batch; ranks and accumulation cut it into equal parts.
        seed: keys the order.
        place: maps a step of the run to its stage, the step within it, and the stage's length.
        steps: first and one past the last step.
        rank: this process, and `world_size` how many there are.
        accumulate: micro-batches a step.
        thinking: says which written steps thoughts replace; None is none, ever.
        moved: says how many batches of the stage were left out before a step; None is none, ever.
    """

    def __init__(
        self,
        rows: PackedRows,
        rows_per_step: int,
        seed: int,
        place: Place,
        steps: range,
        rank: int,
        world_size: int,
        accumulate: int,
        thinking: ThinkingAt | None = None,
        moved: MovedAt | None = None,
    ) -> None:
        super().__init__()
        self.thinking, self.moved = thinking or (lambda step: None), moved or (lambda step: 0)
        self.rows, self.rows_per_step, self.seed, self.place = rows, rows_per_step, seed, place
        self.steps, self.rank, self.parts = steps, rank, (world_size, accumulate)
        self._orders: dict[tuple[int, int], GlobalOrder] = {}

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            indices, thinking = self.indices(step), self.thinking(step)
            parts = self.micro_batches(np.arange(len(indices)))
            if thinking is not None:
                yield from self._thinking(step, thinking, indices, parts)
                continue
            denominator = self.rows.loss_sum(indices)
            for places in parts:
                yield Batch.from_rows(self.rows.read(indices[places]), denominator, places)

    def _thinking(
        self, step: int, thinking: Thinking, indices: np.ndarray, parts: list[np.ndarray]
    ) -> Iterator[Batch]:
        """Yield micro-batches with thoughts: all rows are read, as their weights are shared."""
        stage, stage_step, _ = self.place(step)
        key = f"pauca thinking {self.seed} {stage} {stage_step}"
        written = self.rows.read(indices)
        thought = thinking.apply(written, key, self.rows.dot_id, self.rows.pad_id)
        total = float(thought.loss.sum(dtype=np.float64))
        for places in parts:
            batch = Batch.from_rows(thought.take(places), total, places)
            if thinking.keep:
                own = written.loss.sum(dtype=np.float64)
                batch.written = Batch.from_rows(written.take(places), float(own), places)
            yield batch

    def indices(self, step: int) -> np.ndarray:
        """Return the rows of the global batch of a step."""
        stage, stage_step, stage_steps = self.place(step)
        key = stage, stage_steps
        if key not in self._orders:
            phases, rows = self.rows.phases, self.rows_per_step
            self._orders[key] = GlobalOrder(phases, rows, self.seed, *key)
        return self._orders[key].indices(stage_step + self.moved(step))

    def micro_batches(self, places: np.ndarray) -> list[np.ndarray]:
        """Return this rank's share of a global batch's rows, one array per accumulation step."""
        world_size, accumulate = self.parts
        mine = places.reshape(accumulate, world_size, -1)[:, self.rank]
        return list(mine)


class CorpusModule(L.LightningDataModule):
    """Feeds a corpus to the trainer.

    Args:
        corpus: opened corpus.
        rows_per_step: rows of a global batch.
        validation_rows: rows of the validation split to score; 0 is none.
        seed: keys the order.
        place: maps a step of the run to its stage, the step within it, and the stage's length.
        max_steps: steps of the run.
        accumulate: micro-batches a step.
        thinking: says which written steps thoughts replace; None is none, ever.
        moved: says how many batches of the stage were left out before a step; None is none, ever.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows_per_step: int,
        validation_rows: int,
        seed: int,
        place: Place,
        max_steps: int,
        accumulate: int = 1,
        thinking: ThinkingAt | None = None,
        moved: MovedAt | None = None,
    ) -> None:
        super().__init__()
        self.thinking, self.moved = thinking or (lambda step: None), moved
        self.corpus, self.rows_per_step, self.seed = corpus, rows_per_step, seed
        self.validation_rows, self.place, self.max_steps = validation_rows, place, max_steps
        self.accumulate = accumulate

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader from the trainer's step to the end of the run."""
        assert self.trainer is not None
        return DataLoader(self.steps_from(self.trainer.global_step), batch_size=None)

    def steps_from(self, step: int) -> StepRows:
        """Return what this rank reads from `step` on."""
        rank, world_size = self._rank_of()
        return StepRows(
            self.corpus.split("train"),
            self.rows_per_step,
            self.seed,
            self.place,
            range(step, self.max_steps),
            rank,
            world_size,
            self.accumulate,
            self.thinking,
            self.moved,
        )

    def validation_batches(self, step: int = 0) -> list[Batch]:
        """Return this rank's batches of the first validation rows (none where there are none).

        Thoughts stand in them as the stage of a step of the run says.

        Their denominator is that of all these rows: the losses of all batches of all ranks add up
        to one mean. All ranks get as many batches, since sharded weights are gathered by all: one
        that has no rows left gets a row that isn't scored.
        """
        has_rows = self.corpus.manifest["splits"].get("validation", {}).get("rows", 0)
        if not self.validation_rows or not has_rows:
            return []
        rows = self.corpus.split("validation")
        indices = np.arange(min(self.validation_rows, rows.num_rows))
        thinking = self.thinking(step)
        if thinking is None:
            read, denominator = rows.read, rows.loss_sum(indices)
        else:
            made = replace(thinking, share=0.0).apply(
                rows.read(indices), "validation", rows.dot_id, rows.pad_id
            )
            read, denominator = made.take, float(made.loss.sum(dtype=np.float64))
        parts = np.array_split(indices, -(-len(indices) // self.rows_per_step))
        rank, world_size = self._rank_of()
        batches = [Batch.from_rows(read(part), denominator) for part in parts[rank::world_size]]
        if len(batches) * world_size < len(parts):
            batches.append(Batch.from_rows(read(parts[0][:1]), denominator).unscored())
        return batches

    def _rank_of(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
