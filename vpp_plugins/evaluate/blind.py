"""Baselines that cannot ground: a grounding model must beat all of them."""

import random
from collections.abc import Sequence
from typing import TypeVar

from vpp_plugins.boxes import Box
from vpp_plugins.errors import VPPError

Item = TypeVar("Item")


def shuffled(expressions: Sequence[Item], groups: Sequence[object], *, seed: int = 0) -> list[Item]:
    """Return the same expressions in another order, each one from another group (picture) where that is possible.

    Answers to these, scored against the original boxes, show how much of an accuracy comes from boxing something salient.
    """
    if len(expressions) != len(groups):
        raise VPPError(f"one group per expression is expected, but {len(groups)} came for {len(expressions)}.")
    order = list(range(len(expressions)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: str(groups[index]))  # stable: random within a group, and groups stand together
    largest = max((sum(group == other for other in groups) for group in set(groups)), default=0)
    turned = order[largest:] + order[:largest]  # shifted by the largest group, nobody meets their own
    result: list[Item | None] = [None] * len(order)
    for place, taken in zip(order, turned, strict=True):
        result[place] = expressions[taken]
    return result  # type: ignore[return-value]


def full_image(size_hw: tuple[int, int]) -> Box:
    """Return the whole picture as a box."""
    return 0.0, 0.0, float(size_hw[1]), float(size_hw[0])


def mean_box(boxes: Sequence[Box], sizes_hw: Sequence[tuple[int, int]]) -> Box:
    """Return the mean of training boxes in units of their pictures, 0 to 1; scale it to a picture to use it."""
    if not boxes or len(boxes) != len(sizes_hw):
        raise VPPError(f"one picture size per box is expected, but {len(sizes_hw)} came for {len(boxes)} boxes.")
    relative = [
        (left / width, top / height, right / width, bottom / height)
        for (left, top, right, bottom), (height, width) in zip(boxes, sizes_hw, strict=True)
    ]
    left, top, right, bottom = (sum(column) / len(relative) for column in zip(*relative, strict=True))
    return left, top, right, bottom


def random_object(objects: Sequence[Box], *, seed: int) -> Box:
    """Return one of a picture's objects, perfectly boxed: what boxing without reading reaches."""
    return random.Random(seed).choice(list(objects))
