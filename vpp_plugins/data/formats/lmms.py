"""RefCOCO as lmms-lab publishes it: parquet with the image in the row, a list of expressions, and an xywh box."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vpp_plugins.data.formats.arrow import check_apart
from vpp_plugins.data.formats.reading import Reading, text_of
from vpp_plugins.data.record import PIXELS_XYWH, Record, check_name
from vpp_plugins.data.sample import Issue, Locate, RefusedError, numbers_of
from vpp_plugins.errors import VPPError, named_extras

_ANNOTATION = re.compile(r"\A(COCO_\w+_\d{12})_\d+(\.\w+)\Z")
_ROWS = 64


def read_lmms(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per expression. A folder stands for its parquet files, in the order of their names.

    The images are written to `reading.images_to` where it is given. Their names in the file carry the annotation's
    number (`COCO_train2014_000000000001_7.jpg`); it is cut off, so that they are COCO's own.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise VPPError(f"'{path}' holds no parquet files.")
    ids: set[str] = set()
    for file in files:
        if reading.split and not file.name.startswith(f"{reading.split}-"):
            continue
        for number, row in enumerate(parquet_rows(file)):
            row_id = text_of(row.get("question_id"))
            if not row_id or row_id in ids:  # each split counts from 0
                row_id = f"{file.stem}#{number}"
            ids.add(row_id)
            with reading.tally.counting(row_id):
                yield from _records(row, row_id, reading)


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file. Raises VPPError for what is none."""
    with named_extras("eval"):
        import pyarrow as pa
        from pyarrow import parquet

    if path.is_file():
        check_apart(path)

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
        raise RefusedError(Issue.BAD_FIELD, "file_name, image, answer or bbox")
    if not expressions:
        raise RefusedError(Issue.NO_TURNS)
    name = reading.image_name(_ANNOTATION.sub(r"\1\2", name))
    check_name(name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RefusedError(Issue.NO_IMAGE, str(error)) from None
    kept = reading.keep_image(name, data, row_id)
    for number, expression in enumerate(expressions):
        turn = Locate(text_of(expression), (numbers,))
        yield Record(f"{row_id}-{number}", kept, size, (turn,), PIXELS_XYWH, split=reading.split)
