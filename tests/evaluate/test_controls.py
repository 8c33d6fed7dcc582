import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import Row, full_image, mean_box, random_object, score, shuffled, shuffled_rows


def labelled(sizes: list[int], seed: int = 0) -> tuple[list[str], list[str]]:
    """Expressions of images that have so many each, in mixed order, named after their image."""
    groups = [f"image {number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(groups)
    return [f"{group}: {index}" for index, group in enumerate(groups)], groups


SIZES = [[1, 1], [3, 3], [4, 2, 2], [5, 1, 1, 1, 1, 1], [1] * 50, [2, 3, 5, 7, 11], [20, 20]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_no_image_keeps_an_expression_of_its_own(sizes: list[int], seed: int) -> None:
    expressions, groups = labelled(sizes, seed)

    mixed = shuffled(expressions, groups, seed=seed)

    assert sorted(mixed) == sorted(expressions)
    assert all(not taken.startswith(f"{group}:") for taken, group in zip(mixed, groups, strict=True))


@pytest.mark.parametrize("sizes", [[1], [5], [5, 1], [6, 2, 1]])
def test_where_one_image_has_most_as_many_as_possible_are_exchanged(sizes: list[int]) -> None:
    expressions, groups = labelled(sizes)

    mixed = shuffled(expressions, groups)

    own = sum(taken.startswith(f"{group}:") for taken, group in zip(mixed, groups, strict=True))
    assert sorted(mixed) == sorted(expressions)
    assert own == 2 * max(sizes) - sum(sizes)


def test_the_seed_decides_also_which_images_exchange() -> None:
    expressions, groups = labelled([2] * 10)

    assert shuffled(expressions, groups, seed=1) == shuffled(expressions, groups, seed=1)

    partners = {seed: shuffled(groups, groups, seed=seed) for seed in range(4)}
    assert len({tuple(order) for order in partners.values()}) == 4


def test_the_order_is_the_same_in_every_process() -> None:
    """Groups are hashed, and Python hashes text differently in every process."""
    expressions, groups = labelled([2, 3, 4])
    code = f"from vpp_plugins.evaluate import shuffled; print(shuffled({expressions}, {groups}))"

    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert other == str(shuffled(expressions, groups))


def test_groups_may_be_anything_hashable_and_lists_may_be_empty() -> None:
    assert shuffled([], []) == []
    assert shuffled(["a", "b"], [1, "1"]) == ["b", "a"]
    with pytest.raises(VPPError, match="1 came for 2"):
        shuffled(["a", "b"], [1])


def test_a_whole_benchmark_is_shuffled_in_no_time() -> None:
    """Counting every image anew made 20,000 images a matter of minutes."""
    groups = [index // 3 for index in range(60_000)]
    began = time.perf_counter()

    mixed = shuffled(groups, groups)

    assert time.perf_counter() - began < 5
    assert Counter(mixed) == Counter(groups)


def test_the_whole_image_is_width_then_height() -> None:
    assert full_image((480, 640)) == (0, 0, 640, 480)
    assert score([full_image((480, 640))], [(0.0, 0.0, 640.0, 240.0)]).mean_iou == 0.5


def test_the_mean_box_is_in_units_of_each_image() -> None:
    boxes = [(0.0, 0.0, 50.0, 50.0), (100.0, 100.0, 200.0, 400.0)]

    assert mean_box(boxes, [(100, 100), (400, 200)]) == pytest.approx((0.25, 0.125, 0.75, 0.75))
    with pytest.raises(VPPError, match="1 came for 2 boxes"):
        mean_box(boxes, [(100, 100)])
    with pytest.raises(VPPError, match="0 came for 0 boxes"):
        mean_box([], [])


def test_a_random_object_is_one_of_the_images() -> None:
    objects = [(float(i), 0.0, i + 1.0, 1.0) for i in range(4)]

    chosen = [random_object(objects, seed=seed) for seed in range(50)]

    assert set(chosen) == set(objects)
    assert chosen == [random_object(objects, seed=seed) for seed in range(50)]
    with pytest.raises(VPPError, match="no objects"):
        random_object([], seed=0)


def test_rows_that_keep_an_expression_of_their_own_image_are_counted(rows: list[Row]) -> None:
    """A control of one row was that row itself, and right."""
    with pytest.warns(UserWarning, match="1 of 1 rows are asked with an expression of their own image"):
        assert shuffled_rows(rows[:1]) == rows[:1]


def test_shuffled_rows_change_their_expressions_alone(rows: list[Row]) -> None:
    mixed = shuffled_rows(rows)

    assert [(row.id, row.box, row.kind, row.category) for row in mixed] == [
        (row.id, row.box, row.kind, row.category) for row in rows
    ]
    assert [row.expression for row in mixed] == shuffled(
        [row.expression for row in rows], [row.id.rpartition("/")[0] for row in rows]
    )
    assert all(one.expression != other.expression for one, other in zip(rows, mixed, strict=True))
