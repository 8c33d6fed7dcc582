"""Against plain twins: scipy's own, loops, and a published example."""

import random

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from vpp_plugins.evaluate import metrics
from vpp_plugins.train.study.statistics import curve_at, holm, mean_of_curve, over_seeds, paired_difference


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_interval_over_seeds_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(0.6, 0.1, count).tolist()

    found = over_seeds(values)

    low, high = scipy.stats.t.interval(0.95, count - 1, np.mean(values), scipy.stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([0.25])
    assert (found.mean, found.low, found.high) == (0.25, None, None)


def slow_difference(
    differences: list[np.ndarray], images: list[np.ndarray], resamples: int
) -> tuple[float, float, float]:
    """Images drawn with loops, within each seed."""
    draws = random.Random(0)
    means = []
    for _ in range(resamples):
        by_seed = []
        for values, members in zip(differences, images, strict=True):
            names = sorted(set(members.tolist()))
            rows = [row for name in draws.choices(names, k=len(names)) for row in np.flatnonzero(members == name)]
            by_seed.append(np.mean([values[row] for row in rows]))
        means.append(np.mean(by_seed))
    return float(np.mean([one.mean() for one in differences])), *map(float, np.percentile(means, [2.5, 97.5]))


def test_the_paired_difference_is_that_of_plain_loops() -> None:
    generator = np.random.default_rng(0)
    images = [np.repeat(np.arange(30), 1 + np.arange(30) % 3)] * 3
    effects = [generator.normal(0.1, 0.3, 30) for _ in range(3)]
    differences = [
        np.clip(np.round(effect[members] + generator.normal(0, 0.5, len(members))), -1, 1)
        for effect, members in zip(effects, images, strict=True)
    ]

    found = paired_difference(differences, images)

    assert found.low is not None
    assert found.high is not None
    assert (found.mean, found.low, found.high) == pytest.approx(slow_difference(differences, images, 1500), abs=0.01)
    rows = [np.arange(len(members)) for members in images]
    alone = paired_difference(differences, rows)  # rows that stand or fall together make the interval wider
    assert alone.low is not None
    assert alone.high is not None
    assert found.high - found.low > 1.1 * (alone.high - alone.low)


def test_little_is_drawn_at_a_time_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, images = np.random.default_rng(1).normal(size=40), np.arange(40)
    whole = paired_difference([values], [images])
    monkeypatch.setattr(metrics, "_DRAWN", 4000)

    assert paired_difference([values], [images]) == whole


def test_p_values_are_near_those_of_a_t_test() -> None:
    generator = np.random.default_rng(3)
    for shift in (0.0, 0.15, 0.3):
        values = generator.normal(shift, 1, 200)
        found = paired_difference([values], [np.arange(200)])
        assert found.p_value == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_no_difference_at_all() -> None:
    found = paired_difference([np.zeros(10)] * 2, [np.arange(10)] * 2)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_holm_is_holms() -> None:
    """His example has 0.01, 0.04, 0.03 and 0.005 (Wikipedia, Holm-Bonferroni method): 0.03, 0.06, 0.06, 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7]) == [0.7]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_between_the_points_a_curve_is_straight() -> None:
    across = [1.0, 3.0, 4.0, 8.0]
    up = np.random.default_rng(0).random((4, 5))
    for x in (0.0, 1.0, 2.5, 3.0, 7.9, 8.0, 20.0):
        assert curve_at(x, across, up) == pytest.approx([np.interp(x, across, row) for row in up.T])


@pytest.mark.parametrize(("low", "high"), [(1.0, 8.0), (2.0, 3.5), (3.0, 4.0), (5.0, 7.0)])
def test_the_area_is_the_integral(low: float, high: float) -> None:
    across = [1.0, 3.0, 4.0, 8.0]
    up = np.random.default_rng(1).random((4, 3))
    expected = [
        scipy.integrate.quad(lambda x, row=row: np.interp(x, across, row), low, high, points=[3, 4])[0] / (high - low)
        for row in up.T
    ]
    assert mean_of_curve(low, high, across, up) == pytest.approx(expected, abs=1e-6)


def test_a_flat_curve_has_its_own_height() -> None:
    assert mean_of_curve(1, 9, [1.0, 4.0, 9.0], np.full((3, 2), 0.4)) == pytest.approx([0.4, 0.4])
