"""Our own lines: neutral samples as JSON, one a line, boxes as xyxy pixels.

`{"id", "image", "width", "height", "turns": [{"locate", "boxes"} | {"describe", "text"} | {"ask", "answer", "boxes"}]}`
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.reading import Reading, Writing, image_of, positive_size, row_id, text_of
from vpp_plugins.data.json_stream import stream_lines
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Issue, Sample, turn_of


def read_neutral(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per line."""
    for number, row in enumerate(stream_lines(path, largest=reading.largest)):
        record = neutral_record(row, number, reading)
        if record is not None:
            yield record


def neutral_record(row: Any, number: int, reading: Reading) -> Record | None:
    """Return one line's value as a record, or None, counted, where it is none."""
    sample_id = row_id(row, number)
    if not isinstance(row, dict) or not isinstance(row.get("turns"), list):
        reading.tally.add(Issue.BAD_FIELD, sample_id, "turns")
        return None
    turns = [turn_of(entry) for entry in row["turns"]]
    image = image_of(row, sample_id, reading)
    if image is None:
        return None
    if None in turns:
        reading.tally.add(Issue.BAD_FIELD, sample_id, "a turn")
        return None
    if reading.split and text_of(row.get("split")) != reading.split:
        reading.tally.add(Issue.OTHER_SPLIT, sample_id)
        return None
    return Record(
        id=sample_id,
        image=image,
        size_wh=positive_size(row.get("width"), row.get("height")),
        turns=tuple(turn for turn in turns if turn is not None),
        split=text_of(row.get("split")),
        category=text_of(row.get("category")),
    )


def write_neutral(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a line per sample; reading it gives the same samples."""
    writing.write_lines(sample.to_row() for sample in writing.whole(samples))
