"""Dialogues as LLaVA stores them: `{id, image, conversations: [{from, value}]}`, one JSON array or one object a line.

VPP-SFT and LLaVA-665K are such files, with boxes in text as two decimals of the padded square; Qwen's and InternVL's
training files have the same layout with their families' boxes.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import BOX_CODECS, BoxCodec, shown_box
from vpp_plugins.data.dialogue import IMAGE, Phrases
from vpp_plugins.data.formats.reading import (
    Reading,
    Writing,
    check_named,
    image_of,
    names_of,
    positive_size,
    without_marks,
)
from vpp_plugins.data.json_stream import stream_records
from vpp_plugins.data.record import BoxUnit, Record
from vpp_plugins.data.sample import Issue, Locate, RefusedError, Sample, Talk, Tally, Turn
from vpp_plugins.errors import VPPError

_ASKS = frozenset({"human", "user"})
_ANSWERS = frozenset({"gpt", "assistant"})
_REGION = re.compile(r"\[(\d+\.\d+(?:\s*,\s*\d+\.\d+)*)\]")
"""How the reference chose the grounding subset: a bracketed list of decimals, of any length."""


def read_conversations(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per dialogue. Boxes are numbers of the family `reading.family`."""
    return _read(path, reading, selects=lambda row: True)


def read_llava_grounding(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield the dialogues of LLaVA-665K that hold a region, selected by the reference's rule.

    The rule also matches lists that are not four numbers long; such lists stay text and are counted.
    """
    return _read(path, reading, selects=_holds_region)


def _read(path: Path, reading: Reading, *, selects: Callable[[Any], bool]) -> Iterator[Record]:
    phrases = Phrases(_codec(reading.family), reading.pixels)
    unit = phrases.unit  # one object for all: the doctor groups by it

    def record(row: dict[str, Any], sample_id: str) -> Record:
        if not selects(row):
            raise RefusedError(Issue.NOT_SELECTED)
        return conversation_record(row, sample_id, reading, phrases, unit)

    return reading.records(stream_records(path, largest=reading.largest), record)


def conversation_record(
    row: dict[str, Any], sample_id: str, reading: Reading, phrases: Phrases, unit: BoxUnit | BoxCodec
) -> Record:
    """Return one dialogue as a record; raises RefusedError where it is none."""
    image = image_of(row, reading)
    pairs, marks = paired(row.get("conversations"), sample_id, reading)
    check_named(image, texts_of(row.get("conversations")))
    if image:
        turns: list[Turn | None] = [phrases.read(asked, said, sample_id, reading.tally) for asked, said in pairs]
    else:
        turns = [Talk(question, answer) for question, answer in pairs]
    return Record(
        id=sample_id,
        image=image,
        size_wh=positive_size(row.get("width"), row.get("height")),
        turns=tuple(turn for turn in turns if turn is not None),
        unit=unit,
        image_marks=marks,
    )


def paired(messages: Any, sample_id: str, reading: Reading) -> tuple[list[tuple[str, str]], tuple[int, ...]]:
    """Return the questions and answers without `<image>`, and the counts of `<image>` in each question."""
    pairs, marks, question, whole = [], [], None, isinstance(messages, list)
    for message in messages if isinstance(messages, list) else ():
        who, said = names_of(message)
        if who in _ASKS and question is None:
            question = said
        elif who in _ANSWERS and question is not None:
            pairs.append((without_marks(question), said))
            marks.append(question.count(IMAGE))
            question = None
        elif who != "system":
            whole = False
    if not whole or question is not None:
        reading.tally.add(Issue.BAD_TURNS, sample_id)
    return pairs, tuple(marks)


def texts_of(messages: Any) -> Iterator[str]:
    """Yield what is said in a dialogue, by whomever; an image among the parts of a message as its mark."""
    for message in messages if isinstance(messages, list) else ():
        yield names_of(message)[1]
        parts = message.get("content", message.get("value")) if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and str(part.get("type")).startswith(("image", "video")):
                yield IMAGE


def write_conversations(samples: Iterable[Sample], writing: Writing) -> None:
    """Write one JSON array with a dialogue on each line, boxes as the family `writing.family` writes them."""
    phrases = Phrases(_codec(writing.family), writing.pixels)
    if phrases.codec.text is None:
        raise VPPError(f"the family '{writing.family}' writes points, not boxes: choose another one (--family).")
    whole = (_without_thin(sample, phrases, writing.tally) for sample in samples)
    kept = (sample for sample in whole if sample.turns)
    writing.write_array(conversation(sample, phrases) for sample in writing.whole(kept))


def _without_thin(sample: Sample, phrases: Phrases, tally: Tally) -> Sample:
    """Leave out, counted, the turns with a box that the family's unit would write without width or height."""
    meta = phrases.meta(sample)
    if meta is None or all(phrases.codec.keeps_area(box, meta) for turn in sample.turns for box in turn.boxes):
        return sample
    kept = []
    for turn in sample.turns:
        thin = [box for box in turn.boxes if not phrases.codec.keeps_area(box, meta)]
        if thin:
            said = f"{shown_box(thin[0])} is thinner than the unit of {phrases.codec.family}"
            tally.add(Issue.NOT_WRITABLE, sample.id, said)
        else:
            kept.append(turn)
    return replace(sample, turns=tuple(kept))


def conversation(sample: Sample, phrases: Phrases, *, marks_like_reference: bool = False) -> dict[str, Any]:
    """Return a sample as LLaVA stores it.

    `<image>` stands before the first question. `marks_like_reference` does as the reference's converters did: every
    grounding question has one, and a turn that they left as it was has none.
    """
    meta = phrases.meta(sample)
    messages = []
    for number, turn in enumerate(sample.turns):
        question, answer = phrases.write(turn, meta)
        if marks_like_reference:
            marked = isinstance(turn, Locate) or (number == 0 and not isinstance(turn, Talk))
        else:
            marked = number == 0 and bool(sample.image)
        messages += [
            {"from": "human", "value": f"{IMAGE}\n{question}" if marked else question},
            {"from": "gpt", "value": answer},
        ]
    head = {"id": sample.id, "image": sample.image} if sample.image else {"id": sample.id}
    return {**head, "conversations": messages}


def _holds_region(row: dict[str, Any]) -> bool:
    messages = row.get("conversations")
    return isinstance(messages, list) and any(_REGION.search(names_of(message)[1]) for message in messages)


def _codec(family: str) -> BoxCodec:
    """Return a family's codec, a plugin's too; only for that are plugins, and with them torch, loaded."""
    if family in BOX_CODECS:
        return BOX_CODECS[family]
    from vpp_plugins.plugins import box_codec

    return box_codec(family)
