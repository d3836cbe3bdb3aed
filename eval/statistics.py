"""Intervals and paired comparisons for accuracies."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

# Bounds the memory of a resampling: indices drawn at a time.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Difference:
    """How far two backbones are apart on the same items.

    Attributes:
        difference: accuracy of the first minus accuracy of the second.
        low, high: bounds of the bootstrap interval.
        p_value: two-sided; the chance of a gap at least as large were the two interchangeable.
        items: number of items that both answered.
        clusters: number of independent groups that the items form (equal to items if ungrouped).
    """

    difference: float
    low: float
    high: float
    p_value: float
    items: int
    clusters: int


def wilson(
    correct: npt.ArrayLike, total: npt.ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the Wilson score interval of a share (Wilson 1927, eq. 4).

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 of n and n of n.

    Args:
        correct: number of successes, any shape.
        total: number of trials, at least 1, of the same shape.
        confidence: coverage, for example 0.95.

    Raises:
        ValueError: a total below 1, or more successes than trials.
    """
    hits, trials = np.asarray(correct, dtype=float), np.asarray(total, dtype=float)
    if (trials < 1).any() or (hits < 0).any() or (hits > trials).any():
        raise ValueError("wilson: needs 0 <= correct <= total and total >= 1")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, ratio = hits / trials, z * z / trials
    centre = (share + ratio / 2) / (1 + ratio)
    half = z / (1 + ratio) * np.sqrt(share * (1 - share) / trials + ratio / (4 * trials))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare two backbones on the same items: paired bootstrap and sign-flip test.

    Without clusters the sign-flip test is McNemar's: only items that exactly one of the two
    answers correctly count. With clusters (items made from one template or graph) whole clusters
    are drawn and flipped, since their items succeed and fail together.

    Args:
        first: correctness of the first backbone, one value an item.
        second: correctness of the second, in the same order.
        clusters: the group of each item, or None where items are independent.
        confidence: coverage of the interval.
        resamples: number of bootstrap draws and of sign flips.
        seed: of the draws; equal inputs give equal results.

    Raises:
        ValueError: no items, or arrays of unequal length.
    """
    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    groups = np.arange(len(gaps)) if clusters is None else np.asarray(clusters)
    if len(gaps) == 0 or len(groups) != len(gaps):
        raise ValueError("paired_difference: needs at least one item and one cluster an item")
    _, place = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(place, weights=gaps), np.bincount(place).astype(float)
    rng = np.random.Generator(np.random.Philox(seed))
    draws = _bootstrap(sums, sizes, resamples, rng)
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    p_value = _sign_flip(sums, resamples, rng)
    return Difference(float(gaps.mean()), float(low), float(high), p_value, len(gaps), len(sums))


def _bootstrap(
    sums: np.ndarray, sizes: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Mean gaps of resampled clusters (a ratio of sums, since clusters differ in size)."""
    rows = max(1, _CHUNK // len(sums))
    draws = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(sums))
        chosen = rng.integers(len(sums), size=shape)
        draws.append(sums[chosen].sum(1) / sizes[chosen].sum(1))
    return np.concatenate(draws)


def _sign_flip(sums: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """Share of random sign patterns whose total is at least as far from 0 (Phipson & Smyth)."""
    gaps = sums[sums != 0]
    if len(gaps) == 0:
        return 1.0
    rows, reached = max(1, _CHUNK // len(gaps)), 0
    for start in range(0, resamples, rows):
        signs = rng.integers(2, size=(min(rows, resamples - start), len(gaps))) * 2 - 1
        reached += int((np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9).sum())
    return (1 + reached) / (1 + resamples)
