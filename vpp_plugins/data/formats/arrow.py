"""Hugging Face `datasets`: a folder that `save_to_disk` wrote, or parquet files, with a neutral row in each row.

Columns are those of a neutral row; `turns` is a list of structures, or their JSON, and `image` holds the image's
bytes. Arrow files are mapped into memory, and parquet is first written as Arrow into the cache of `datasets`.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.neutral import neutral_record
from vpp_plugins.data.formats.reading import Reading, text_of
from vpp_plugins.data.image_sizes import ImageError, upright_size
from vpp_plugins.data.json_stream import json_value
from vpp_plugins.data.record import ROW, Issue, Record
from vpp_plugins.errors import VPPError

_OPEN = 64
"""Files that stay mapped."""


def read_arrow(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per row; images are written to `reading.images_to` where it is given."""
    for file in arrow_files(path):
        rows = _mapped(file)
        for number in range(len(rows)):
            record = _record(rows[number], f"{file.stem}-{number}", reading)
            if record is not None:
                if record.image and not reading.by_place:
                    name = reading.keep_image(record.image, _image(rows[number]) or b"", record.id)
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
    data = _image(rows[number]) if number < len(rows) else None
    if data is None:
        raise VPPError(f"'{file}' has no image in row {number}: it was changed after it was converted.")
    return data


def map_rows(file: Path) -> Any:
    """Return an Arrow or parquet file as rows that are read when they are needed.

    Raises VPPError where it is damaged, or `datasets` is not installed. Arrow trusts the offsets in a file, and one
    that is damaged would end the process; so they are looked through first.
    """
    try:
        import pyarrow as pa
        from datasets import Dataset
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        raise VPPError("Data on disk need datasets: pip install 'vpp-plugins[train]'.") from None
    try:
        if file.suffix == ".parquet":
            return Dataset.from_parquet(str(file))
        with pa.memory_map(str(file)) as source:
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=True)
        return Dataset.from_file(str(file))
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VPPError(f"'{file}' cannot be read as rows of a data set ({reason}).") from None


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


@lru_cache(maxsize=_OPEN)
def _mapped(file: Path) -> Any:
    rows = map_rows(file)
    if "turns" not in rows.column_names:
        raise VPPError(f"'{file}' has no column 'turns', as neutral rows have; it has {', '.join(rows.column_names)}.")
    from datasets import Image

    encoded = isinstance(rows.features.get("image"), Image)
    return rows.cast_column("image", Image(decode=False)) if encoded else rows
