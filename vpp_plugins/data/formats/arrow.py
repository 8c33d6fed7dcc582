"""Hugging Face `datasets`: a folder that `save_to_disk` wrote, or parquet files, with a neutral row in each row.

Columns are those of a neutral row; `turns` is a list of structures, or their JSON, and `image` holds the image's
bytes. Arrow files are mapped into memory, and parquet is first written as Arrow into the cache of `datasets`.
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.neutral import neutral_record
from vpp_plugins.data.formats.reading import Reading, text_of
from vpp_plugins.data.json_stream import json_value
from vpp_plugins.data.record import ROW, ImageError, Record, upright_size
from vpp_plugins.data.sample import Issue
from vpp_plugins.errors import VPPError, named_extras

_OPEN = 64
"""Files that stay mapped."""


def read_arrow(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per row; images are written to `reading.images_to` where it is given."""
    for file in arrow_files(path):
        rows = _mapped(file)
        for number in range(len(rows)):
            row = rows[number].to_pylist()[0]
            record = _record(row, f"{file.stem}-{number}", reading)
            if record is not None:
                if record.image and not reading.by_place:
                    name = reading.keep_image(record.image, _image(row) or b"", record.id)
                    if name is None:
                        continue
                    record = replace(record, image=name)
                yield replace(record, place=(file, number, ROW))


def arrow_files(path: Path) -> list[Path]:
    """Return the Arrow or parquet files that a path means, a file or a folder; raises VPPError where there is none."""
    inside = sorted([*path.glob("*.arrow"), *path.glob("*.parquet")])
    # `map` and `filter` of `datasets` leave their results beside the data
    found = [path] if path.is_file() else [file for file in inside if not file.name.startswith("cache-")]
    if not found:
        splits = sorted(folder.name for folder in path.glob("*/") if list(folder.glob("*.arrow")))
        each = f"; it has splits, so name one of its folders: {', '.join(splits)}" if splits else ""
        raise VPPError(f"'{path}' holds no *.arrow and no *.parquet{each}.")
    return found


def row_image(file: Path, number: int) -> bytes:
    """Return the bytes of the image in a row of a file."""
    rows = _mapped(file)
    data = _image(rows[number].to_pylist()[0]) if number < len(rows) else None
    if data is None:
        raise VPPError(f"'{file}' has no image in row {number}: it was changed after it was converted.")
    return data


@named_extras()
def map_rows(file: Path) -> Any:
    """Return an Arrow or parquet file as rows that are read when they are needed.

    Raises VPPError where it is no such file, or `datasets` is not installed. Of a file that others wrote, see
    `check_apart` first.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    try:
        if file.suffix == ".parquet":
            return Dataset.from_parquet(str(file))
        return Dataset.from_file(str(file))
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VPPError(f"'{file}' cannot be read as rows of a data set ({reason}).") from None


_CHECK = """
import sys
import pyarrow as pa
from pyarrow import parquet
path = sys.argv[1]
try:
    tabular = path.endswith(".parquet")
    source = parquet.ParquetFile(path).iter_batches(64) if tabular else pa.ipc.open_stream(pa.memory_map(path))
    for batch in source:
        batch.validate(full=True)
except Exception as error:
    sys.exit((str(error).strip() or type(error).__name__).splitlines()[0])
"""


def check_apart(file: Path) -> None:
    """Read an Arrow or parquet file in a process of its own; raises VPPError where it is damaged.

    Arrow trusts the offsets in a file, and a damaged one may end the process that reads it.
    """
    done = subprocess.run([sys.executable, "-c", _CHECK, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        reason = said[-1] if done.returncode > 0 else f"reading it ended a process, signal {-done.returncode}"
        kind = "is not a parquet file, or damaged: it " if file.suffix == ".parquet" else ""
        raise VPPError(f"'{file}' {kind}cannot be read as rows of a data set ({reason}).")


def _record(row: dict[str, Any], name: str, reading: Reading) -> Record | None:
    """Return a row as a record, or None, counted, where it is none. `name` is for rows without an id, and images."""
    turns, data = row["turns"], _image(row)
    if isinstance(turns, str):
        try:
            turns = json_value(turns.encode(), "turns")
        except VPPError as error:
            reading.tally.add(Issue.BAD_FIELD, name, str(error))
            return None
    if isinstance(turns, list):  # a column has one structure for all kinds of turns, so fields that are none are empty
        turns = [{k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else turn for turn in turns]
    said = row.get("image")
    image = (said.get("path") if isinstance(said, dict) else said) or ("" if said is None else f"{name}.image")
    record = neutral_record({**row, "id": text_of(row.get("id")) or name, "image": image, "turns": turns}, 0, reading)
    if record is None or not (record.image or record.boxes):
        return record
    if data is None:
        reading.tally.add(Issue.NO_IMAGE, record.id, "the row holds no image's bytes")
        return None
    if record.size_wh is None and record.boxes:
        try:
            return replace(record, size_wh=upright_size(io.BytesIO(data)))
        except ImageError:
            reading.tally.add(Issue.NO_IMAGE, record.id, "the image cannot be read")
            return None
    return record


def _image(row: dict[str, Any]) -> bytes | None:
    image = row.get("image")
    data = image.get("bytes") if isinstance(image, dict) else None
    return data if isinstance(data, bytes) else None


def _mapped(file: Path) -> Any:
    """Return a file's rows, looked through once for each state of the file."""
    try:
        state = file.stat()
    except OSError as error:
        raise VPPError(f"'{file}' cannot be read ({error.strerror or error}).") from None
    return _looked_through(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=_OPEN)
def _looked_through(file: Path, size: int, changed_ns: int) -> Any:
    check_apart(file)
    rows = map_rows(file)
    if "turns" not in rows.column_names:
        raise VPPError(f"'{file}' has no column 'turns', as neutral rows have; it has {', '.join(rows.column_names)}.")
    return rows.with_format("arrow")  # nothing is decoded: images stay bytes, and audio is not asked for
