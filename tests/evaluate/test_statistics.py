import numpy as np
import pytest

from vpp_plugins import VPPError
from vpp_plugins.evaluate.metrics import interval, paired, share_interval


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        values = (random.random(200) < 0.3).astype(float).tolist()
        found = interval(values, range(200), seed=trial)
        covered += found.low <= 0.3 <= found.high

    assert covered >= 51  # 95 % of 60 is 57; fewer than 51 happens once in a thousand


def test_rows_of_one_image_count_as_one() -> None:
    values = [0.0, 1.0] * 50
    apart = interval(values, range(100))
    together = interval(values, [row // 10 for row in range(100)])
    alike = interval(sorted(values), [row // 10 for row in range(100)])

    assert apart.high - apart.low == pytest.approx(0.2, abs=0.03)
    assert together.high == together.low == 0.5  # every image has half of its rows right
    assert alike.high - alike.low > 0.5  # whole images are right or wrong


def test_the_seed_fixes_it() -> None:
    assert interval([0.0, 1.0, 1.0], "abc", seed=3) == interval([0.0, 1.0, 1.0], "abc", seed=3)


class TestShares:
    def test_nothing_of_n_and_all_of_n_have_room_for_doubt(self) -> None:
        """The bootstrap gave 0 to 0: drawn again, the same images say the same."""
        none, all_ = share_interval([0.0] * 10, range(10)), share_interval([1.0] * 10, range(10))

        assert (none.mean, none.low, none.method) == (0, 0, "Wilson")
        assert none.high == pytest.approx(0.2775, abs=1e-4)  # z^2 / (n + z^2)
        assert (all_.mean, all_.low, all_.high) == (1, pytest.approx(1 - none.high), 1)

    def test_a_image_is_one_trial_however_many_rows_it_has(self) -> None:
        assert share_interval([0.0] * 50, [row // 5 for row in range(50)]) == share_interval([0.0] * 10, range(10))

    def test_one_image_alone(self) -> None:
        found = share_interval([0.0, 1.0], "aa")

        assert (found.mean, found.method) == (0.5, "Wilson")
        assert found.low < 0.1 < 0.9 < found.high

    def test_all_else_is_the_bootstrap_s(self) -> None:
        values = [0.0, 1.0, 1.0, 0.0, 1.0]

        assert share_interval(values, range(5)) == interval(values, range(5))
        assert interval(values, range(5)).method == "bootstrap"


class TestPaired:
    def test_equal_evaluations(self) -> None:
        found = paired([0.0, 1.0, 1.0], [0.0, 1.0, 1.0], "abc")

        assert (found.difference.mean, found.only_a, found.only_b, found.p_value) == (0, 0, 0, 1)

    def test_mcnemar_counts_only_what_changed(self) -> None:
        a, b = [1.0] * 50 + [0.0] * 10, [1.0] * 50 + [1.0] * 10
        found = paired(a, b, range(60))

        assert (found.only_a, found.only_b) == (0, 10)
        assert found.p_value == pytest.approx(2 / 2**10)
        assert found.difference.low > 0

    def test_overlaps_have_no_mcnemar(self) -> None:
        assert paired([0.2, 0.4], [0.3, 0.5], "ab").p_value is None


def test_bad_input() -> None:
    with pytest.raises(VPPError, match="one group per value is expected, but 1 came for 2"):
        interval([0.0, 1.0], "a")
    with pytest.raises(VPPError, match="two evaluations of the same rows"):
        paired([0.0], [0.0, 1.0], "a")
