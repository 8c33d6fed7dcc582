"""What every reader and every writer of a format is given, and the fields of rows that others wrote."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from vpp_plugins.data.dialogue import IMAGE
from vpp_plugins.data.json_stream import LARGEST_ELEMENT
from vpp_plugins.data.record import ImageError, PixelBudget, Record, image_path, upright_size
from vpp_plugins.data.sample import Issue, RefusedError, Sample, Tally, Turn
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file

_NO_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL, errno.ELOOP}
_MARK = re.compile(
    r"<(image|video|image_?placeholder|image_?\d+|ImageHere)>|<\|(image|video|vision)[^<>|]*\|>|<img>[^<>]+</img>",
    re.IGNORECASE,
)
"""What stands for an image, or names it, in the text of one family or another."""


@dataclass(frozen=True)
class Reading:
    """How to read: where to count faults, the family of boxes in text, which split, and names of images.

    `split` "" takes all. `strip_prefix` is cut from the beginning of images' names (some published files hold the
    absolute paths of their authors), and `image_prefix` put before what is left. `largest` is the most characters that
    one sample may have. `pixels` is how the images were resized in whose pixels a family's boxes are counted (None: as
    its own processor is set). `images_to` is a folder to which formats that carry images write them;
    raises VPPError where no folder can be there.
    """

    tally: Tally = field(default_factory=Tally)
    family: str = "llava"
    split: str = ""
    strip_prefix: str = ""
    image_prefix: str = ""
    largest: int = LARGEST_ELEMENT
    images_to: Path | None = None
    boxes: str = ""
    """How boxes are written, as `data.units.stated_unit` takes it; "" is as the format or the family says."""
    pixels: PixelBudget | None = None
    by_place: bool = False
    """Whether images in the data are found by the place that their records say, so that names need not differ."""
    seen: dict[str, bytes] = field(default_factory=dict)
    """Digests of the images that lie in the data, by their names."""

    def __post_init__(self) -> None:
        places = (self.images_to, *self.images_to.parents) if self.images_to is not None else ()
        there = next(filter(os.path.lexists, places), None)
        if there is not None and not there.is_dir():
            raise VPPError(f"'{there}' is no folder, and images are to be written to '{self.images_to}': name another.")

    def image_name(self, name: str) -> str:
        """Return the name of an image below its folder."""
        return self.image_prefix + name.removeprefix(self.strip_prefix) if name else ""

    def records(
        self, rows: Iterable[Any], record: Callable[[Any, str], Record], *, key: str = "id"
    ) -> Iterator[Record]:
        """Yield the record of each row, an object, by its id, which stands under `key`; what is refused is counted."""
        for number, row in enumerate(rows):
            sample_id = row_id(row, number, key)
            with self.tally.counting(sample_id):
                if not isinstance(row, dict):
                    raise RefusedError(Issue.BAD_FIELD, "not an object")
                yield record(row, sample_id)

    def with_image(
        self, record: Record, data: Callable[[], bytes] | None, place: tuple[Path, int, int], *, missing: str
    ) -> Record:
        """Return a record whose image lies in the data, at its place, with the image's name and its size.

        Raises RefusedError where an image or boxes are named and there are no `data`, as `missing` says, or no image.
        """
        if not record.image and not record.is_about_places:
            return record
        if data is None:
            raise RefusedError(Issue.NO_IMAGE, missing)
        size_wh = record.size_wh
        if size_wh is None and record.is_about_places:
            try:
                size_wh = upright_size(BytesIO(data()))
            except ImageError:
                raise RefusedError(Issue.NO_IMAGE, "the image cannot be read") from None
        image = record.image if self.by_place else self.keep_image(record.image, data(), record.id)
        return replace(record, image=image, size_wh=size_wh, place=place)

    def keep_image(self, name: str, data: bytes, sample_id: str) -> str:
        """Return the name of an image that lies in the data, and write it to `images_to`, where that is given.

        The name gets a number, which is counted, where another image has it, in the data or in that folder. A name
        that leaves the folder stays as it is, and is refused when its record becomes a sample. Raises RefusedError for
        a name that no file can have: too long, or with another image's file as its folder.
        """
        digest, free, number = hashlib.sha256(data).digest()[:16], name, 1
        try:
            while not self._is_free(free, digest, data):
                number += 1
                stem, dot, suffix = name.rpartition(".")
                free = f"{stem}-{number}.{suffix}" if dot else f"{name}-{number}"
        except ImageError:
            return name
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_NAMES:
                raise
            raise RefusedError(Issue.NO_IMAGE, f"no file can be called so ({error})") from None
        if number > 1:
            self.tally.add(Issue.IMAGE_RENAMED, sample_id, f"{name} is {free}")
        return free

    def _is_free(self, name: str, digest: bytes, data: bytes) -> bool:
        """Whether no other image has the name; then it is this one's."""
        if self.seen.setdefault(name, digest) != digest:
            return False
        if self.images_to is None:
            return True
        path = image_path(self.images_to, name)
        if not path.parent.resolve().is_relative_to(self.images_to.resolve()):
            raise VPPError(f"'{path}' lies behind a link that leaves '{self.images_to}'; it is not written.")
        if path.exists():
            return path.is_file() and path.read_bytes() == data
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(data)
        return True


@dataclass
class Written:
    """Counts what was written."""

    samples: int = 0
    turns: int = 0
    boxes: int = 0

    def add(self, turns: Iterable[Turn]) -> None:
        """Count a sample by those of its turns that the format holds; one without any is none."""
        boxes = [len(turn.boxes) for turn in turns]
        self.samples += bool(boxes)
        self.turns += len(boxes)
        self.boxes += sum(boxes)


@dataclass(frozen=True)
class Writing:
    """Where to write, the family of boxes in text, and where to count what is written and what the format cannot hold.

    `images` is their folder, for formats that hold them; `shard_bytes` is about how large one of several files is.
    """

    path: Path
    tally: Tally = field(default_factory=Tally)
    family: str = "llava"
    images: Path | None = None
    shard_bytes: int = 1 << 30
    pixels: PixelBudget | None = None
    written: Written = field(default_factory=Written)

    def whole(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Count samples whose turns are all written, and yield them."""
        for sample in samples:
            self.written.add(sample.turns)
            yield sample

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


def row_id(row: Any, number: int, key: str = "id") -> str:
    """Return what a row calls itself, or its place in the file."""
    return (text_of(row.get(key)) if isinstance(row, dict) else "") or f"#{number}"


_IMAGE_FILE = re.compile(
    r"data:image/|[^\n]*\.(?:jpe?g|jfif|png|webp|avif|hei[cf]|bmp|gif|tiff?|mp4|webm|mov|mkv|avi)(?:[?#]\S*)?\s*\Z",
    re.IGNORECASE,
)
_SAID = frozenset("value content text ask answer locate expression system query response solution".split())
"""Keys of texts, which may end with a file's name."""
_IMAGE_KEY = re.compile(
    r"(?:image|img|picture|photo|video)s?(?:_?(?:urls?|uri|paths?|files?|names?|base64|b64|bytes|data))?", re.IGNORECASE
)


def image_of(row: Mapping[str, Any], reading: Reading) -> str:
    """Return the one image that a row names under "image" or "images", or "" where it names none anywhere.

    Raises RefusedError where it names several, what is no name, or an image under a key that is not read.
    """
    given = [row[key] for key in ("image", "images") if row.get(key) not in (None, "", [])]
    lists = [value if isinstance(value, list) else [value] for value in given]
    found = lists[0] if lists and lists[-1] == lists[0] else [name for names in lists for name in names]
    if not found:
        other = next((key for key, value in row.items() if _claims_image(key, value)), None)
        if other is not None:
            raise RefusedError(Issue.BAD_FIELD, f"the image is named under '{other}': call it 'image'")
        return ""
    name = found[0].get("path") if isinstance(found[0], dict) else found[0]
    if len(found) > 1 or not isinstance(name, str) or not name:
        raise RefusedError(Issue.BAD_FIELD, "image is not one path")
    return reading.image_name(name)


def _claims_image(key: str, value: Any) -> bool:
    """Whether a field of a row, or of an object in it, is an image by its name or by its value; what is said is not."""
    if _IMAGE_KEY.fullmatch(key):
        return bool(value)
    if isinstance(value, list):
        return any(_claims_image(key, entry) for entry in value)
    if isinstance(value, dict):
        return bool(value.get("bytes")) or any(_claims_image(name, part) for name, part in value.items())
    other = key in _SAID or (key.endswith("id") and not key.startswith("im"))
    return isinstance(value, str) and not other and _IMAGE_FILE.match(value) is not None


def text_of(value: Any) -> str:
    """Return a string, or a whole number as one; "" for all else."""
    if isinstance(value, str):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1000
    return str(value) if whole else ""


def check_named(image: str, texts: Iterable[str]) -> None:
    """Raise RefusedError where a dialogue holds an image's mark, of any family, and names none: it is not there."""
    if not image:
        for said in texts:
            if found := _MARK.search(said):
                raise RefusedError(Issue.IMAGE_UNNAMED, found[0])


def without_marks(text: str) -> str:
    """Return a question without `<image>` and the blanks around it."""
    return text.replace(IMAGE, "").strip() if IMAGE in text else text


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
