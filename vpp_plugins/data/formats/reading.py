"""What every reader and every writer of a format is given, and the fields of rows that others wrote."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vpp_plugins.data.image_sizes import ImageError, image_path
from vpp_plugins.data.json_stream import LARGEST_ELEMENT
from vpp_plugins.data.record import Tally
from vpp_plugins.files import whole_file


@dataclass(frozen=True)
class Reading:
    """How to read: where to count faults, the family of boxes in text, which split, and names of images.

    `split` "" takes all. `strip_prefix` is cut from the beginning of images' names (some published files hold the
    absolute paths of their authors), and `image_prefix` put before what is left. `largest` is the most characters that
    one sample may have. `images_to` is a folder to which formats that carry images write them.
    """

    tally: Tally = field(default_factory=Tally)
    family: str = "llava"
    split: str = ""
    strip_prefix: str = ""
    image_prefix: str = ""
    largest: int = LARGEST_ELEMENT
    images_to: Path | None = None

    def image_name(self, name: str) -> str:
        """Return the name of an image below its folder."""
        return self.image_prefix + name.removeprefix(self.strip_prefix) if name else ""

    def keep_image(self, name: str, data: bytes) -> None:
        """Write an image that lies in the data to `images_to`, where that is given and it is not there yet.

        A name that leaves the folder is passed over here, and counted when its record becomes a sample.
        """
        if self.images_to is None:
            return
        try:
            path = image_path(self.images_to, name)
        except ImageError:
            return
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(data)


@dataclass(frozen=True)
class Writing:
    """Where to write, the family of boxes in text, and where to count what the format cannot hold.

    `images` is their folder, for formats that hold them; `shard_bytes` is about how large one of several files is.
    """

    path: Path
    tally: Tally = field(default_factory=Tally)
    family: str = "llava"
    images: Path | None = None
    shard_bytes: int = 1 << 30

    def write_lines(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON lines, the whole file or none."""
        with whole_file(self.path) as file:
            for row in rows:
                file.write(json_bytes(row) + b"\n")

    def write_array(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON array with an element on each line, the whole file or none."""
        with whole_file(self.path) as file:
            array_into(file, rows)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps would make one for every row


def array_into(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON array with an element on each line."""
    before = b"[\n"
    for row in rows:
        file.write(before + json_bytes(row))
        before = b",\n"
    file.write(b"\n]\n" if before == b",\n" else b"[]\n")


def json_bytes(value: Any) -> bytes:
    """Return JSON as UTF-8; NaN and infinity, which JSON does not know, raise ValueError."""
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:  # half a character, which JSON can only say as an escape
        return json.dumps(value, allow_nan=False).encode()


def row_id(row: Any, number: int) -> str:
    """Return what a row calls itself, or its place in the file."""
    return text_of(row.get("id")) if isinstance(row, dict) and text_of(row.get("id")) else f"#{number}"


def text_of(value: Any) -> str:
    """Return a string, or a whole number as one; "" for all else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def names_of(message: Any) -> tuple[str, str]:
    """Return (who, what) of a message of a dialogue, in LLaVA's names or OpenAI's; "" for what is missing."""
    if not isinstance(message, dict):
        return "", ""
    who, said = message.get("from", message.get("role")), message.get("value", message.get("content"))
    return (who, said) if isinstance(who, str) and isinstance(said, str) else ("", "")


def positive_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Return (width, height) where both are whole numbers of at least 1 and a million at most, else None."""
    whole = [side for side in (width, height) if isinstance(side, int | float) and not isinstance(side, bool)]
    if len(whole) == 2 and all(1 <= side <= 1e6 and side == int(side) for side in whole):
        return int(width), int(height)
    return None
