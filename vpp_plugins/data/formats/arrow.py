"""Hugging Face `datasets`: a folder that `save_to_disk` wrote, or parquet files, with a neutral row in each row.

Columns are those of a neutral row; `turns` is a list of structures, or their JSON, and `image` holds the image's
bytes. Arrow files are mapped into memory, and parquet is first written as Arrow into the cache of `datasets`.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.neutral import neutral_record
from vpp_plugins.data.formats.reading import Reading, text_of
from vpp_plugins.data.json_stream import json_value
from vpp_plugins.data.record import ROW, Record
from vpp_plugins.data.sample import Issue, RefusedError
from vpp_plugins.errors import VPPError, named_extras

_OPEN = 64
"""Files that stay mapped."""


def read_arrow(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per row; images are written to `reading.images_to` where it is given."""
    for file in arrow_files(path):
        rows = _mapped(file)
        for number in range(len(rows)):
            row, name = rows[number].to_pylist()[0], f"{file.stem}-{number}"
            sample_id = text_of(row.get("id")) or name
            with reading.tally.counting(sample_id):
                record, data = _record(row, sample_id, name, reading), _image(row)
                found = None if data is None else lambda data=data: data
                missing = "the row holds no image's bytes"
                yield reading.with_image(record, found, (file, number, ROW), missing=missing)


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


def _record(row: dict[str, Any], sample_id: str, name: str, reading: Reading) -> Record:
    """Return a row as a record; `name` is for its image where that has none."""
    turns = row["turns"]
    if isinstance(turns, str):
        try:
            turns = json_value(turns.encode(), "turns")
        except VPPError as error:
            raise RefusedError(Issue.BAD_FIELD, str(error)) from None
    if isinstance(turns, list):  # a column has one structure for all kinds of turns, so fields that are none are empty
        turns = [{k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else turn for turn in turns]
    said = row.get("image")
    image = (said.get("path") if isinstance(said, dict) else said) or ("" if said is None else f"{name}.image")
    return neutral_record({**row, "image": image, "turns": turns}, sample_id, reading)


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
    with named_extras():
        from datasets import Dataset
        from datasets.exceptions import DatasetsError

    try:
        rows = (Dataset.from_parquet if file.suffix == ".parquet" else Dataset.from_file)(str(file))
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VPPError(f"'{file}' cannot be read as rows of a data set ({reason}).") from None
    if "turns" not in rows.column_names:
        raise VPPError(f"'{file}' has no column 'turns', as neutral rows have; it has {', '.join(rows.column_names)}.")
    return rows.with_format("arrow")  # nothing is decoded: images stay bytes, and audio is not asked for
