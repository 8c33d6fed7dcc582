"""From an answer to its box, or its boxes, the way each published evaluation script reads it, quirks included.

Each reader takes the answer, the image's sizes and the family's codec, and returns a box in pixels of the original
image. Where a script falls back on a box of zeros, ours says unparsable: the overlap is 0 either way. The scripts were
written before models thought aloud: what stands in thoughts is no answer to any of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vpp_plugins.boxes import (
    Box,
    BoxCodec,
    BoxFault,
    BoxStatus,
    ImageMeta,
    answer_of,
    box_fault,
    frame_rectangle,
    worst_status,
)

_QWEN = re.compile(r"\((.*?)\),\((.*?)\)")
# The script's lazy pattern, `\[*\[(.*?),(.*?),(.*?),(.*?)\]\]*`, in a form that cannot backtrack.
_INTERNVL = re.compile(r"(?<!\[)\[++([^,\n]*),([^,\n]*),([^,\n]*),([^\]\n]*)\]")
_SHIKRA = re.compile(r"\[(\d(?:\.\d*)?(?:,\d(?:\.\d*)?){3}(?:;\d(?:\.\d*)?(?:,\d(?:\.\d*)?){3})*)\]")
_LMMS = re.compile(r"\[\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?)\s*\]")
_LONGEST = 10_000
"""Characters of an answer that are looked at: some of these patterns take quadratic time."""


@dataclass(frozen=True)
class ParsedBox:
    """What an answer gave: a box, which may reach beyond the image where the script does not clip, or none."""

    box: Box | None
    status: BoxStatus
    others: tuple[Box, ...] = ()
    """Further boxes, where all of an answer are read."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Every box that was read."""
        return () if self.box is None else (self.box, *self.others)


Reader = Callable[[str, ImageMeta, BoxCodec], ParsedBox]

UNPARSABLE = ParsedBox(None, BoxStatus.UNPARSABLE)


def by_codec(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read the first box as the family's codec does: clipped to the image, corners in order."""
    decoded = codec.decode(answer, meta)
    return ParsedBox(decoded.boxes_xyxy_px[0] if decoded.boxes_xyxy_px else None, decoded.statuses[0])


def all_by_codec(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read every box as the family's codec does; the status is the worst of theirs."""
    decoded = codec.decode(answer, meta)
    box, *others = decoded.boxes_xyxy_px or (None,)
    return ParsedBox(box, worst_status(decoded.statuses), tuple(others))


def like_vpp_llava(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read four numbers separated by comma and blank, undo the padding in single precision, clip below 0 only."""
    try:
        numbers = [float(word) for word in answer.strip("[]").split(", ")]
    except ValueError:
        return UNPARSABLE
    if len(numbers) != 4:
        return UNPARSABLE
    height, width = meta.size_hw
    side = max(height, width)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is no box
        box = np.array(numbers, dtype=np.float32) * np.float32(side)
    if height != width:
        box[0::2] -= (side - width) // 2
        box[1::2] -= (side - height) // 2
        if box_fault(box.tolist(), meta.size_hw) is BoxFault.OUTSIDE:  # cut below 0, it would be a line on the border
            return UNPARSABLE
        box = np.maximum(box, 0)
    return _judged(box.tolist(), meta)


def like_shikra(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read the answer's only bracketed box, 0 to 1 on the padded square."""
    found = _SHIKRA.findall(answer)
    if len(found) != 1 or ";" in found[0]:
        return UNPARSABLE
    left, top, width, height = frame_rectangle("square", meta.size_hw)
    x1, y1, x2, y2 = (float(number) for number in found[0].split(","))
    return _judged((x1 * width + left, y1 * height + top, x2 * width + left, y2 * height + top), meta)


def like_minigpt(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read four integers, 0 to 100.

    The script asks again where the braces are missing, but greedily, and in the end takes any four integers.
    """
    return _scaled(re.findall(r"\d+", answer.replace("<unk>", "").replace(" ", "")), 100, meta)


def like_qwen(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read the first pair of points, 0 to 999."""
    found = _QWEN.search(answer[:_LONGEST])
    if found is None:
        return UNPARSABLE
    points = [point.split(",") for point in found.groups()]
    return _scaled(points[0] + points[1], 999, meta) if all(len(point) == 2 for point in points) else UNPARSABLE


def like_internvl(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read the first four bracketed numbers: 0 to 1000, or 0 to 1 where they sum to less than 4."""
    found = _INTERNVL.search(answer[:_LONGEST])
    if found is None:
        return UNPARSABLE
    try:
        small = sum(float(number) for number in found.groups()) < 4
    except ValueError:
        return UNPARSABLE
    return _scaled(found.groups(), 1 if small else 1000, meta)


def like_lmms_eval(answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
    """Read the first four bracketed numbers, 0 to 1 on the original image whatever frame the model writes in."""
    found = _LMMS.search(answer)
    return UNPARSABLE if found is None else _scaled(found.groups(), 1, meta)


def _of_answer(read: Reader) -> Reader:
    return lambda text, meta, codec: read(answer_of(text), meta, codec)


READERS: Mapping[str, Reader] = {
    "codec": by_codec,
    "codec-all": all_by_codec,
    "vpp-llava": _of_answer(like_vpp_llava),
    "shikra": _of_answer(like_shikra),
    "minigpt-v2": _of_answer(like_minigpt),
    "qwen-vl": _of_answer(like_qwen),
    "internvl": _of_answer(like_internvl),
    "lmms-eval": _of_answer(like_lmms_eval),
}


def _scaled(numbers: Sequence[str], full: int, meta: ImageMeta) -> ParsedBox:
    if len(numbers) != 4:
        return UNPARSABLE
    try:
        x1, y1, x2, y2 = (float(number) / full for number in numbers)
    except (ValueError, OverflowError):
        return UNPARSABLE
    height, width = meta.size_hw
    return _judged((x1 * width, y1 * height, x2 * width, y2 * height), meta)


def _judged(box: Sequence[float], meta: ImageMeta) -> ParsedBox:
    """Say of a box, which stays as it is, whether it leaves the image or has its corners in the wrong order."""
    x1, y1, x2, y2 = box
    if box_fault(box, meta.size_hw) in (BoxFault.NOT_FINITE, BoxFault.OUTSIDE):
        return UNPARSABLE
    height, width = meta.size_hw
    if x2 < x1 or y2 < y1:
        return ParsedBox((x1, y1, x2, y2), BoxStatus.INVERTED)
    outside = min(x1, y1) < 0 or x2 > width or y2 > height
    return ParsedBox((x1, y1, x2, y2), BoxStatus.CLIPPED if outside else BoxStatus.OK)
