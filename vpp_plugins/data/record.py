"""From what a file says to neutral samples: sizes found, boxes checked and brought to pixels, faults counted."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vpp_plugins.boxes import BoxCodec, BoxStatus, ImageMeta
from vpp_plugins.data.box_unit import PIXELS, BoxUnit
from vpp_plugins.data.image_sizes import ImageError, ImageSizes, UnsafePathError, check_name
from vpp_plugins.data.sample import Describe, Locate, Numbers, Sample, Talk, Turn
from vpp_plugins.data.tally import Issue, Tally
from vpp_plugins.errors import VPPError

_HUGE = 1e6


@dataclass(frozen=True, slots=True)
class Record:
    """A sample as its file has it: the boxes are the file's own numbers, in `unit`, and nothing is checked.

    `size_wh` is None where the file does not say it. `image_marks` are the counts of `<image>` in each question, None
    where the format has no such mark.
    """

    id: str
    image: str
    size_wh: tuple[int, int] | None
    turns: tuple[Turn, ...]
    unit: BoxUnit | BoxCodec = PIXELS
    image_marks: tuple[int, ...] | None = None
    split: str = ""
    category: str = ""

    @property
    def boxes(self) -> list[Numbers]:
        """Every box of every turn."""
        return [numbers for turn in self.turns for numbers in turn.boxes]


def samples(records: Iterable[Record], sizes: ImageSizes, tally: Tally) -> Iterator[Sample]:
    """Yield a neutral sample for each record that holds; what does not is counted, never mended by guessing.

    A turn with a broken box is left out, and a record without a turn left too. A box that reaches over the edge is cut
    to its image and counted. Raises VPPError where an image's size is needed and there is no way to find it.
    """
    for record in records:
        sample = to_sample(record, sizes, tally)
        if sample is not None:
            yield sample


def to_sample(record: Record, sizes: ImageSizes, tally: Tally) -> Sample | None:
    """Return the neutral sample of one record, or None, with the reason in the tally."""
    if record.image_marks is not None and record.image:
        count_marks(record.image_marks, record.id, tally)
    try:
        width, height = _size(record, sizes)
    except ImageError as error:
        tally.add(_image_issue(error), record.id, str(error))
        return None
    meta = ImageMeta((height, width)) if width and height else None
    kept: list[Turn] = []
    for turn in record.turns:
        if isinstance(turn, Locate) and not turn.expression.strip():
            tally.add(Issue.EMPTY_TEXT, record.id)
        elif not turn.boxes:
            if isinstance(turn, Talk):
                kept.append(turn)
            else:
                tally.add(Issue.NO_BOX, record.id)
        elif meta is not None:
            boxes = [_checked(numbers, record.unit, meta, record.id, tally) for numbers in turn.boxes]
            whole = tuple(box for box in boxes if box is not None)
            if len(whole) == len(boxes):
                kept.append(_with_boxes(turn, whole))
    if not kept:
        tally.add(Issue.NO_TURNS, record.id)
        return None
    return Sample(record.id, record.image, width, height, tuple(kept), record.split, record.category)


def fault(numbers: Numbers, per_box: int) -> Issue | None:
    """Return what is wrong with a box whatever its image, or None."""
    if len(numbers) != per_box:
        return Issue.WRONG_COUNT
    if not all(map(math.isfinite, numbers)):
        return Issue.NOT_FINITE
    if max(map(abs, numbers)) > _HUGE:
        return Issue.HUGE_NUMBER
    return None


def _checked(
    numbers: Numbers, unit: BoxUnit | BoxCodec, meta: ImageMeta, sample_id: str, tally: Tally
) -> Numbers | None:
    per_box = unit.per_box if isinstance(unit, BoxUnit) else unit.scale.per_box
    issue = fault(numbers, per_box)
    if issue is None:
        box, status = unit.to_pixels(numbers, meta)
        if status is BoxStatus.OK:
            return box
        if status is BoxStatus.INVERTED:
            issue = Issue.INVERTED
        elif box[0] == box[2] or box[1] == box[3]:
            issue = Issue.OUTSIDE
        else:
            tally.add(Issue.CLIPPED, sample_id, str(list(numbers)))
            return box
    tally.add(issue, sample_id, str(list(numbers)))
    return None


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
    if record.size_wh is not None or not record.boxes:
        return record.size_wh or (0, 0)
    return sizes(record.image)


def count_marks(marks: tuple[int, ...], sample_id: str, tally: Tally) -> None:
    """Count a dialogue about an image that has not exactly one `<image>`."""
    if sum(marks) > 1:
        tally.add(Issue.IMAGE_REPEATED, sample_id, f"{sum(marks)} times")
    elif not any(marks):
        tally.add(Issue.IMAGE_MISSING, sample_id)


def _image_issue(error: VPPError) -> Issue:
    return Issue.UNSAFE_PATH if isinstance(error, UnsafePathError) else Issue.NO_IMAGE
