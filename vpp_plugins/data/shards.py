"""Tar files of samples, in WebDataset's layout: KEY.json, and its image KEY.jpg beside it.

A sample's members stand one after the other, so it is one stretch of bytes, which can be read alone.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase, BytesIO
from itertools import product
from pathlib import Path

from vpp_plugins.errors import VPPError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
"""Extensions of images."""
INDEX = ".vpp-index"
"""How the names of indexes begin that lie beside shards."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = tarfile.BLOCKSIZE


@dataclass
class Packed:
    """One sample: `length` bytes of a shard, from `start` on, in which its members lie.

    They can be read as long as the walk through the shard goes on.
    """

    key: str
    start: int
    length: int
    file: BufferedIOBase
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By their extensions, in lower case: where in `file` the bytes begin, and how many they are."""

    def read(self, extension: str) -> bytes:
        """Return a member's bytes."""
        start, length = self.members[extension]
        self.file.seek(start)
        return self.file.read(length)

    @property
    def image(self) -> str:
        """The extension of its image, or ""."""
        return next((extension for extension in IMAGES if extension in self.members), "")

    @property
    def image_name(self) -> str:
        """The name of its image, or ""."""
        return f"{self.key}.{self.image}" if self.image else ""


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
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise VPPError(f"{len(missing)} of {len(shards)} shards of '{path}' are not there, '{missing[0]}' for one.")
    return shards


def packed_samples(path: Path) -> Iterator[Packed]:
    """Yield a shard's samples; what is no file in it is passed over.

    Raises VPPError where it is no tar file, is compressed, is damaged or breaks off: how many samples are missing then,
    nobody knows.
    """
    try:
        with path.open("rb") as file:
            yield from _walk(file, f"'{path}'")
    except OSError as error:
        raise VPPError(f"the shard '{path}' cannot be read ({error.strerror or error}).") from None


def unpack(block: bytes, name: str) -> Packed:
    """Return the sample that a stretch of a shard holds; raises VPPError where it holds none."""
    found = next(_walk(BytesIO(block + bytes(2 * _BLOCK)), name), None)
    if found is None:
        raise VPPError(f"{name} holds no sample where one was: was it written anew?")
    return found


def _walk(file: BufferedIOBase, name: str) -> Iterator[Packed]:
    current: Packed | None = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            remembered: list[tarfile.TarInfo] = vars(tar)["members"]
            while (member := tar.next()) is not None:
                remembered.clear()  # else it would hold all members of the shard
                if tar.offset <= member.offset:
                    raise tarfile.ReadError("a member ends before it begins")
                key, extension = _parts(member.name)
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not key:
                    continue
                if current is None or current.key != key or extension in current.members:
                    if current is not None:
                        yield current
                    current = Packed(key, member.offset, 0, file)
                current.members[extension] = (member.offset_data, member.size)
                current.length = member.offset_data + -(-member.size // _BLOCK) * _BLOCK - current.start
            file.seek(tar.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # headers say what they like
        raise VPPError(f"{name} is damaged, or no tar file ({error}){_compressed(file)}: fetch it again.") from None
    if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes a damaged header for the end
        after = f" after the sample '{current.key}'" if current is not None else ""
        raise VPPError(f"{name} is damaged or breaks off{after}: fetch it again.")
    if current is not None:
        yield current


def _compressed(file: BufferedIOBase) -> str:
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
