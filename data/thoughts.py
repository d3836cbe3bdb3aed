"""Thoughts in place of written steps: a curriculum's change of the rows of a training step.

    question <think> s1 s2 s3 </think> answer      two steps replaced by three thoughts:
    question <think> . . . s3 </think> answer      (the dots have the role THOUGHT)

It is made when rows are read, from where the step is in its run, so one corpus serves all stages,
and schemes and controls see the same documents in the same order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .corpus import RowArrays
from .roles import Role


@dataclass(frozen=True)
class Rule:
    """What becomes of a trace.

    Attributes:
        steps: first written steps that are left out (all, where a trace has fewer); None is all.
        thoughts: thoughts put in their place.
    """

    steps: int | None = 0
    thoughts: int = 0


@dataclass(frozen=True)
class Thinking:
    """What becomes of the traces of a training step.

    Attributes:
        rule: the stage's own.
        earlier: rules of the stages before.
        share: of the documents that follow an earlier rule, each as often.
        keep: whether the rows as they were are wanted as well.
    """

    rule: Rule
    earlier: tuple[Rule, ...] = ()
    share: float = 0.0
    keep: bool = False

    def apply(self, rows: RowArrays, key: str, dot: int, pad: int) -> RowArrays:
        """Change rows of a global batch; `key` is what keys the draws of the step."""
        chosen = self.choose(key, len(rows.tokens), max(1, int(rows.segments.max()) + 1))
        return with_thoughts(rows, self.rules, chosen, dot, pad)

    def choose(self, key: str, rows: int, most: int) -> np.ndarray:
        """Draw which rule each document follows, each row by itself.

        Args:
            key: keys the step's draws.
            rows: rows of the global batch.
            most: documents that a row holds at most.

        Returns:
            [rows, most] places in `rules`.
        """
        last = len(self.earlier)
        chosen = np.full((rows, most), last)
        if self.share > 0 and last:
            for row in range(rows):
                generator = np.random.Generator(np.random.Philox(_seed(f"{key} {row}")))
                mixed = generator.random(most) < self.share
                chosen[row, mixed] = generator.integers(last, size=most)[mixed]
        return chosen

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The earlier stages' rules, then its own."""
        return (*self.earlier, self.rule)


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def with_thoughts(
    rows: RowArrays, rules: Sequence[Rule], chosen: np.ndarray, dot: int, pad: int
) -> RowArrays:
    """Replace written steps by thoughts.

    Only a document whose trace lies wholly in its row is changed. A target at the place before a
    thought has no weight; it is the left-out word that the thought stands for (the last one of its
    share of them, in order), or padding where nothing was left out.

    Args:
        rows: rows as they were made.
        rules: rules.
        chosen: [rows, documents] which rule each document of a row follows.
        dot: the token at thoughts' places.
        pad: the token, and target, of what is no document's.

    Returns:
        New rows, as long as the longest of them.
    """
    traces = _Traces.of(rows, rules, chosen)
    places = _Places.of_traces(traces)
    return _written(rows, traces, places, dot, pad)


@dataclass(frozen=True)
class _Traces:
    """Where traces lie and what is asked of them; arrays are [rows, context].

    Attributes:
        keep: tokens that stay.
        added: thoughts that come before a token.
        dropped: left-out tokens of the trace that begins, at the token that `added` stands at.
    """

    keep: np.ndarray
    added: np.ndarray
    dropped: np.ndarray

    @classmethod
    def of(cls, rows: RowArrays, rules: Sequence[Rule], chosen: np.ndarray) -> "_Traces":
        real = rows.segments >= 0
        document = np.where(real, rows.segments, 0)
        whole = _whole(rows, document, chosen.shape[1])
        row = np.arange(len(real))[:, None]
        ordinal = _ordinal(rows, document)
        steps = np.array([np.iinfo(np.int64).max if r.steps is None else r.steps for r in rules])
        asked = steps[chosen][row, document]
        # What ends the trace begins after its last step, and is never left out.
        last = _per_document(rows.begins & real, document, chosen.shape[1])[row, document]
        left_out = (rows.roles == Role.TRACE) & real & whole[row, document]
        left_out &= (ordinal >= 1) & (ordinal <= np.minimum(asked, last - 1))
        first = rows.begins & real & (ordinal == 1) & whole[row, document]
        thoughts = np.array([r.thoughts for r in rules])
        added = np.where(first, thoughts[chosen][row, document], 0)
        dropped = _per_document(left_out, document, chosen.shape[1])[row, document]
        return cls(real & ~left_out, added, np.where(first, dropped, 0))


def _whole(rows: RowArrays, document: np.ndarray, most: int) -> np.ndarray:
    """[rows, documents] bool: whether a document has a trace that begins and ends in its row."""
    real = rows.segments >= 0
    first = rows.begins & real & (_ordinal(rows, document) == 1)
    after_question = np.zeros_like(first)
    after_question[:, 1:] = (rows.roles[:, :-1] == Role.QUESTION) & first[:, 1:]
    answered = (rows.roles == Role.ANSWER) & real
    begun = _per_document(after_question, document, most)
    return (begun > 0) & (_per_document(answered, document, most) > 0)


def _ordinal(rows: RowArrays, document: np.ndarray) -> np.ndarray:
    """How many steps of its document have begun at each token, itself included."""
    count = np.cumsum(rows.begins & (rows.segments >= 0), axis=1)
    starts = np.diff(document, axis=1, prepend=-1) != 0
    before = np.where(starts, count - rows.begins, 0)
    return count - np.maximum.accumulate(before, axis=1)


def _per_document(marks: np.ndarray, document: np.ndarray, most: int) -> np.ndarray:
    """[rows, documents] how many tokens of each document are marked."""
    row = np.broadcast_to(np.arange(len(marks))[:, None], marks.shape)
    keys = row[marks] * most + document[marks]
    return np.bincount(keys, minlength=len(marks) * most).reshape(len(marks), most)


@dataclass(frozen=True)
class _Places:
    """Where tokens and thoughts come to stand.

    Attributes:
        row: of each token that stays; `old` and `new` are its places before and after.
        thought_row: of each thought; `thought` is its place, `source` the token that it comes
            before, `number` its number from 0, and `of` the thoughts of its document.
        width: of the new rows.
    """

    row: np.ndarray
    old: np.ndarray
    new: np.ndarray
    thought_row: np.ndarray
    thought: np.ndarray
    source: np.ndarray
    number: np.ndarray
    of: np.ndarray
    width: int

    @classmethod
    def of_traces(cls, traces: _Traces) -> "_Places":
        ends = np.cumsum(traces.keep + traces.added, axis=1)
        row, old = np.nonzero(traces.keep)
        begin_row, begin = np.nonzero(traces.added)
        counts = traces.added[begin_row, begin]
        first = ends[begin_row, begin] - traces.keep[begin_row, begin] - counts
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(
            row,
            old,
            ends[row, old] - 1,
            np.repeat(begin_row, counts),
            np.repeat(first, counts) + number,
            np.repeat(begin, counts),
            number,
            np.repeat(counts, counts),
            max(1, int(ends[:, -1].max())),
        )


def _written(rows: RowArrays, traces: _Traces, places: _Places, dot: int, pad: int) -> RowArrays:
    """Write the new rows."""
    shape = (len(rows.tokens), places.width)
    new = RowArrays(
        tokens=np.full(shape, pad, np.int64),
        targets=np.full(shape, pad, np.int64),
        segments=np.full(shape, -1, np.int64),
        roles=np.zeros(shape, np.int64),
        loss=np.zeros(shape, np.float32),
        begins=np.zeros(shape, np.bool_),
        document_table=rows.document_table,
    )
    here, there = (places.row, places.new), (places.row, places.old)
    for name in ("tokens", "targets", "segments", "roles", "loss", "begins"):
        getattr(new, name)[here] = getattr(rows, name)[there]
    thoughts = places.thought_row, places.thought
    new.tokens[thoughts], new.roles[thoughts] = dot, Role.THOUGHT
    new.segments[thoughts] = rows.segments[places.thought_row, places.source]
    _aim(rows, new, traces, places, pad)
    return new


def _aim(rows: RowArrays, new: RowArrays, traces: _Traces, places: _Places, pad: int) -> None:
    """Set targets and weights where what follows has changed."""
    row, old, at = places.row, places.old, places.new
    moved = (old > 0) & (at > 0)
    # A token follows another one than before where thoughts, or nothing, stand in place of steps.
    gap = np.zeros_like(moved)
    gap[moved] = (
        (traces.added[row[moved], old[moved]] > 0) | ~traces.keep[row[moved], old[moved] - 1]
    ) & (rows.segments[row[moved], old[moved]] == rows.segments[row[moved], old[moved] - 1])
    row, old, at = row[gap], old[gap], at[gap]
    new.targets[row, at - 1] = rows.tokens[row, old]
    new.loss[row, at - 1] = rows.loss[row, old - 1]
    row, at = places.thought_row, places.thought
    new.targets[row, at - 1] = _stands_for(rows, traces, places, pad)
    new.loss[row, at - 1] = 0


def _stands_for(rows: RowArrays, traces: _Traces, places: _Places, pad: int) -> np.ndarray:
    """The left-out word of each thought: the last of its share of them."""
    dropped = traces.dropped[places.thought_row, places.source]
    share = -(-(places.number + 1) * dropped // places.of) - 1
    at = np.minimum(places.source + np.maximum(share, 0), rows.tokens.shape[1] - 1)
    return np.where(dropped > 0, rows.tokens[places.thought_row, at], pad)
