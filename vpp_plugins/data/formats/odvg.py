"""ODVG, the lines of MM-Grounding-DINO: `grounding` with phrases, or `detection` with categories.

Boxes are xyxy in pixels, whatever other descriptions of the format say.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.reading import Reading, Writing, positive_size, text_of
from vpp_plugins.data.json_stream import stream_lines
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Issue, Locate, Numbers, RefusedError, Sample, numbers_of


def read_odvg(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per line: a Locate per phrase, or per category with all its boxes."""

    def record(row: dict[str, Any], sample_id: str) -> Record:
        found = _regions(row)
        if found is None or not isinstance(row.get("filename"), str) or not row["filename"]:
            raise RefusedError(Issue.BAD_FIELD, "filename, grounding or detection")
        boxes: dict[str, list[Numbers]] = {}
        for phrase, numbers in found:
            boxes.setdefault(phrase, []).extend(numbers)
        turns = tuple(Locate(phrase, tuple(numbers)) for phrase, numbers in boxes.items())
        size_wh = positive_size(row.get("width"), row.get("height"))
        return Record(sample_id, reading.image_name(row["filename"]), size_wh, turns)

    return reading.records(stream_lines(path, largest=reading.largest), record, key="")


def _regions(row: Any) -> list[tuple[str, list[Numbers]]] | None:
    match row:
        case {"grounding": {"regions": list(regions)}}:
            named = [("phrase", region) for region in regions]
        case {"detection": {"instances": list(regions)}}:
            named = [("category", region) for region in regions]
        case _:
            return None
    found = []
    for name, region in named:
        if not isinstance(region, dict) or not isinstance(region.get("bbox"), list):
            return None
        listed = region["bbox"]
        boxes = [numbers_of(box) for box in (listed if listed and isinstance(listed[0], list) else [listed])]
        phrase = region.get(name)
        phrase = ", ".join(map(text_of, phrase)) if isinstance(phrase, list) else text_of(phrase)
        if None in boxes:
            return None
        found.append((phrase, [box for box in boxes if box is not None]))
    return found


def write_odvg(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a line per sample with its expressions as phrases; the caption joins them."""
    writing.write_lines(_rows(samples, writing))


def _rows(samples: Iterable[Sample], writing: Writing) -> Iterator[dict[str, Any]]:
    for sample in samples:
        located = [turn for turn in sample.located() if turn.boxes]
        if len(located) < len(sample.turns):
            writing.tally.add(Issue.NOT_WRITABLE, sample.id)
        writing.written.add(located)
        if located:
            regions = [{"bbox": list(box), "phrase": turn.expression} for turn in located for box in turn.boxes]
            caption = " . ".join(turn.expression for turn in located)
            grounding = {"caption": caption, "regions": regions}
            yield {"filename": sample.image, "height": sample.height, "width": sample.width, "grounding": grounding}
