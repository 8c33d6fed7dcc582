"""COCO: `{"images", "annotations", "categories"}`, boxes xywh in pixels. A category's name serves as the expression."""

import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vpp_plugins.data.formats.reading import Reading, Writing, array_into, json_bytes, positive_size, text_of
from vpp_plugins.data.json_stream import stream_array
from vpp_plugins.data.record import PIXELS_XYWH, Record
from vpp_plugins.data.sample import Issue, Locate, Numbers, Sample, Tally, numbers_of
from vpp_plugins.files import whole_file

Named = TypeVar("Named")


def coco_images(path: Path, tally: Tally) -> dict[int, tuple[str, tuple[int, int] | None]]:
    """Return the file name and (width, height) of each image by its id.

    Of merged sets: an id of two images, and a name of images of two sizes, mean neither; they are counted.
    """
    images = by_id(
        (
            (image["id"], (image["file_name"], positive_size(image.get("width"), image.get("height"))))
            for image in stream_array(path, "images")
            if isinstance(image, dict) and isinstance(image.get("id"), int) and isinstance(image.get("file_name"), str)
        ),
        "image",
        tally,
    )
    sizes: dict[str, set[tuple[int, int]]] = {}
    for name, size_wh in images.values():
        sizes.setdefault(name, set()).update({size_wh} if size_wh else ())
    for name, found in sizes.items():
        if len(found) > 1:
            tally.add(Issue.REPEATED_ID, f"images '{name}'", f"of {len(found)} sizes")
    return {key: image for key, image in images.items() if len(sizes[image[0]]) <= 1}


def by_id(entries: Iterable[tuple[int, Named]], kind: str, tally: Tally) -> dict[int, Named]:
    """Return things by their ids, without those whose id stands for different things, which are counted."""
    found: dict[int, Named] = {}
    twice: set[int] = set()
    for key, value in entries:
        if found.setdefault(key, value) != value:
            twice.add(key)
    for key in sorted(twice):
        tally.add(Issue.REPEATED_ID, f"{kind} {key}", str(found.pop(key)))
    return found


def read_coco(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per image that has objects: a Locate per category with all its boxes. Crowds are left out."""
    images = coco_images(path, reading.tally)
    categories = (
        (category["id"], text_of(category.get("name")))
        for category in stream_array(path, "categories")
        if isinstance(category, dict) and isinstance(category.get("id"), int)
    )
    names = by_id(categories, "category", reading.tally)
    for image_id, rows in _grouped(path, images, names, reading).items():
        name, size_wh = images[image_id]
        boxes: dict[str, list[Numbers]] = {}  # by name: merged sets have several ids for one
        for at in range(0, len(rows), 5):
            boxes.setdefault(names[int(rows[at])], []).append(tuple(rows[at + 1 : at + 5]))
        turns = tuple(Locate(category, tuple(found)) for category, found in boxes.items())
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
            reading.tally.add(Issue.WRONG_COUNT, place)
        else:
            rows.setdefault(image, array("d")).extend((category, *numbers))
    return rows


def write_coco(samples: Iterable[Sample], writing: Writing) -> None:
    """Write each located box as an annotation; every expression is a category of its own.

    The annotations wait in a temporary file, since the images stand before them.
    """
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    with whole_file(writing.path) as file, tempfile.TemporaryFile() as waiting:
        array_into(waiting, _annotations(samples, images, categories, writing))
        waiting.seek(0)
        file.write(b'{"images": ')
        array_into(file, images.values())
        file.write(b', "annotations": ')
        shutil.copyfileobj(waiting, file)
        named = [{"id": number, "name": name} for name, number in categories.items()]
        file.write(b', "categories": ' + json_bytes(named) + b"}\n")


def _annotations(
    samples: Iterable[Sample], images: dict[str, dict[str, Any]], categories: dict[str, int], writing: Writing
) -> Iterator[dict[str, Any]]:
    """Yield the annotations, numbered from 1, and note the images and categories as they come."""
    number = 0
    for sample in samples:
        located = [turn for turn in sample.located() if turn.boxes]
        if len(located) < len(sample.turns):
            writing.tally.add(Issue.NOT_WRITABLE, sample.id)
        if not located:
            continue
        about = {"file_name": sample.image, "width": sample.width, "height": sample.height}
        image = images.setdefault(sample.image, {"id": len(images) + 1, **about})
        if about.items() - image.items():
            writing.tally.add(Issue.NOT_WRITABLE, sample.id, f"'{sample.image}' had another size before")
            continue
        writing.written.add(located)
        for turn in located:
            category = categories.setdefault(turn.expression, len(categories) + 1)
            for x1, y1, x2, y2 in turn.boxes:
                number += 1
                box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
                row = {"id": number, "image_id": image["id"], "category_id": category}
                yield {**row, "bbox": box, "area": area, "iscrowd": 0}
