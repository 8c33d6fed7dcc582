"""Box data for a detector: images, each once, with all that is boxed in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vpp_plugins.boxes import BoxLike
from vpp_plugins.data import ImageError, Sample, image_path
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.errors import VPPError
from vpp_plugins.images import letterbox, load_image
from vpp_plugins.train.detector.loss import stack_objects

MOST_CLASSES = 2000
"""More different names than this are expressions, not categories."""
OBJECT = "object"
"""The name of the only class, where names are not told apart."""


@dataclass(frozen=True)
class BoxedImage:
    """An image and what is boxed in it: names, and boxes in xyxy pixels of it."""

    image: str
    size_hw: tuple[int, int]
    names: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]


class BoxedImages(Dataset[dict[str, Any]]):
    """Images on disk as a detector's inputs; `classes` are the names by number."""

    def __init__(self, images: Sequence[BoxedImage], folder: Path, classes: Sequence[str], *, side: int) -> None:
        self.images, self.folder, self.classes, self.side = images, folder, tuple(classes), side
        self._numbers = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        kept = [(self._numbers[name], box) for name, box in zip(image.names, image.boxes, strict=True)]
        pixels = letterbox(load_image(image_path(self.folder, image.image)), self.side)
        return {"pixel_values": pixels, "objects": kept, "size_hw": image.size_hw}


def collate_boxed(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch: `pixel_values`, and the objects' `classes` and `boxes_cxcywh`, filled up."""
    objects: list[tuple[list[int], list[BoxLike]]] = [
        ([number for number, _ in row["objects"]], [box for _, box in row["objects"]]) for row in rows
    ]
    stacked = stack_objects(objects, [row["size_hw"] for row in rows])
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "classes": stacked.classes, "boxes_cxcywh": stacked.boxes_cxcywh}


def load_boxed(
    path: Path, data_format: str, *, images: Path | None, split: str = "", one_class: bool = False
) -> tuple[list[BoxedImage], Path]:
    """Read a file of box data in any of the known formats; return its images and their folder.

    A category, or an expression, is the name of its boxes; with `one_class` all are called "object", and equal boxes
    count once. Raises VPPError where there is no box, where images are missing, and where the names are too many.
    """
    folder = images or (path if path.is_dir() else path.parent)
    reading = Reading(split=split)
    loaded = gather(read_samples(path, data_format, images=folder, reading=reading), one_class=one_class)
    if not loaded:
        found = "; ".join(f"{count} x {issue} ({examples})" for issue, count, examples in reading.tally.rows())
        raise VPPError(f"'{path}' holds no box to train a detector on{f': {found}' if found else ''}.")
    _check_there(loaded, folder)
    names = {name for image in loaded for name in image.names}
    if len(names) > MOST_CLASSES:
        raise VPPError(
            f"'{path}' has {len(names):,} different names, such as '{min(names)}': these are expressions, not "
            "categories, so train with one class (--one-class)."
        )
    return loaded, folder


def gather(samples: Iterable[Sample], *, one_class: bool) -> list[BoxedImage]:
    """Return the images of samples in the order they are met, each once, with all its located boxes."""
    found: dict[str, tuple[tuple[int, int], dict[tuple[str, tuple[float, ...]], None]]] = {}
    for sample in samples:
        for turn in sample.located():
            _, objects = found.setdefault(sample.image, ((sample.height, sample.width), {}))
            name = OBJECT if one_class else turn.expression
            objects |= dict.fromkeys((name, box) for box in turn.boxes)
    return [
        BoxedImage(image, size_hw, tuple(name for name, _ in objects), tuple(box for _, box in objects))
        for image, (size_hw, objects) in found.items()
        if objects
    ]


def _check_there(images: Sequence[BoxedImage], folder: Path) -> None:
    missing = [image.image for image in images if not _is_there(folder, image.image)]
    if missing:
        raise VPPError(
            f"{len(missing)} of {len(images)} images are not in '{folder}', such as {', '.join(missing[:3])}: give "
            "their folder (--images), or leave them out of the data."
        )


def _is_there(folder: Path, name: str) -> bool:
    try:
        return image_path(folder, name).is_file()
    except ImageError:
        return False
