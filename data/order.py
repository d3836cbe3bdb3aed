"""The order in which training visits the rows of a corpus.

The rows of a step are a pure function of (seed, stage, step): nothing is remembered, so training
resumes at any step exactly, and ranks take slices of the same global batch at any world size.
Each epoch is another keyed permutation: a balanced Feistel network over the next power of four,
with cycle walking back into the range (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEPS_AT_ONCE = 32
_ROUNDS = 8  # one 64-bit round key each: the 64 bytes of one blake2b digest


def permutation_key(seed: int, stage: int, epoch: int, phase: int = 0) -> bytes:
    """64 bytes that key the permutation of one epoch of one phase of one stage."""
    name = f"pauca order {seed} {stage} {epoch}" + (f" {phase}" if phase else "")
    return hashlib.blake2b(name.encode()).digest()


def permuted(indices: np.ndarray, n: int, key: bytes) -> np.ndarray:
    """Where a keyed permutation of 0 .. n-1 sends each index.

    Args:
        indices: any shape, each in 0 .. n-1.
        n: size of the permuted range, at least 1.
        key: 64 bytes, see :func:`permutation_key`.

    Returns:
        int64 array of the same shape; over all n indices it holds each value once.
    """
    values = np.asarray(indices, dtype=np.uint64)
    assert n >= 1 and (values.size == 0 or int(values.max()) < n)
    round_keys = np.frombuffer(key, dtype="<u8", count=_ROUNDS)
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    flat = _encrypted(values.ravel(), round_keys, half_bits)
    # Walking the cycle ends, because the walk starts inside the range and must return to it.
    while (outside := np.flatnonzero(flat >= n)).size:
        flat[outside] = _encrypted(flat[outside], round_keys, half_bits)
    return flat.reshape(values.shape).astype(np.int64)


def _encrypted(values: np.ndarray, round_keys: np.ndarray, half_bits: int) -> np.ndarray:
    """One pass of the Feistel network over `2 * half_bits` bits."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mixed(right ^ round_key) & mask)
    return (left << shift) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit reaches every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Phase:
    """Consecutive rows that are read together: `rows` of them, until a share of the stage."""

    until: float
    rows: int


class GlobalOrder:
    """Rows of every step of a stage, in an order that differs from epoch to epoch.

    Where the corpus has phases, each is read during its share of the stage, over and over if the
    share is longer than the phase.

    Args:
        phases: the corpus split's phases, in order; the last goes on until 1.
        rows_per_step: rows of the global batch, over all ranks and accumulation steps.
        seed: the run's seed.
        stage: number of the stage in the run.
        num_steps: steps of the stage; a corpus of one phase needs none.

    Raises:
        ValueError: the split or a phase is empty, or a step would hold no rows.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        rows_per_step: int,
        seed: int,
        stage: int,
        num_steps: int = 0,
    ):
        if not phases or any(phase.rows < 1 for phase in phases):
            raise ValueError(f"{list(phases)}: each phase of a split needs at least 1 row to order")
        if rows_per_step < 1:
            raise ValueError(f"rows_per_step={rows_per_step}: a step needs at least 1 row")
        self.rows_per_step = rows_per_step
        self.seed, self.stage = seed, stage
        self.sizes = np.array([phase.rows for phase in phases])
        total = num_steps * rows_per_step
        ends = [round(phase.until * total) for phase in phases[:-1]]
        self.starts = np.array([0, *ends])  # the first global sample of each phase
        self._block, self._rows = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Row indices [rows_per_step] of a step; a rank takes its slice of them.

        Some steps are permuted at once, since one alone takes as long as reading its rows.
        """
        assert step >= 0
        block, place = divmod(step, _STEPS_AT_ONCE)
        if block != self._block:
            count = _STEPS_AT_ONCE * self.rows_per_step
            rows = self.samples(np.arange(block * count, (block + 1) * count))
            self._block, self._rows = block, rows.reshape(_STEPS_AT_ONCE, self.rows_per_step)
        return self._rows[place]

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """Row index of each global sample, numbered from 0 at the start of the stage."""
        numbers = np.asarray(numbers, dtype=np.int64)
        phases = np.searchsorted(self.starts, numbers, side="right") - 1
        rows = np.empty_like(numbers)
        for phase in np.unique(phases).tolist():
            rows[phases == phase] = self._in_phase(phase, numbers[phases == phase])
        return rows

    def _in_phase(self, phase: int, numbers: np.ndarray) -> np.ndarray:
        size, before = int(self.sizes[phase]), int(self.sizes[:phase].sum())
        epochs, places = np.divmod(numbers - self.starts[phase], size)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            key = permutation_key(self.seed, self.stage, epoch, phase)
            rows[epochs == epoch] = before + permuted(places[epochs == epoch], size, key)
        return rows
