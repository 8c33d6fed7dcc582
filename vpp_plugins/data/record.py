"""From what a file says to neutral samples: sizes found, boxes checked and brought to pixels, faults counted."""

import json
import math
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from PIL import ExifTags, Image, UnidentifiedImageError

from vpp_plugins.boxes import (
    Box,
    BoxCodec,
    BoxFault,
    BoxStatus,
    Frame,
    ImageMeta,
    box_fault,
    frame_rectangle,
    inside_image,
)
from vpp_plugins.data.json_stream import stream_lines
from vpp_plugins.data.sample import (
    BOX,
    Describe,
    Issue,
    Locate,
    Numbers,
    RefusedError,
    Sample,
    Talk,
    Tally,
    Turn,
    text_of_turn,
)
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file

_CLIMBS = re.compile(r"(?:\A|[/\\])\.\.(?:[/\\]|\Z)")
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_DAMAGED = (struct.error, LookupError, TypeError, ArithmeticError)
_HUGE = 1e6
PATCH = 28
"""Qwen's processors make the sides of images multiples of it, in pixels."""
_SLACK_PX = 0.5  # annotation tools round to the pixel
ROW = -1
"""Length of an image that is in a row of a table; its start is the row's number."""

Order: TypeAlias = Literal["xyxy", "xywh", "yxyx", "cxcywh"]
"""Two corners; a corner, width and height; two corners, y first; the middle, width and height, as in YOLO's files."""


@dataclass(frozen=True)
class PixelBudget:
    """The size to which Qwen's processors resize an image: sides in patches of 28, and so many pixels in all."""

    least: int = 56 * 56
    most: int = 16_384 * 28 * 28

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise VPPError(f"the pixels of a resized image are {self.least:,} to {self.most:,}: no image has so many.")

    def __str__(self) -> str:
        return f"{self.least:,} to {self.most:,} pixels, sides in steps of {PATCH}"

    def __call__(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of an image after resizing, as `smart_resize` of transformers does."""
        sides = [round(side / PATCH) * PATCH for side in size_hw]
        pixels = size_hw[0] * size_hw[1]
        if math.prod(sides) > self.most:
            shrink = math.sqrt(pixels / self.most)
            sides = [max(PATCH, math.floor(side / shrink / PATCH) * PATCH) for side in size_hw]
        elif math.prod(sides) < self.least:
            grow = math.sqrt(self.least / pixels)
            sides = [math.ceil(side * grow / PATCH) * PATCH for side in size_hw]
        return sides[0], sides[1]


@dataclass(frozen=True)
class LongSide:
    """The size of an image that was resized to a long side of so many pixels, its shape kept."""

    side: int

    def __str__(self) -> str:
        return f"a long side of {self.side}"

    def __call__(self, size_hw: tuple[int, int]) -> tuple[float, float]:
        """Return the height and width after resizing."""
        return size_hw[0] * self.side / max(size_hw), size_hw[1] * self.side / max(size_hw)


@dataclass(frozen=True)
class BoxUnit:
    """How a file means the numbers of a box: the frame, the number of its far edge (None: pixels), and their order."""

    frame: Frame = "image"
    full: float | None = None
    order: Order = "xyxy"
    resized: PixelBudget | LongSide | None = None
    """The pixels are those of the image as it is resized by this; None: of the image itself."""
    per_box: ClassVar[int] = 4

    def __str__(self) -> str:
        unit = "pixels" if self.full is None else f"0-{self.full:g}"
        if self.resized is not None:
            return f"{self.order} in pixels of the image resized to {self.resized}"
        return f"{self.order} in {unit}{' of the padded square' if self.frame == 'square' else ''}"

    def to_pixels(self, numbers: Sequence[float], meta: ImageMeta) -> tuple[Box | None, BoxStatus]:
        """Turn one box's numbers into xyxy pixels of the original image, and say what became of it.

        A box that lies in its image, or beyond the edge by less than half a pixel, is returned as it is, and None where
        nothing of it lies there.
        """
        x1, y1, x2, y2 = numbers
        if self.order == "xywh":
            x2, y2 = x1 + x2, y1 + y2
        elif self.order == "yxyx":
            x1, y1, x2, y2 = y1, x1, y2, x2
        elif self.order == "cxcywh":
            x1, y1, x2, y2 = x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2
        if self.frame != "image" or self.full is not None or self.resized is not None:
            left, top, width, height = frame_rectangle(self.frame, meta.size_hw)
            across, down = (1.0, 1.0) if self.full is None else (width / self.full, height / self.full)
            if self.resized is not None:
                resized_height, resized_width = self.resized(meta.size_hw)
                across, down = width / resized_width, height / resized_height
            x1, y1, x2, y2 = x1 * across + left, y1 * down + top, x2 * across + left, y2 * down + top
        box = (x1, y1, x2, y2)
        settled, status = inside_image(box, meta.size_hw, (_SLACK_PX, _SLACK_PX))
        return (box if status is BoxStatus.OK else settled), status


PIXELS = BoxUnit()
PIXELS_XYWH = BoxUnit(order="xywh")
RELATIVE = BoxUnit(full=1.0)


class ImageError(RefusedError):
    """An image that cannot be had: its name leaves the folder, or the file is missing or no image."""

    def __init__(self, detail: str, issue: Issue = Issue.NO_IMAGE) -> None:
        super().__init__(issue, detail)


class UnsafePathError(ImageError):
    """An image's name that is absolute, or climbs out of its folder."""


def check_name(name: str) -> None:
    r"""Refuse an image's name that could leave its folder: absolute, with `..`, a drive or a zero byte.

    Names come from files that others wrote, for any system: `\` separates as `/` does. Raises UnsafePathError.
    """
    if name[:1] in ("", "/", "\\") or name[1:2] == ":" or "\0" in name or (".." in name and _CLIMBS.search(name)):
        said = f"the image's name {name!r} does not stay below its folder; it is refused."
        raise UnsafePathError(said, Issue.UNSAFE_PATH)


def image_path(folder: Path, name: str) -> Path:
    """Return where an image of a data set lies; links that you put into the folder yourself are followed.

    Raises UnsafePathError as `check_name` does.
    """
    check_name(name)
    return folder / name


def upright_size(path: Path | BytesIO) -> tuple[int, int]:
    """Return (width, height) of an image as EXIF turns it, from its header. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a header tells no bomb: nothing is decoded here
            with Image.open(path) as image:
                width, height = image.size
                # Asked for EXIF that is not in front, Pillow decodes a PNG whole, which a header must not cost.
                exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
                turned = exif.get(ExifTags.Base.Orientation) in _TURNED
    except Image.DecompressionBombError:
        raise ImageError(f"'{path}' claims too many pixels to be a photograph.") from None
    except UnidentifiedImageError:
        raise ImageError(f"'{path}' is not an image that can be read.") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RuntimeError,
        *_DAMAGED,
    ) as error:  # Pillow's plugins raise each of these
        raise ImageError(f"'{path}' cannot be read ({error}).") from None
    return (height, width) if turned else (width, height)


class ImageSizes:
    """Sizes of images by name: from the file `known` first, then from the headers below `folder`.

    What was found in headers is added to `known` by `save`, so that a second run, or one that was interrupted, need
    not open the images again. `known` is JSON lines of {"image", "width", "height"}.
    """

    def __init__(self, folder: Path | None = None, known: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise VPPError(f"the folder of images '{folder}' does not exist.")
        self.folder, self.known = folder, known
        self._sizes: dict[str, tuple[int, int]] = {}
        self._failed: dict[str, ImageError] = {}
        self._found = 0
        if known is not None and known.exists():
            self._load(known)

    def __call__(self, name: str) -> tuple[int, int]:
        """Return (width, height) in pixels. Raises ImageError for an image that cannot be had."""
        if name in self._sizes:
            return self._sizes[name]
        if name in self._failed:
            raise self._failed[name]
        try:
            size = self._measure(name)
        except ImageError as error:
            self._failed[name] = error
            raise
        self._sizes[name] = size
        self._found += 1
        return size

    def save(self) -> None:
        """Write all sizes to `known`, if there is such a file to keep and something new."""
        if self.known is None or not self._found:
            return
        with whole_file(self.known) as file:
            for name, (width, height) in self._sizes.items():
                file.write(json.dumps({"image": name, "width": width, "height": height}).encode() + b"\n")
        self._found = 0

    def _measure(self, name: str) -> tuple[int, int]:
        if self.folder is None:
            raise VPPError(
                f"the data hold no size for the image {name!r}, and its boxes cannot be placed without one: "
                "give the folder of the images (--images), or a file of their sizes (--sizes)."
            )
        return upright_size(image_path(self.folder, name))

    def _load(self, known: Path) -> None:
        for number, row in enumerate(stream_lines(known), start=1):
            match row:
                case {"image": str(name), "width": int(width), "height": int(height)} if width > 0 and height > 0:
                    if self._sizes.setdefault(name, (width, height)) != (width, height):
                        raise VPPError(f"'{known}', line {number}, gives '{name}' another size than a line before.")
                case _:
                    raise VPPError(f"'{known}', line {number}, is not an object with image, width and height.")


@dataclass(frozen=True, slots=True)
class Record:
    """A sample as its file has it: the boxes are the file's own numbers, in `unit`, and nothing is checked.

    `size_wh` is None where the file does not say it. `image_marks` are the counts of `<image>` in each question, None
    where the format has no such mark. `place` is where an image lies that is inside the data: its file, its first byte
    and its length, or a row's number and ROW; None where images are files of their own.
    """

    id: str
    image: str
    size_wh: tuple[int, int] | None
    turns: tuple[Turn, ...]
    unit: BoxUnit | BoxCodec = PIXELS
    image_marks: tuple[int, ...] | None = None
    split: str = ""
    category: str = ""
    kind: str = ""
    place: tuple[Path, int, int] | None = None

    @property
    def boxes(self) -> list[Numbers]:
        """Every box of every turn."""
        return [numbers for turn in self.turns for numbers in turn.boxes]

    @property
    def is_about_places(self) -> bool:
        """Whether places in the image are named, or said not to be there: its size is needed then."""
        return any(turn.boxes or isinstance(turn, Locate) for turn in self.turns)


def samples(records: Iterable[Record], sizes: ImageSizes, tally: Tally) -> Iterator[Sample]:
    """Yield a neutral sample for each record that holds; what does not is counted, never fixed by guessing.

    A turn with a broken box is left out, and a record without a turn left too; of several boxes that are asked for,
    those without an area are left out alone. A Locate that names no box stays: nothing is there. A box that reaches
    over the edge is cut to its image and counted. Raises VPPError where an image's size is needed and there is no way
    to find it.
    """
    for record in records:
        with tally.counting(record.id):
            yield to_sample(record, sizes, tally)


def to_sample(record: Record, sizes: ImageSizes, tally: Tally) -> Sample:
    """Return the neutral sample of one record; raises RefusedError where nothing is left of it."""
    if record.image_marks is not None and record.image:
        count_marks(record.image_marks, record.id, tally)
    width, height = _size(record, sizes)
    meta = ImageMeta((height, width)) if width and height else None
    kept: list[Turn] = []
    for turn in record.turns:
        if isinstance(turn, Locate) and not turn.expression.strip():
            tally.add(Issue.EMPTY_TEXT, record.id)
        elif (placeholders := _placeholders(turn)) > 0:
            tally.add(Issue.PLACEHOLDER, record.id)
        elif placeholders < 0:
            tally.add(Issue.BAD_FIELD, record.id, f"{-placeholders} boxes without a {BOX} in the text")
        elif not turn.boxes and isinstance(turn, Talk):
            kept.append(turn)
        elif not turn.boxes and isinstance(turn, Describe):
            tally.add(Issue.NO_BOX, record.id)
        elif meta is None:
            tally.add(Issue.NO_IMAGE, record.id, "places are asked for, but no image is named")
        else:
            boxes = [_checked(numbers, record.unit, meta, record.id, tally) for numbers in turn.boxes]
            if isinstance(turn, Locate) and any(boxes):
                boxes = [box for box in boxes if box != ()]
            whole = tuple(box for box in boxes if box)
            if len(whole) == len(boxes):
                kept.append(_with_boxes(turn, whole))
    if not kept:
        raise RefusedError(Issue.NO_TURNS)
    return Sample(record.id, record.image, width, height, tuple(kept), record.split, record.category, record.kind)


def _placeholders(turn: Turn) -> int:
    """Return how many placeholders for boxes stand in a turn's text beyond those of its boxes; negative: too few."""
    return text_of_turn(turn).count(BOX) - (len(turn.boxes) if isinstance(turn, Talk) else 0)


def fault(numbers: Numbers, per_box: int) -> Issue | None:
    """Return what is wrong with a box whatever its image, or None."""
    if len(numbers) != per_box:
        return Issue.WRONG_COUNT
    if not all(map(math.isfinite, numbers)):
        return Issue.NOT_FINITE
    return Issue.HUGE_NUMBER if max(map(abs, numbers)) > _HUGE else None


def _checked(
    numbers: Numbers, unit: BoxUnit | BoxCodec, meta: ImageMeta, sample_id: str, tally: Tally
) -> Numbers | None:
    """Return the box in pixels; None, counted, for a faulty one, and () for one without an area."""
    issue = fault(numbers, unit.per_box if isinstance(unit, BoxUnit) else unit.scale.per_box)
    if issue is None:
        box, status = unit.to_pixels(numbers, meta)
        if box is None:
            issue = Issue.OUTSIDE
        elif status is BoxStatus.INVERTED:
            issue = Issue.INVERTED
        elif box_fault(box) is BoxFault.FLAT:
            issue = Issue.FLAT
        else:
            if status is BoxStatus.CLIPPED:
                tally.add(Issue.CLIPPED, sample_id, str(list(numbers)))
            return box
    tally.add(issue, sample_id, str(list(numbers)))
    return () if issue is Issue.FLAT else None


def _with_boxes(turn: Turn, boxes: tuple[Numbers, ...]) -> Turn:
    """As dataclasses.replace, which costs as much as all else that is done to a turn."""
    match turn:
        case Locate():
            return Locate(turn.expression, boxes)
        case Describe():
            return Describe(boxes, turn.description)
        case Talk():
            return Talk(turn.question, turn.answer, boxes)


def _size(record: Record, sizes: ImageSizes) -> tuple[int, int]:
    if not record.image:
        return 0, 0
    check_name(record.image)  # refused even where no file is opened
    if record.size_wh is not None or not record.is_about_places:
        return record.size_wh or (0, 0)
    return sizes(record.image)


def count_marks(marks: tuple[int, ...], sample_id: str, tally: Tally) -> None:
    """Count a dialogue about an image that has not exactly one `<image>`."""
    if sum(marks) > 1:
        tally.add(Issue.IMAGE_REPEATED, sample_id, f"{sum(marks)} times")
    elif not any(marks):
        tally.add(Issue.IMAGE_MISSING, sample_id)
