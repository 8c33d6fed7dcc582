"""ChatterBox's CB-GRD and CB-REF: `{"data": [{id, image, conversation: [{from, value}]}]}`, boxes as pixels in text.

In CB-GRD the answer names the object and gives its box; in CB-REF the question gives a box that the answer describes.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.conversations import paired
from vpp_plugins.data.formats.reading import Reading, positive_size, without_marks
from vpp_plugins.data.json_stream import stream_array
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Describe, Issue, Locate, Numbers, RefusedError, Talk, Turn, numbers_of

_LEAD = "I have provided the box of "
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_LABEL = re.compile(r"<[^<>\[\]]*\Z")
"""What stands before the numbers in `<white cup:[238, 249, 298, 511]>`."""


def read_grounding(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield CB-GRD's dialogues; each answer with a single box is a Locate of what the answer names."""
    return _records(path, reading, _located)


def read_grounding_cut(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield CB-GRD's dialogues with the reference converter's faults.

    It cuts an answer at its periods: the expression ends at the first, and the box is looked for up to the second.
    Where it finds none, it leaves the turn as it is, pixels and all.
    """
    return _records(path, reading, _located_like_reference)


def read_referring(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield CB-REF's dialogues; each question with a single box is a Describe."""
    return _records(path, reading, _described)


def _records(path: Path, reading: Reading, turn_of: Callable[[str, str], Turn]) -> Iterator[Record]:
    def record(row: dict[str, Any], sample_id: str) -> Record:
        image, width_height, turns = row.get("image"), row.get("image_wh"), []
        if not isinstance(image, str) or not image:
            raise RefusedError(Issue.BAD_FIELD, "no image")
        if "coco" in image.lower():
            raise RefusedError(Issue.SKIPPED_SOURCE, image)
        for question, answer in paired(row.get("conversation"), sample_id, reading)[0]:
            with reading.tally.counting(sample_id):
                turns.append(turn_of(question, answer))
        width, height = width_height if isinstance(width_height, list) and len(width_height) == 2 else (None, None)
        return Record(sample_id, reading.image_name(image), positive_size(width, height), tuple(turns))

    return reading.records(stream_array(path, "data", largest=reading.largest), record)


def _located(question: str, answer: str) -> Turn:
    start, numbers = _only_box(answer)
    named = without_marks(_LABEL.sub("", answer[:start])).strip()
    return Locate(named.removeprefix(_LEAD).removesuffix(".").strip(), (numbers,))


def _located_like_reference(question: str, answer: str) -> Turn:
    sentences = answer.split(".")
    if len(sentences) < 2:  # the reference stops with an IndexError here
        raise RefusedError(Issue.NO_BOX, answer)
    boxes = _boxes(sentences[1])
    return Locate(sentences[0].replace(_LEAD, ""), (boxes[0][1],)) if boxes else Talk(question, answer)


def _described(question: str, answer: str) -> Turn:
    return Describe((_only_box(question)[1],), answer)


def _only_box(text: str) -> tuple[int, Numbers]:
    boxes = _boxes(text)
    if len(boxes) != 1:
        raise RefusedError(Issue.AMBIGUOUS if boxes else Issue.NO_BOX, text)
    return boxes[0]


def _boxes(text: str) -> list[tuple[int, Numbers]]:
    """Return where each bracketed list of numbers begins, and its numbers, whatever their count."""
    found = []
    for match in _BRACKETS.finditer(text):
        try:
            numbers = numbers_of(json.loads(match[0]))
        except (ValueError, RecursionError):
            continue
        if numbers:
            found.append((match.start(), numbers))
    return found
