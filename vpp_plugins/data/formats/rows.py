"""Formats of one expression and one box a row: Genixer, the evaluation files of Qwen, InternVL and VPP, and GSEval."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.reading import Reading, Writing, positive_size, text_of
from vpp_plugins.data.json_stream import stream_lines
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Issue, Locate, RefusedError, Sample, numbers_of


@dataclass(frozen=True)
class RowFormat:
    """The names of the fields of JSON lines that hold an expression and its box, xyxy in pixels.

    A format without `width` and `height` fields leaves the sizes to the images.
    """

    image: str
    expression: str
    box: str
    id: str = ""
    category: str = ""
    sized: bool = True

    def read(self, path: Path, reading: Reading) -> Iterator[Record]:
        """Yield a record per line."""
        rows = stream_lines(path, largest=reading.largest)
        return reading.records(rows, lambda row, sample_id: self._record(row, sample_id, reading), key=self.id)

    def write(self, samples: Iterable[Sample], writing: Writing) -> None:
        """Write a line for each expression with one box."""
        writing.write_lines(self._rows(samples, writing))

    def _record(self, row: dict[str, Any], sample_id: str, reading: Reading) -> Record:
        image, expression = row.get(self.image), text_of(row.get(self.expression))
        numbers = numbers_of(row.get(self.box))
        if not isinstance(image, str) or not image or numbers is None:
            raise RefusedError(Issue.BAD_FIELD, self.box if image else self.image)
        return Record(
            id=sample_id,
            image=reading.image_name(image),
            size_wh=positive_size(row.get("width"), row.get("height")) if self.sized else None,
            turns=(Locate(expression, (numbers,)),),
            category=text_of(row.get(self.category)) if self.category else "",
        )

    def _rows(self, samples: Iterable[Sample], writing: Writing) -> Iterator[dict[str, Any]]:
        number = 0
        for sample in samples:
            turns = [turn for turn in sample.located() if len(turn.boxes) == 1]
            writing.written.add(turns)
            for _ in range(len(sample.turns) - len(turns)):
                writing.tally.add(Issue.NOT_WRITABLE, sample.id)
            for turn in turns:
                row: dict[str, Any] = {self.id: number} if self.id else {}
                box = [int(value) if float(value).is_integer() else value for value in turn.boxes[0]]
                row |= {self.image: sample.image, self.expression: turn.expression, self.box: box}
                if self.category:
                    row[self.category] = int(sample.category) if sample.category.isdecimal() else sample.category
                if self.sized:
                    row |= {"height": sample.height, "width": sample.width}
                number += 1
                yield row


GENIXER = RowFormat(image="img_path", expression="expression", box="bbox")
EVALUATION = RowFormat(image="image", expression="sent", box="bbox")
GSEVAL = RowFormat(image="image_path", expression="caption", box="box", id="idx", category="class_id", sized=False)
