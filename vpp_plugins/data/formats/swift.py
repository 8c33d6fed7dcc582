"""ms-swift's grounding lines: `messages`, `images` and `objects: {ref, bbox, bbox_type}` with placeholders in the text.

`<ref-object>` and `<bbox>` stand for the entries of `ref` and `bbox`, in order. Boxes are xyxy: pixels, or with
`"bbox_type": "norm1"` fractions of the image.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import NOTHING
from vpp_plugins.data.dialogue import describes, located_in
from vpp_plugins.data.formats.conversations import paired, texts_of
from vpp_plugins.data.formats.reading import Reading, Writing, check_named, image_of, text_of
from vpp_plugins.data.json_stream import stream_records
from vpp_plugins.data.record import PIXELS, RELATIVE, Record
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
    numbers_of,
    text_of_turn,
)

_REF = "<ref-object>"
_QUESTION = f"Please provide the bounding box coordinate of the region this sentence describes: {_REF}."
_REGION = f"Please provide a short description for this region: {BOX}."


def read_swift(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per line. A question in usual words (`located_in`), answered by boxes alone, is a Locate."""
    rows = stream_records(path, largest=reading.largest)
    return reading.records(rows, lambda row, sample_id: _record(row, sample_id, reading))


def _record(row: dict[str, Any], sample_id: str, reading: Reading) -> Record:
    image, objects = image_of(row, reading), row.get("objects", {})
    refused = RefusedError(Issue.BAD_FIELD, "messages or objects")
    if not isinstance(objects, dict):
        raise refused
    kind = objects.get("bbox_type", "real")
    refs, listed = objects.get("ref", []), objects.get("bbox", [])
    if kind not in ("real", "norm1") or not isinstance(refs, list) or not isinstance(listed, list):
        raise refused
    names = [text_of(name) for name in refs]
    boxes = [numbers_of(box) for box in listed]
    pairs, marks = paired(row.get("messages"), sample_id, reading)
    said = "".join(question + answer for question, answer in pairs)
    if None in boxes or (said.count(_REF), said.count(BOX)) != (len(names), len(boxes)):
        raise refused
    check_named(image, texts_of(row.get("messages")))
    waiting_names, waiting_boxes = iter(names), iter([box for box in boxes if box is not None])
    turns = [_turn(question, answer, waiting_names, waiting_boxes) for question, answer in pairs]
    unit = RELATIVE if kind == "norm1" else PIXELS
    return Record(sample_id, image, None, tuple(turns), unit, image_marks=marks)


def _turn(question: str, answer: str, names: Iterator[str], boxes: Iterator[Numbers]) -> Turn:
    here = tuple(next(boxes) for _ in range(question.count(BOX) + answer.count(BOX)))
    refs = [next(names) for _ in range(question.count(_REF))]
    asked = _named(question, refs)
    answered = re.sub(_REF, lambda _: next(names), answer)
    only_boxes = BOX not in question and not re.search(r"\w", answer.replace(BOX, "").replace(_REF, ""))
    if (here or answer.strip() == NOTHING) and only_boxes and (expression := located_in(question)):
        return Locate(_named(expression, refs), here)
    if len(here) == 1 and BOX in question and describes(question):
        return Describe(here, answered)
    return Talk(asked, answered, here)


def _named(text: str, names: Iterable[str]) -> str:
    waiting = iter(names)
    return re.sub(_REF, lambda _: next(waiting), text)


def write_swift(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a line per sample, boxes in pixels; ms-swift renders them for the model that it trains."""
    kept = (_without_refs(sample, writing.tally) for sample in samples)
    writing.write_lines(_row(sample) for sample in writing.whole(sample for sample in kept if sample.turns))


def _without_refs(sample: Sample, tally: Tally) -> Sample:
    """Leave out, counted, the turns whose own words hold what stands for an expression: no line of theirs is read."""
    kept = tuple(turn for turn in sample.turns if isinstance(turn, Locate) or _REF not in text_of_turn(turn))
    if len(kept) == len(sample.turns):
        return sample
    tally.add(Issue.NOT_WRITABLE, sample.id, f"its text holds {_REF}")
    return replace(sample, turns=kept)


def _row(sample: Sample) -> dict[str, Any]:
    messages, names = [], []
    for number, turn in enumerate(sample.turns):
        match turn:
            case Locate(expression, boxes):
                names.append(expression)
                question, answer = _QUESTION, ", ".join([BOX] * len(boxes)) or NOTHING
            case Describe(_, description):
                question, answer = _REGION, description
            case Talk(question, answer):
                pass
        mark = "<image>" if number == 0 and sample.image else ""
        messages += [{"role": "user", "content": mark + question}, {"role": "assistant", "content": answer}]
    objects = {"ref": names, "bbox": [list(box) for turn in sample.turns for box in turn.boxes], "bbox_type": "real"}
    images = {"images": [sample.image]} if sample.image else {}
    return {"id": sample.id, "messages": messages, **images, "objects": objects}
