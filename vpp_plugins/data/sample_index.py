"""Where each sample of a data set lies: 16 bytes a sample, kept beside the data, and read again by the next run."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vpp_plugins.data.shards import INDEX
from vpp_plugins.data.tally import Issue, Tally
from vpp_plugins.files import whole_file

PLACE = np.dtype([("file", "<u4"), ("start", "<u8"), ("length", "<u4")])
"""One sample: the number of its file, its first byte there, and how many bytes it has."""


@dataclass(frozen=True)
class SampleIndex:
    """The places of a data set's samples, an array of PLACE; what the samples say in short, and what was left out."""

    places: np.ndarray
    digest: str
    tally: Tally


@dataclass(frozen=True)
class Source:
    """What an index is made from. If a file gets another size or date, or a choice differs, it is made anew."""

    files: tuple[Path, ...]
    choices: tuple[str, ...]

    @property
    def index_name(self) -> str:
        """A name of its own for each choice of files and of how to read them."""
        said = json.dumps([[str(file.name) for file in self.files], self.choices])
        return f"{INDEX}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def stamp(self) -> list[Any]:
        """Return what must still be so for an index to hold."""
        states = [(file.name, file.stat()) for file in self.files]
        return [version("vpp-plugins"), list(self.choices), *([name, s.st_size, s.st_mtime_ns] for name, s in states)]


def load_index(source: Source, folders: Iterable[Path]) -> SampleIndex | None:
    """Return the index that one of the folders holds, mapped into memory; None where none holds for the source."""
    for folder in folders:
        with suppress(OSError, ValueError, KeyError, TypeError):  # no index, or none that was written here
            path = folder / source.index_name
            with path.open("rb") as file:
                head = file.readline()
            about = json.loads(head)
            if about["stamp"] == source.stamp():
                places = np.memmap(path, PLACE, "r", offset=len(head), shape=(about["samples"],))
                counts = Counter({Issue(issue): count for issue, count in about["counts"].items()})
                examples = {Issue(issue): said for issue, said in about["examples"].items()}
                return SampleIndex(places, about["digest"], Tally(counts, examples))
    return None


def keep_index(index: SampleIndex, source: Source, folders: Iterable[Path]) -> Path | None:
    """Write an index into the first folder that can be written, and return its path, or None."""
    about = {
        "stamp": source.stamp(),
        "samples": len(index.places),
        "digest": index.digest,
        "counts": index.tally.counts,
        "examples": index.tally.examples,
    }
    for folder in folders:
        with suppress(OSError):
            if folder.is_dir():
                with whole_file(folder / source.index_name) as file:
                    file.write(json.dumps(about).encode() + b"\n" + index.places.tobytes())
                return folder / source.index_name
    return None
