"""Baselines that cannot ground: a grounding model must beat all of them."""

import random
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from vpp_plugins.boxes import Box
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.rows import Row, image_id

Item = TypeVar("Item")


def shuffled(expressions: Sequence[Item], groups: Sequence[Hashable], *, seed: int = 0) -> list[Item]:
    """Return the same expressions in another order, each one from another group (image) where that is possible.

    Answers to these, scored against the original boxes, show how much of an accuracy comes from boxing something
    salient.
    """
    if len(expressions) != len(groups):
        raise VPPError(f"one group per expression is expected, but {len(groups)} came for {len(expressions)}.")
    order = list(range(len(expressions)))
    random.Random(seed).shuffle(order)
    rank: dict[Hashable, int] = {}
    for index in order:
        rank.setdefault(groups[index], len(rank))
    order.sort(key=lambda index: rank[groups[index]])  # groups stand together, in random order
    largest = max(Counter(groups).values(), default=0)
    turned = order[largest:] + order[:largest]  # shifted by the largest group, nobody gets their own
    source = dict(zip(order, turned, strict=True))
    return [expressions[source[index]] for index in range(len(order))]


def shuffled_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, each with an expression of another image where that is possible; all else is as it was.

    Warns where it is not, which is where more than half of the rows are of one image.
    """
    images = [image_id(row.file, row.id) for row in rows]
    sources = shuffled(range(len(rows)), images)
    own = sum(image == images[source] for image, source in zip(images, sources, strict=True))
    if own:
        warnings.warn(
            f"{own} of {len(rows)} rows are asked with an expression of their own image, which is no control: take "
            "rows of more images, none of them with more than half of the rows.",
            stacklevel=2,
        )
    return [replace(row, expression=rows[source].expression) for row, source in zip(rows, sources, strict=True)]


def full_image(size_hw: tuple[int, int]) -> Box:
    """Return the whole image as a box."""
    return 0.0, 0.0, float(size_hw[1]), float(size_hw[0])


def mean_box(boxes: Sequence[Box], sizes_hw: Sequence[tuple[int, int]]) -> Box:
    """Return the mean of training boxes in units of their images, 0 to 1; scale it to an image to use it."""
    if not boxes or len(boxes) != len(sizes_hw):
        raise VPPError(f"one image size per box is expected, but {len(sizes_hw)} came for {len(boxes)} boxes.")
    relative = [
        (left / width, top / height, right / width, bottom / height)
        for (left, top, right, bottom), (height, width) in zip(boxes, sizes_hw, strict=True)
    ]
    left, top, right, bottom = (sum(column) / len(relative) for column in zip(*relative, strict=True))
    return left, top, right, bottom


def random_object(objects: Sequence[Box], *, seed: int) -> Box:
    """Return one of an image's objects, perfectly boxed: what boxing without reading reaches.

    Equal seeds choose the same place in every list of one length: give each image its own.
    """
    if not objects:
        raise VPPError("this image lists no objects to choose from.")
    return random.Random(seed).choice(list(objects))
