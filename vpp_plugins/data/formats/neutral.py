"""Our own lines, neutral samples as JSON, one a line, boxes as xyxy pixels; and the scene benchmark's folder.

`{"id", "image", "width", "height", "turns": [{"locate", "boxes"} | {"describe", "text"} | {"ask", "answer", "boxes"}]}`
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.reading import (
    Reading,
    Writing,
    check_named,
    image_of,
    positive_size,
    text_of,
    without_marks,
)
from vpp_plugins.data.json_stream import stream_lines
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Issue, Locate, RefusedError, Sample, Talk, Turn, turn_of


def read_neutral(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per line."""
    rows = stream_lines(path, largest=reading.largest)
    return reading.records(rows, lambda row, sample_id: neutral_record(row, sample_id, reading))


def neutral_record(row: dict[str, Any], sample_id: str, reading: Reading) -> Record:
    """Return one line's object as a record; raises RefusedError where it is none."""
    if not isinstance(row.get("turns"), list):
        raise RefusedError(Issue.BAD_FIELD, "turns")
    image, split = image_of(row, reading), text_of(row.get("split"))
    turns = [_unmarked(turn_of(entry), image) for entry in row["turns"]]
    if None in turns:
        raise RefusedError(Issue.BAD_FIELD, "a turn")
    check_named(image, (said for turn in turns if isinstance(turn, Talk) for said in (turn.question, turn.answer)))
    if reading.split and split != reading.split:
        raise RefusedError(Issue.OTHER_SPLIT)
    return Record(
        id=sample_id,
        image=image,
        size_wh=positive_size(row.get("width"), row.get("height")),
        turns=tuple(turn for turn in turns if turn is not None),
        split=split,
        category=text_of(row.get("category")),
        kind=text_of(row.get("kind")),
    )


def _unmarked(turn: Turn | None, image: str) -> Turn | None:
    """Return a turn without the mark of the image that its row names, which other formats have in their questions."""
    return Talk(without_marks(turn.question), turn.answer, turn.boxes) if image and isinstance(turn, Talk) else turn


def read_scenes(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per expression; its kind is the category."""
    from vpp_plugins.data.scenes.folder import boxes_of, load_scenes  # loads torch, which no other format needs

    folder = load_scenes(path)
    for record in folder.records:
        for number, expression in enumerate(record["expressions"]):
            yield Record(
                id=f"{record['key']}-{number}",
                image=reading.image_name(record["image"]),
                size_wh=(record["width"], record["height"]),
                turns=(Locate(expression["text"], boxes_of(expression)),),
                split=folder.manifest["split"],
                category=expression["kind"],
            )


def write_neutral(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a line per sample; reading it gives the same samples."""
    writing.write_lines(sample.to_row() for sample in writing.whole(samples))
