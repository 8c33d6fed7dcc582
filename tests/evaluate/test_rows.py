import random
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from tests.evaluate.conftest import make_rows
from vpp_plugins import VPPError
from vpp_plugins.evaluate.rows import Row, plan


def asking(per_image: list[int], *, seed: int = 0) -> list[Row]:
    """Rows of so many questions about each image, shuffled; every third image is of another size."""
    (row,) = make_rows(1)
    rows = [
        replace(
            row,
            id=f"{image}/{number}",
            image=Path(f"{image}.png"),
            size_hw=[(20, 40), (40, 20), (30, 30)][image % 3],
            expression="word " * (1 + (7 * image + number) % 5),
        )
        for image, count in enumerate(per_image)
        for number in range(count)
    ]
    random.Random(seed).shuffle(rows)
    return rows


@pytest.mark.parametrize("per_image", [[1] * 20, [9] * 5, [3, 1, 4, 1, 5, 2, 6, 5, 3, 5], [40], [5, 5, 5], []])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 32])
def test_every_row_comes_once_and_no_batch_is_too_large(per_image: list[int], batch_size: int) -> None:
    rows = asking(per_image)
    batches = plan(rows, batch_size)

    assert sorted(chain.from_iterable(batches)) == list(range(len(rows)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_questions_about_one_image_are_asked_together() -> None:
    rows = asking([3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 8])
    batches = plan(rows, 8)

    encodings = sum(len({rows[row].file for row in batch}) for batch in batches)
    assert encodings == 11
    assert len(batches) <= 7, "43 questions fill six batches of 8"


def test_more_questions_about_a_image_than_fit_are_asked_in_the_fewest_batches() -> None:
    rows = asking([20, 4])
    batches = plan(rows, 8)

    assert sum(len({rows[row].file for row in batch}) for batch in batches) == 4
    assert [len(batch) for batch in batches] == [8, 8, 8]


def test_images_in_a_batch_are_alike() -> None:
    rows = asking([2] * 60)
    batches = plan(rows, 4)

    assert sum(len({rows[row].size_hw for row in batch}) > 1 for batch in batches) <= 2


def test_the_plan_does_not_depend_on_where_images_lie_in_memory() -> None:
    """Other processes, and the one that goes on after a kill, must make the very same plan."""
    assert plan(make_rows(30), 4) == plan(make_rows(30), 4)


def test_many_rows_are_planned_in_no_time() -> None:
    """Images whose questions never fit together are not looked through again for each batch."""
    assert len(plan(asking([5] * 4000), 8)) == 4000


def test_a_batch_holds_at_least_one() -> None:
    with pytest.raises(VPPError, match="batch_size must be at least 1, but is 0"):
        plan(make_rows(3), 0)
