"""The order in which training visits the rows of a corpus.

The rows of a step are a pure function of (seed, stage, step): nothing is remembered, so training
resumes at any step exactly, and ranks take slices of the same global batch at any world size.
Each epoch is another keyed permutation: a balanced Feistel network over the next power of four,
with cycle walking back into the range (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002).
"""

import hashlib

import numpy as np

_ROUNDS = 8  # one 64-bit round key each: the 64 bytes of one blake2b digest


def permutation_key(seed: int, stage: int, epoch: int) -> bytes:
    """64 bytes that key the permutation of one epoch of one stage."""
    return hashlib.blake2b(f"pauca order {seed} {stage} {epoch}".encode()).digest()


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


class GlobalOrder:
    """Rows of every step of a stage, in an order that differs from epoch to epoch.

    Args:
        num_rows: rows of the corpus split.
        rows_per_step: rows of the global batch, over all ranks and accumulation steps.
        seed: the run's seed.
        stage: number of the stage in the run.

    Raises:
        ValueError: the split is empty, or a step would hold no rows.
    """

    def __init__(self, num_rows: int, rows_per_step: int, seed: int, stage: int):
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}: a corpus split needs at least 1 row to order")
        if rows_per_step < 1:
            raise ValueError(f"rows_per_step={rows_per_step}: a step needs at least 1 row")
        self.num_rows = num_rows
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.stage = stage

    def indices(self, step: int) -> np.ndarray:
        """Row indices [rows_per_step] of a step; a rank takes its slice of them."""
        assert step >= 0
        return self.samples(np.arange(step * self.rows_per_step, (step + 1) * self.rows_per_step))

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """Row index of each global sample, numbered from 0 at the start of the stage."""
        epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), self.num_rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            key = permutation_key(self.seed, self.stage, int(epoch))
            rows[epochs == epoch] = permuted(places[epochs == epoch], self.num_rows, key)
        return rows

    def epoch(self, step: int) -> float:
        """Epochs that are complete once `step` steps have been taken."""
        return step * self.rows_per_step / self.num_rows
