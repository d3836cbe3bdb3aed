"""Intervals cover what they promise; paired comparisons see what unpaired ones cannot."""

import numpy as np
import pytest

from eval.statistics import paired_difference, wilson


def test_wilson_equals_published_values():
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    low, high = wilson([81, 15, 0, 1], [263, 148, 20, 29])
    assert low == pytest.approx([0.2553, 0.0624, 0.0, 0.0061], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=5e-5)


@pytest.mark.parametrize(("total", "half"), [(200, 0.069), (500, 0.044), (2000, 0.022)])
def test_wilson_half_width_at_one_half(total, half):
    low, high = wilson(total // 2, total)
    assert (high - low) / 2 == pytest.approx(half, abs=5e-4)


def test_wilson_covers_a_rare_success():
    rng = np.random.Generator(np.random.Philox(1))
    low, high = wilson(rng.binomial(200, 0.02, size=4000), np.full(4000, 200))
    assert ((low <= 0.02) & (high >= 0.02)).mean() > 0.92


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(correct, total):
    with pytest.raises(ValueError, match="correct <= total"):
        wilson(correct, total)


def test_only_disagreements_matter():
    agree = np.ones(400, dtype=bool)
    first, second = agree.copy(), agree.copy()
    second[:12] = False
    found = paired_difference(first, second)
    assert found.difference == pytest.approx(0.03)
    assert 0 < found.low < 0.03 < found.high < 0.06
    # McNemar, exact: 2 * 0.5 ** 12 = 0.0005, too rare for 2000 flips to see often.
    assert found.p_value < 0.004
    assert (found.items, found.clusters) == (400, 400)


def test_p_value_agrees_with_the_exact_test():
    first, second = np.zeros(100), np.zeros(100)
    first[:8], second[8:10] = 1, 1
    # Binomial, two-sided, 2 of 10: 2 * (1 + 10 + 45) / 1024.
    exact = 2 * 56 / 1024
    assert paired_difference(first, second, resamples=20000).p_value == pytest.approx(
        exact, abs=0.01
    )


def test_equal_answers_do_not_differ():
    right = np.array([1, 0, 1, 1])
    found = paired_difference(right, right)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_same_input_gives_the_same_interval():
    rng = np.random.Generator(np.random.Philox(2))
    first, second = rng.random(300) < 0.7, rng.random(300) < 0.6
    assert paired_difference(first, second) == paired_difference(first, second)


def test_clusters_widen_the_interval_of_dependent_items():
    rng = np.random.Generator(np.random.Philox(3))
    gaps = np.repeat(rng.choice([-1.0, 0.0, 1.0], size=40), 25)
    first, second = np.maximum(gaps, 0), np.maximum(-gaps, 0)
    alone = paired_difference(first, second)
    together = paired_difference(first, second, clusters=np.repeat(np.arange(40), 25))
    assert together.clusters == 40
    assert together.difference == alone.difference
    assert together.high - together.low > 4 * (alone.high - alone.low)


def test_clustered_test_rarely_rejects_when_nothing_differs():
    rng = np.random.Generator(np.random.Philox(4))
    clusters = np.repeat(np.arange(30), 10)
    rejected = 0
    for _ in range(150):
        gaps = np.repeat(rng.choice([-1.0, 1.0], size=30), 10)
        found = paired_difference(
            np.maximum(gaps, 0), np.maximum(-gaps, 0), clusters, resamples=300
        )
        rejected += found.p_value < 0.05
    assert rejected < 18


def test_clusters_may_be_names_in_any_order():
    first, second = [1, 0, 1, 0], [0, 0, 0, 1]
    found = paired_difference(first, second, clusters=["b", "a", "b", "a"])
    assert found.clusters == 2


@pytest.mark.parametrize("clusters", [None, [1]])
def test_nothing_to_compare_is_refused(clusters):
    with pytest.raises(ValueError, match="at least one item"):
        paired_difference([], [], clusters)
