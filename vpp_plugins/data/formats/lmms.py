"""RefCOCO as lmms-lab publishes it: parquet with the image in the row, a list of expressions, and an xywh box."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vpp_plugins.data.formats.reading import Reading, Writing, text_of
from vpp_plugins.data.image_sizes import ImageError, check_name, image_path
from vpp_plugins.data.record import PIXELS_XYWH, Record
from vpp_plugins.data.sample import Locate, Sample, numbers_of
from vpp_plugins.data.tally import Issue
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file

_ANNOTATION = re.compile(r"\A(COCO_\w+_\d{12})_\d+(\.\w+)\Z")
_ROWS = 64
_QUESTION = "Please carefully observe the area circled in the image and come up with a caption for the area."


def read_lmms(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per expression. A folder stands for its parquet files, in the order of their names.

    The images are written to `reading.images_to` where it is given. Their names in the file carry the annotation's
    number (`COCO_train2014_000000000001_7.jpg`); it is cut off, so that they are COCO's own.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise VPPError(f"'{path}' holds no parquet files.")
    for file in files:
        if reading.split and not file.name.startswith(f"{reading.split}-"):
            continue
        for number, row in enumerate(_rows(file)):
            yield from _records(row, f"{text_of(row.get('question_id')) or f'{file.stem}#{number}'}", reading)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    parquet = _parquet()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise VPPError(f"'{path}' does not exist.") from None
    except (pa.ArrowException, OSError) as error:
        raise VPPError(f"'{path}' is not a parquet file that can be read ({str(error).splitlines()[0]}).") from None


def _records(row: dict[str, Any], row_id: str, reading: Reading) -> Iterator[Record]:
    name, loaded_image, numbers = row.get("file_name"), row.get("image"), numbers_of(row.get("bbox"))
    data = loaded_image.get("bytes") if isinstance(loaded_image, dict) else None
    expressions = [row["answer"]] if isinstance(row.get("answer"), str) else row.get("answer")
    if not isinstance(name, str) or numbers is None or not isinstance(data, bytes) or not isinstance(expressions, list):
        reading.tally.add(Issue.BAD_FIELD, row_id, "file_name, image, answer or bbox")
        return
    name = reading.image_name(_ANNOTATION.sub(r"\1\2", name))
    try:
        check_name(name)
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
        if reading.images_to is not None:
            _keep(data, image_path(reading.images_to, name))
    except ImageError as error:
        reading.tally.add(Issue.UNSAFE_PATH, row_id, str(error))
        return
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reading.tally.add(Issue.NO_IMAGE, row_id, str(error))
        return
    for number, expression in enumerate(expressions):
        turn = Locate(text_of(expression), (numbers,))
        yield Record(f"{row_id}-{number}", name, size, (turn,), PIXELS_XYWH, split=reading.split)


def _keep(data: bytes, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(data)


def write_lmms(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a row per expression with its image's bytes, which are read below `writing.images`."""
    parquet = _parquet()
    import pyarrow as pa

    if writing.images is None:
        raise VPPError("the format lmms-parquet holds the images themselves: give their folder (--images).")
    schema = pa.schema(
        [
            ("question_id", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("question", pa.string()),
            ("answer", pa.list_(pa.string())),
            ("bbox", pa.list_(pa.float64())),
            ("file_name", pa.string()),
        ]
    )
    with whole_file(writing.path) as file, parquet.ParquetWriter(file, schema) as writer:
        waiting: list[dict[str, Any]] = []
        for row in _written(samples, writing):
            waiting.append(row)
            if len(waiting) == _ROWS:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))


def _written(samples: Iterable[Sample], writing: Writing) -> Iterator[dict[str, Any]]:
    for sample in samples:
        for turn in sample.turns:
            if not isinstance(turn, Locate) or len(turn.boxes) != 1 or writing.images is None:
                writing.tally.add(Issue.NOT_WRITABLE, sample.id)
                continue
            path = image_path(writing.images, sample.image)
            if not path.is_file():
                writing.tally.add(Issue.NO_IMAGE, sample.id, str(path))
                continue
            x1, y1, x2, y2 = turn.boxes[0]
            yield {
                "question_id": sample.id,
                "image": {"bytes": path.read_bytes(), "path": path.name},
                "question": _QUESTION,
                "answer": [turn.expression],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "file_name": sample.image,
            }


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise VPPError("Parquet files need pyarrow: pip install 'vpp-plugins[eval]'.") from None
    return parquet
