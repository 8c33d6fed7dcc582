"""Sets of boxes against sets of boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_plugins.boxes import count_pairs, count_repeats, least_overlap


def test_a_greedy_choice_does_not_cost_a_pair() -> None:
    """The first found box fits both true ones, the second only the one that it fits better."""
    assert count_pairs(np.array([[True, True], [True, False]])) == 2


def test_a_hundred_boxes_are_one_pair_where_one_is_there() -> None:
    assert count_pairs(np.ones((100, 1), dtype=bool)) == 1
    assert least_overlap(np.ones((100, 1))) == 0


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_every_threshold_up_to_the_least_overlap_is_met_and_none_above(rows: list[list[float]]) -> None:
    overlaps = np.array(rows)
    least = least_overlap(overlaps)
    assert count_pairs(overlaps >= least) == len(rows)
    above = overlaps[overlaps > least]
    assert not above.size or count_pairs(overlaps >= above.min()) < len(rows)


@pytest.mark.parametrize(("boxes", "count"), [([], 0), ([(0, 0, 1, 1)], 0), ([(0, 0, 1, 1), [0.0, 0, 1, 1]], 1)])
def test_repeats(boxes: list, count: int) -> None:
    assert count_repeats(boxes) == count
