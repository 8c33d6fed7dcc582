"""COCO: `{"images", "annotations", "categories"}`, boxes xywh in pixels. A category's name serves as the expression."""

import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vpp_plugins.data.formats.reading import Reading, Writing, array_into, json_bytes, positive_size, text_of
from vpp_plugins.data.json_stream import stream_array
from vpp_plugins.data.record import PIXELS_XYWH, Record
from vpp_plugins.data.sample import Locate, Numbers, Sample, numbers_of
from vpp_plugins.data.tally import Issue
from vpp_plugins.files import whole_file


def coco_images(path: Path) -> dict[int, tuple[str, tuple[int, int] | None]]:
    """Return the file name and (width, height) of each image by its id."""
    images = {}
    for image in stream_array(path, "images"):
        if isinstance(image, dict) and isinstance(image.get("id"), int) and isinstance(image.get("file_name"), str):
            images[image["id"]] = (image["file_name"], positive_size(image.get("width"), image.get("height")))
    return images


def read_coco(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per image that has objects: a Locate per category with all its boxes. Crowds are left out."""
    images = coco_images(path)
    names = {
        category["id"]: text_of(category.get("name"))
        for category in stream_array(path, "categories")
        if isinstance(category, dict) and isinstance(category.get("id"), int)
    }
    for image_id, rows in _grouped(path, images, names, reading).items():
        name, size_wh = images[image_id]
        boxes: dict[int, list[Numbers]] = {}
        for at in range(0, len(rows), 5):
            boxes.setdefault(int(rows[at]), []).append(tuple(rows[at + 1 : at + 5]))
        turns = tuple(Locate(names[category], tuple(found)) for category, found in boxes.items())
        yield Record(str(image_id), reading.image_name(name), size_wh, turns, PIXELS_XYWH)


def _grouped(
    path: Path, images: dict[int, tuple[str, tuple[int, int] | None]], names: dict[int, str], reading: Reading
) -> dict[int, "array[float]"]:
    """The annotations stand in any order; kept as five numbers each, a million of them take 40 MB."""
    rows: dict[int, array[float]] = {}
    for number, annotation in enumerate(stream_array(path, "annotations", largest=reading.largest)):
        found = annotation if isinstance(annotation, dict) else {}
        place = f"annotation {text_of(found.get('id')) or f'#{number}'}"
        image, category, numbers = found.get("image_id"), found.get("category_id"), numbers_of(found.get("bbox"))
        if found.get("iscrowd"):
            reading.tally.add(Issue.CROWD, place)
        elif (
            not isinstance(image, int) or image not in images or not isinstance(category, int) or category not in names
        ):
            reading.tally.add(Issue.BAD_FIELD, place, "image_id or category_id")
        elif numbers is None or len(numbers) != 4:
            reading.tally.add(Issue.WRONG_COUNT, place, str(found.get("bbox")))
        else:
            rows.setdefault(image, array("d")).extend((category, *numbers))
    return rows


def write_coco(samples: Iterable[Sample], writing: Writing) -> None:
    """Write each located box as an annotation; every expression is a category of its own."""
    coco = CocoWriter()
    with whole_file(writing.path) as file:
        coco.write(_annotated(samples, coco, writing), file)


def _annotated(samples: Iterable[Sample], coco: "CocoWriter", writing: Writing) -> Iterator[tuple[int, str, Numbers]]:
    for sample in samples:
        image_id = coco.image_id(sample)
        for turn in sample.turns:
            if isinstance(turn, Locate):
                yield from ((image_id, turn.expression, box) for box in turn.boxes)
            else:
                writing.tally.add(Issue.NOT_WRITABLE, sample.id)


class CocoWriter:
    """Writes the three lists of a COCO file in one pass; the annotations wait in a temporary file."""

    def __init__(self) -> None:
        self._images: dict[str, tuple[int, int, int]] = {}
        self._categories: dict[str, int] = {}

    def image_id(self, sample: Sample) -> int:
        """Return the number of a sample's image, a new one for a new name."""
        number, _, _ = self._images.setdefault(sample.image, (len(self._images) + 1, sample.width, sample.height))
        return number

    def write(self, boxes: Iterable[tuple[int, str, Numbers]], file: IO[bytes]) -> None:
        """Write the whole file from (number of the image, category, xyxy box)."""
        with tempfile.TemporaryFile() as waiting:
            array_into(waiting, self._annotations(boxes))
            waiting.seek(0)
            file.write(b'{"images": ')
            array_into(file, self._image_rows())
            file.write(b', "annotations": ')
            shutil.copyfileobj(waiting, file)
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        file.write(b', "categories": ' + json_bytes(categories) + b"}\n")

    def _annotations(self, boxes: Iterable[tuple[int, str, Numbers]]) -> Iterator[dict[str, Any]]:
        for number, (image_id, name, (x1, y1, x2, y2)) in enumerate(boxes, start=1):
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": self._categories.setdefault(name, len(self._categories) + 1),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }

    def _image_rows(self) -> Iterator[dict[str, Any]]:
        for name, (number, width, height) in self._images.items():
            yield {"id": number, "file_name": name, "width": width, "height": height}
