"""Samples that stay in their files: each is read when it is asked for, by its number.

    samples = stored_samples(Path("shards/{000..127}.tar"), "webdataset")
    samples[70_000], samples.image(70_000)          # read now, from their place in their shard

So a data set may be larger than memory, and still be shuffled, mixed, divided among processes, and resumed by a step.
What is known of it, where each sample begins, is an index of 16 bytes a sample, made by reading all of it once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from vpp_plugins.data.convert import progress_bar
from vpp_plugins.data.formats.arrow import arrow_files, arrow_image, arrow_record, arrow_row, arrow_rows
from vpp_plugins.data.formats.neutral import neutral_record, neutral_row
from vpp_plugins.data.formats.reading import Reading
from vpp_plugins.data.formats.webdataset import packed_record
from vpp_plugins.data.image_sizes import ImageError, ImageSizes, image_path
from vpp_plugins.data.json_stream import json_value, placed_lines
from vpp_plugins.data.record import Record, to_sample
from vpp_plugins.data.sample import Sample
from vpp_plugins.data.sample_index import PLACE, SampleIndex, Source, keep_index, load_index
from vpp_plugins.data.shards import packed_samples, shard_paths, unpack
from vpp_plugins.data.tally import Issue, Tally
from vpp_plugins.errors import VPPError

LARGE = 64 << 20
"""Bytes of data from which on an index is kept, and a bar shown while it is made."""
LARGEST = 1 << 30
"""Bytes that one sample may take, its image included."""

Placed = tuple[int, int, Record]
"""Where a record begins in its file and how many bytes it takes (of rows, its number and 0), and what it says."""


@dataclass(frozen=True)
class Layout:
    """How samples lie in files, so that each can be read alone."""

    files: Callable[[Path], list[Path]]
    placed: Callable[[Path, Reading], Iterator[Placed]]
    stored: Callable[[Path, int, int], Any]
    """What a file holds from a place on, that long: bytes, or a row."""
    record: Callable[[Any, int, Reading], Record | None]
    """What that says; its place is for errors."""
    image: Callable[[Any, int], bytes | None] | None
    """Its image; None where images lie in a folder."""


class StoredSamples(Sequence[Sample]):
    """A data set's samples by number, read from their files each time."""

    def __init__(self, layout: Layout, source: Source, index: SampleIndex, reading: Reading, root: Path) -> None:
        self.layout, self.source, self.found, self.root = layout, source, index, root
        self._reading, self._outside = reading, root if layout.image is None else None
        self._last: tuple[int | None, Any, int] = (None, b"", 0)  # a sample's image is asked for right after it

    def __len__(self) -> int:
        return len(self.found.places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Return a sample; raises VPPError where its file has changed since the index was made."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        stored, start = self._stored(index)
        tally = Tally()
        record = self.layout.record(stored, start, replace(self._reading, tally=tally))
        sample = None if record is None else to_sample(record, ImageSizes(self._outside), tally)
        if sample is None:
            raise VPPError(f"sample {index} is none any more: its file was changed after its index was made.")
        return sample

    def image(self, index: int) -> bytes | Path | None:
        """Return a sample's image, its bytes or its path, or None where it has none."""
        if self.layout.image is not None:
            return self.layout.image(*self._stored(index))
        image = self[index].image
        return image_path(self.root, image) if image else None

    def _stored(self, index: int) -> tuple[Any, int]:
        """Return what a file holds of a sample, and where it begins."""
        if self._last[0] != index:
            number, start, length = self.found.places[index].tolist()
            self._last = (index, self.layout.stored(self.source.files[number], start, length), start)
        return self._last[1:]


def stored_samples(
    path: Path,
    format_name: str,
    *,
    root: Path,
    reading: Reading | None = None,
    limit: int | None = None,
    spare: Path | None = None,
    progress: bool = True,
) -> StoredSamples:
    """Find a data set's samples, by its index or by reading it once.

    `root` is the folder of the images, where they are not in the files; `limit` takes the first so many samples. An
    index of more than 64 MB of data is kept beside them, or in the folder `spare` where that cannot be written, unless
    images are missing in `root`: they may come. Raises VPPError where a file is not there, or is damaged.
    """
    layout, reading = LAYOUTS[format_name], reading or Reading()
    outside = () if layout.image is not None else (str(root.absolute()),)
    choices = (format_name, reading.split, str(limit), *outside)
    source = Source(tuple(layout.files(path)), choices)
    folders = [source.files[0].parent, *([] if spare is None else [spare])]
    index = load_index(source, folders)
    if index is None:
        large = source.size >= LARGE
        index = _indexed(layout, source, reading, root, limit, title=path.name, progress=progress and large)
        may_come = layout.image is None and index.tally.counts[Issue.NO_IMAGE]
        if large and not may_come:
            keep_index(index, source, folders)
    return StoredSamples(layout, source, index, reading, root)


def image_is_there(root: Path, sample: Sample, tally: Tally) -> bool:
    """Whether a sample has no image, or one that is a file; what is wrong is counted."""
    if not sample.image:
        return True
    try:
        path = image_path(root, sample.image)
    except ImageError as error:
        tally.add(Issue.UNSAFE_PATH, sample.id, str(error))
        return False
    if not path.is_file():
        tally.add(Issue.NO_IMAGE, sample.id, sample.image)
        return False
    return True


def sample_line(sample: Sample) -> bytes:
    """Return what a digest of samples is made of."""
    return json.dumps(neutral_row(sample), ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _indexed(
    layout: Layout, source: Source, reading: Reading, root: Path, limit: int | None, *, title: str, progress: bool
) -> SampleIndex:
    outside = root if layout.image is None else None
    tally, digest, places = reading.tally, hashlib.sha256(), bytearray()
    count = 0
    with progress_bar(f"Indexing {title}", shown=progress) as advance:
        for number, start, length, record in _all_placed(layout, source, reading):
            if limit is not None and count >= limit:
                break
            if length > LARGEST:
                tally.add(Issue.BAD_FIELD, record.id, f"takes more than {LARGEST:,} bytes")
                continue
            sample = to_sample(record, ImageSizes(outside), tally)
            if sample is None or (layout.image is None and not image_is_there(root, sample, tally)):
                continue
            digest.update(sample_line(sample))
            places += np.array((number, start, length), PLACE).tobytes()
            count += 1
            if count % 1000 == 0:
                advance(1000)
    return SampleIndex(np.frombuffer(places, PLACE), digest.hexdigest(), tally)


def _all_placed(layout: Layout, source: Source, reading: Reading) -> Iterator[tuple[int, int, int, Record]]:
    for number, file in enumerate(source.files):
        for start, length, record in layout.placed(file, reading):
            yield number, start, length, record


def _bytes(path: Path, start: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:  # opened each time: forked workers would share a file's position
            file.seek(start)
            block = file.read(length)
    except OSError as error:
        raise VPPError(f"'{path}' cannot be read ({error.strerror or error}).") from None
    if len(block) < length:
        raise VPPError(f"'{path}' ends before byte {start + length:,}: it was changed after its index was made.")
    return block


def _lines_file(path: Path) -> list[Path]:
    if not path.is_file():
        raise VPPError(f"'{path}' is no file: the format neutral is JSON lines in one file.")
    return [path]


def _placed_lines(path: Path, reading: Reading) -> Iterator[Placed]:
    for start, length, row in placed_lines(path, largest=reading.largest):
        record = neutral_record(row, start, reading)
        if record is not None:
            yield start, length, record


def _line_record(block: bytes, start: int, reading: Reading) -> Record | None:
    return neutral_record(json_value(block, f"the line at byte {start:,}"), start, reading)


def _placed_packed(path: Path, reading: Reading) -> Iterator[Placed]:
    for packed in packed_samples(path):
        record = packed_record(packed, reading)
        if record is not None:
            yield packed.start, packed.length, record


def _unpacked_record(block: bytes, start: int, reading: Reading) -> Record | None:
    return packed_record(unpack(block, f"the sample at byte {start:,}"), reading)


def _unpacked_image(block: bytes, start: int) -> bytes | None:
    packed = unpack(block, f"the sample at byte {start:,}")
    return packed.read(packed.image) if packed.image else None


def _placed_rows(path: Path, reading: Reading) -> Iterator[Placed]:
    for number, row in arrow_rows(path):
        record = arrow_record(row, f"#{number}", reading)
        if record is not None:
            yield number, 0, record


def _row(path: Path, number: int, length: int) -> dict[str, Any]:
    return arrow_row(path, number)


def _row_record(row: dict[str, Any], number: int, reading: Reading) -> Record | None:
    return arrow_record(row, f"#{number}", reading)


def _row_image(row: dict[str, Any], number: int) -> bytes | None:
    return arrow_image(row)


LAYOUTS: Mapping[str, Layout] = {
    "neutral": Layout(_lines_file, _placed_lines, _bytes, _line_record, None),
    "webdataset": Layout(shard_paths, _placed_packed, _bytes, _unpacked_record, _unpacked_image),
    "datasets": Layout(arrow_files, _placed_rows, _row, _row_record, _row_image),
}
"""The formats of which a sample can be read alone, by their names among the formats."""
