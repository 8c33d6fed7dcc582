"""WebDataset: shards in which each sample is KEY.json, a neutral row, with its image KEY.jpg beside it.

`datasets` refuses shards in which one sample has an image and another has none, and takes a shard that breaks off for
one that ends, so that the walk through the tar files is our own.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.neutral import neutral_record
from vpp_plugins.data.formats.reading import Reading, Writing, json_bytes, text_of
from vpp_plugins.data.json_stream import json_value
from vpp_plugins.data.record import ImageError, Record, image_path
from vpp_plugins.data.sample import Issue, RefusedError, Sample
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file, whole_folder

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
"""Extensions of images."""
_LIKE_IMAGES = frozenset({*IMAGES, "jfif", "avif", "heic", "heif", "jp2", "ppm", "pgm", "npy", "mp4", "webm"})
"""Those that are not read either: a sample of such a member claims an image."""
CONVERTED = ".vpp-data"
"""Name of the folder beside data in which what was made of them is kept."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class TarSample:
    """One sample of a shard; its members can be read as long as the walk through the shard goes on."""

    key: str
    file: io.BufferedIOBase
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By their extensions, in lower case: where in `file` the bytes begin, and how many they are."""
    repeated: str = ""
    """An extension that came twice: which of the two is meant, nobody knows."""

    def read(self, extension: str) -> bytes:
        """Return a member's bytes."""
        start, length = self.members[extension]
        self.file.seek(start)
        return self.file.read(length)

    @property
    def image(self) -> str:
        """The extension of its image, or ""."""
        return next((extension for extension in IMAGES if extension in self.members), "")


def read_webdataset(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per sample; images are written to `reading.images_to` where it is given."""
    for shard in shard_paths(path):
        alone: set[tuple[str, bool]] = set()
        for packed in tar_samples(shard):
            _check_together(packed, alone, shard)
            with reading.tally.counting(packed.key):
                row = _row(packed, reading.largest)
                with reading.tally.counting(row["id"]):
                    yield _record(packed, row, shard, reading)


def _check_together(packed: TarSample, alone: set[tuple[str, bool]], shard: Path) -> None:
    """Raise VPPError where a sample's image or row stood apart from it earlier in the shard.

    `alone` are the keys of rows (True) and of images (False) that stood without the other; this one is added.
    """
    key, has_row = packed.key.casefold(), "json" in packed.members
    if has_row == bool(packed.image):
        return
    if (key, not has_row) in alone:
        raise VPPError(
            f"'{shard}' holds '{packed.key}' in pieces that do not stand together, so that its image would be lost: "
            "sort its members by name, as tar --sort=name does."
        )
    alone.add((key, has_row))


def _row(packed: TarSample, largest: int) -> dict[str, Any]:
    """Return one sample's row with its id; an image has the name that the row gives it, or else its member's."""
    if packed.repeated:
        raise RefusedError(Issue.REPEATED_ID, f"two members {packed.key}.{packed.repeated}")
    if "json" not in packed.members:
        raise RefusedError(Issue.BAD_FIELD, "no .json beside it")
    if packed.members["json"][1] > largest:
        raise RefusedError(Issue.BAD_FIELD, f"its .json is longer than {largest:,} bytes")
    try:
        row = json_value(packed.read("json"), f"{packed.key}.json")
    except VPPError as error:
        raise RefusedError(Issue.BAD_FIELD, str(error)) from None
    if not isinstance(row, dict):
        raise RefusedError(Issue.BAD_FIELD, "not an object")
    image = f"{packed.key}.{packed.image}" if packed.image else ""
    return {**row, "id": text_of(row.get("id")) or packed.key, "image": row.get("image") or image}


def _record(packed: TarSample, row: dict[str, Any], shard: Path, reading: Reading) -> Record:
    record = neutral_record(row, row["id"], reading)
    unread = [name for name in packed.members if name.rpartition(".")[2] in _LIKE_IMAGES and name != packed.image]
    if unread and (record.image or not packed.image):
        found = f"'{packed.key}' has {packed.image or 'no image'} and {', '.join(unread)}: one image is read"
        raise RefusedError(Issue.NO_IMAGE, found)
    data = (lambda: packed.read(packed.image)) if packed.image else None
    place = (shard, *packed.members.get(packed.image, (0, 0)))
    return reading.with_image(record, data, place, missing=f"'{packed.key}' has no image beside its .json")


def shard_paths(path: Path) -> list[Path]:
    """Return the shards that a path means: a file, a folder's *.tar by name, or a pattern such as `{000..127}.tar`.

    Raises VPPError where one is not there.
    """
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            raise VPPError(f"the folder '{path}' holds no shard (*.tar).")
        return found
    shards = [Path(name) for name in _expanded(str(path))]
    if not shards:
        raise VPPError(f"'{path}' counts backwards, so it names no shard: write {{first..last}}.")
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise VPPError(f"{len(missing)} of {len(shards)} shards of '{path}' are not there, '{missing[0]}' for one.")
    return shards


def tar_samples(path: Path) -> Iterator[TarSample]:
    """Yield a shard's samples; what is no file in it is passed over.

    Raises VPPError where it is no tar file, is compressed, is damaged or breaks off: how many samples are missing then,
    nobody knows.
    """
    try:
        with path.open("rb") as file:
            yield from _walk(file, f"'{path}'")
    except OSError as error:
        raise VPPError(f"the shard '{path}' cannot be read ({error.strerror or error}).") from None


def _walk(file: io.BufferedIOBase, name: str) -> Iterator[TarSample]:
    current: TarSample | None = None
    whole = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            remembered: list[tarfile.TarInfo] = vars(tar)["members"]
            while (member := tar.next()) is not None:
                remembered.clear()  # else it would hold all members of the shard
                if tar.offset <= member.offset:
                    raise tarfile.ReadError("a member ends before it begins")
                if member.issparse() or member.size > whole:
                    raise tarfile.ReadError("a member is sparse, or larger than the shard")
                key, extension = _parts(member.name)
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not key:
                    continue
                if current is None or current.key != key:
                    if current is not None:
                        yield current
                    current = TarSample(key, file)
                if extension in current.members:
                    current.repeated = extension
                current.members[extension] = (member.offset_data, member.size)
            file.seek(tar.offset)
    except (
        tarfile.TarError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        EOFError,
    ) as error:  # headers say what they like
        raise VPPError(f"{name} is damaged, or no tar file ({error}){_compressed(file)}: fetch it again.") from None
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        after = f" after the sample '{current.key}'" if current is not None else ""
        raise VPPError(f"{name} is damaged or breaks off{after}: fetch it again.")
    if current is not None:
        yield current


def _compressed(file: io.BufferedIOBase) -> str:
    file.seek(0)
    packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    return "; it is compressed, and samples are read from the middle: unpack it first" if packed else ""


def _parts(name: str) -> tuple[str, str]:
    """Return key and extension: WebDataset cuts at the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), extension.lower()


def _expanded(pattern: str) -> Iterator[str]:
    ranges = [(int(first), int(last), len(first)) for first, last in _RANGE.findall(pattern)]
    pieces = _RANGE.sub("\0", pattern).split("\0")
    for numbers in product(*(range(first, last + 1) for first, last, _ in ranges)):
        filled = [f"{number:0{width}}" for number, (_, _, width) in zip(numbers, ranges, strict=True)]
        yield "".join(piece + number for piece, number in zip(pieces, [*filled, ""], strict=True))


def write_webdataset(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a folder of shards of about `writing.shard_bytes`; it takes its name when all of them are whole.

    Images are read below `writing.images`, and their bytes taken as they are: an image with several samples is
    stored with each. An existing folder is replaced only if it holds nothing but shards.
    """
    target = writing.path
    strangers = [path.name for path in _held(target) if path.suffix != ".tar" and path.name != CONVERTED]
    if strangers:
        raise VPPError(
            f"'{target}' holds more than shards ('{strangers[0]}'), and is not replaced: name another folder."
        )
    if not target.parent.is_dir():
        raise VPPError(f"the folder '{target.parent}' does not exist: make it first.")
    with whole_folder(target) as folder:
        _write_shards(_members(samples, writing), folder, writing.shard_bytes)


def _write_shards(members: Iterable[dict[str, bytes]], folder: Path, most: int) -> None:
    waiting, number, shard = iter(members), 0, 0
    sample = next(waiting, None)
    while sample is not None or not shard:
        path = folder / f"{shard:06}.tar"
        with whole_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            remembered: list[tarfile.TarInfo] = vars(tar)["members"]
            while sample is not None and tar.offset < most:
                for extension, data in sample.items():
                    member = tarfile.TarInfo(f"{number:09}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                remembered.clear()
                number += 1
                sample = next(waiting, None)
        shard += 1


def _members(samples: Iterable[Sample], writing: Writing) -> Iterator[dict[str, bytes]]:
    for sample in samples:
        row = {"json": json_bytes(sample.to_row())}
        if sample.image:
            if writing.images is None:
                raise VPPError("the format webdataset holds the images themselves: give their folder (--images).")
            extension = sample.image.rpartition(".")[2].lower()
            try:
                if extension not in IMAGES:
                    raise ImageError(f"'{sample.image}' should end in one of {', '.join(IMAGES)}.")
                row[extension] = image_path(writing.images, sample.image).read_bytes()
            except (OSError, ValueError, ImageError) as error:
                writing.tally.add(Issue.NO_IMAGE, sample.id, str(error))
                continue
        writing.written.add(sample.turns)
        yield row


def _held(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise VPPError(f"'{folder}' is a file, and shards go into a folder: name another.")
    return sorted(folder.iterdir())
