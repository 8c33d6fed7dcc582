"""The samples of a run, each with its image: converted once, mapped into memory, mixed by weight.

    data = open_data("shards/{000..127}.tar", "webdataset", cache="run")
    data[70_000].sample, data[70_000].image

All data are read once, checked, and written as an Arrow file of their samples, which `datasets` maps into memory;
images stay where they are, in their folder, shard or row. So data may be larger than memory, and be shuffled, mixed,
divided among processes, and resumed by a step.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from PIL import Image

from vpp_plugins.data.formats import Reading, data_format
from vpp_plugins.data.formats.arrow import row_image
from vpp_plugins.data.formats.webdataset import CONVERTED
from vpp_plugins.data.json_stream import progress_bar
from vpp_plugins.data.record import ROW, ImageError, ImageSizes, image_path, to_sample
from vpp_plugins.data.sample import CHOSEN, KEPT, Issue, Sample, Tally
from vpp_plugins.errors import VPPError, known_name, named_extras
from vpp_plugins.files import sealed, sha256_of, unsealed, whole_file, why_unwritable

LARGE = 64 << 20
"""Bytes of data from which on what is converted is kept beside them, for other runs too, and a bar is shown."""
WHOLE = -2
"""Length of an image that is a file of its own."""
_ABOUT = "about converted samples"


@dataclass(frozen=True)
class LoadedSample:
    """One sample of a data set, and its image, or the reason why it has none that can be used."""

    index: int
    """Its number in the data."""
    sample: Sample
    image: Image.Image | None
    """Upright and RGB; None for text alone."""
    reason: str = ""
    """Why the sample cannot be used, "" where it can."""


class TrainingData(ABC):
    """Samples by number, each loaded with its image when it is asked for."""

    tally: Tally
    """What was found wrong."""
    has_images: bool
    """Whether any sample has an image."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> LoadedSample:
        """Load a sample; one that cannot be used says why, and nothing is raised."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of all samples in order: a run goes on only with the data that it began with."""

    @property
    def lost(self) -> int:
        """How many faults cost a turn or a sample."""
        return sum(count for issue, count in self.tally.counts.items() if issue not in KEPT | CHOSEN)


class StoredData(TrainingData):
    """Samples of an Arrow file that `open_data` wrote."""

    def __init__(self, rows: Any, about: Mapping[str, Any]) -> None:
        self._rows, self._digest = rows, about["digest"]
        self.has_images = bool(about["images"])
        self.tally = Tally(
            Counter({Issue(issue): count for issue, count in about["counts"].items()}),
            {Issue(issue): list(found) for issue, found in about["examples"].items()},
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> LoadedSample:
        from vpp_plugins.images import load_image  # loads torch, which converting does without

        row = self._rows[index]
        sample = Sample.from_row(json.loads(row["sample"]))
        try:
            place = (Path(row["file"]), row["start"], row["length"])
            return LoadedSample(index, sample, load_image(_image_at(*place)) if row["file"] else None)
        except VPPError as error:
            return LoadedSample(index, sample, None, str(error))

    def fingerprint(self) -> str:
        """Return the SHA-256 of all samples in order; images' bytes are not read."""
        return str(self._digest)


def open_data(
    path: str | Path,
    format_name: str,
    *,
    cache: str | Path,
    images: str | Path | None = None,
    reading: Reading | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> StoredData:
    """Return a data set's samples, converted now or by an earlier run.

    `images` is the folder of images that are not in the data (None: the data's own folder), and `limit` takes the first
    so many samples. The Arrow file is kept in the folder `cache`, or of large data beside them, and is made anew where
    a file of the data has another size or date, or it is damaged itself. While images are missing it serves one run
    only: they may come. Raises VPPError where a file is not there or damaged, or no sample is left.
    """
    path, reading = Path(path), reading or Reading()
    root = Path(images) if images is not None else path.parent if path.is_file() else path
    files = data_format(format_name).files(path)
    family = f"{reading.family} {reading.pixels}" if reading.pixels else reading.family
    family += f" {reading.boxes}" if reading.boxes else ""
    stamp = _stamp(files, (format_name, reading.split, family, str(limit), str(root.absolute()), str(reading.pixels)))
    large = sum(size for _, size, _ in stamp[2]) >= LARGE
    name = hashlib.sha256(json.dumps([stamp[1], [file for file, *_ in stamp[2]]]).encode()).hexdigest()[:16]
    beside, own = (folder / CONVERTED / f"{name}.arrow" for folder in (files[0].parent, Path(cache)))
    for kept in (beside, own):
        about = _about(kept, stamp)
        if about is not None:
            return _stored(kept, about)
    target = beside if large and not why_unwritable(beside.parent) else own
    if why_unwritable(target.parent):
        raise VPPError(f"'{target.parent}' cannot be written: samples are converted there, so choose another folder.")
    with progress_bar(f"Converting {path.name}", shown=progress and large) as advance:
        records = _with_places(path, format_name, root, reading, limit)
        about = _write(target, records, advance, reading.tally)
    if not about["samples"]:
        target.unlink()
        raise reading.tally.nothing_left("the data hold no sample to train on", path, format_name, images)
    if data_format(format_name).has_images or not about["counts"].get(Issue.NO_IMAGE):
        with whole_file(target.with_suffix(".json")) as file:
            file.write(json.dumps(sealed({**about, "stamp": stamp}, _ABOUT)).encode())
    return _stored(target, about)


@named_extras()
def _stored(file: Path, about: Mapping[str, Any]) -> StoredData:
    from datasets import Dataset

    return StoredData(Dataset.from_file(str(file)), about)


def _with_places(
    path: Path, format_name: str, root: Path, reading: Reading, limit: int | None
) -> Iterator[tuple[Sample, tuple[Path, int, int] | None]]:
    """Yield the samples that can be used, and where their images lie."""
    sizes, count = ImageSizes(root if root.is_dir() else None), 0
    for record in data_format(format_name).records(path, replace(reading, by_place=True)):
        if count == limit:
            return
        with reading.tally.counting(record.id):
            sample = to_sample(record, sizes, reading.tally)
            place = (record.place or _own_file(root, sample.image)) if sample.image else None
            count += 1
            yield sample, place


def _own_file(root: Path, name: str) -> tuple[Path, int, int]:
    path = image_path(root, name)
    if not path.is_file():
        raise ImageError(name)
    return path, 0, WHOLE


@named_extras()
def _write(target: Path, samples: Iterator[Any], advance: Any, tally: Tally) -> dict[str, Any]:
    """Write the Arrow file, whole or not at all, and return what must be known of it."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    digest, count, images = hashlib.sha256(), 0, 0
    columns = {"sample": "binary", "file": "string", "start": "int64", "length": "int64"}
    features = Features({name: Value(kind) for name, kind in columns.items()})
    with whole_file(target) as file:
        writer = ArrowWriter(stream=file, features=features, writer_batch_size=1000)
        for sample, place in samples:
            line = sample.line()
            digest.update(line + b"\n")
            at, start, length = place or ("", 0, 0)
            writer.write({"sample": line, "file": at and str(Path(at).absolute()), "start": start, "length": length})
            count, images = count + 1, images + (place is not None)
            if count % 1000 == 0:
                advance(1000)
        writer.finalize(close_stream=False)
    about = {"samples": count, "images": images, "digest": digest.hexdigest(), "sha256": sha256_of(target)}
    return {**about, "counts": dict(tally.counts), "examples": tally.examples}


def _stamp(files: Sequence[Path], choices: tuple[str, ...]) -> list[Any]:
    """Return what must still be so for a converted file to hold."""
    try:
        states = [(str(file.absolute()), file.stat()) for file in files]
    except OSError as error:
        raise VPPError(f"'{files[0]}' cannot be read ({error.strerror or error}).") from None
    return [version("vpp-plugins"), list(choices), [[name, state.st_size, state.st_mtime_ns] for name, state in states]]


def _about(kept: Path, stamp: list[Any]) -> dict[str, Any] | None:
    """Return what stands beside a converted file, or None where that is another's, or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = unsealed(json.loads(kept.with_suffix(".json").read_bytes()), _ABOUT)
        if about["stamp"] == stamp and about["sha256"] == sha256_of(kept):
            return about
    return None


def _image_at(file: Path, start: int, length: int) -> Path | bytes:
    """Return an image's file, or its bytes where it lies in another."""
    if length == WHOLE:
        return file
    if length == ROW:
        return row_image(file, start)
    try:
        with file.open("rb") as shard:  # opened each time: forked workers would share a file's position
            shard.seek(start)
            block = shard.read(length)
    except OSError as error:
        raise VPPError(f"'{file}' cannot be read ({error.strerror or error}).") from None
    if len(block) < length:
        raise VPPError(f"'{file}' ends before byte {start + length:,}: it was changed after it was converted.")
    return block


@runtime_checkable
class MixtureSource(Protocol):
    """What has items by number: a data set, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class Mixture:
    """Items of several sources, in shares given by weights, evenly mixed.

        mixed = Mixture({"grounding": boxes, "chat": talk}, weights={"grounding": 3, "chat": 1}, length=100_000)

    `length` is how many items one epoch has; None takes as many as all sources together. A source is shown as a whole,
    in random order or with `shuffled=False` in its own, before any of its items comes again. Without weights, shares
    are as the sources' sizes. The order is fixed by the seed alone, so a run is resumed by its step, and nothing needs
    to be saved.
    """

    def __init__(
        self,
        sources: Mapping[str, MixtureSource],
        *,
        weights: Mapping[str, float] | None = None,
        length: int | None = None,
        seed: int = 0,
        shuffled: bool = True,
    ) -> None:
        self.sources = dict(sources)
        sizes = [len(source) for source in self.sources.values()]
        shares, length = _shares(self.sources, weights), sum(sizes) if length is None else length
        self.order = mixture_order(sizes, shares, length=length, seed=seed, shuffled=shuffled)
        self._names = list(self.sources)
        self._starts = np.array([0, *accumulate(sizes)])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        name, item = self.where(index)
        return self.sources[name][item]

    def where(self, index: int) -> tuple[str, int]:
        """Return the source of an item, and its number there."""
        source = int(np.searchsorted(self._starts, self.order[index], side="right")) - 1
        return self._names[source], int(self.order[index] - self._starts[source])

    def counts(self) -> dict[str, int]:
        """Return how many items of each source one epoch has."""
        counts, _ = np.histogram(self.order, self._starts)
        return dict(zip(self.sources, counts.tolist(), strict=True))


class MixedData(TrainingData):
    """Samples of several sets, evenly mixed; each set finds its own images.

    `weights` say how many samples of each set come for one of the first set, which comes once as a whole. Sets are in
    random order or with `shuffled=False` in their own.
    """

    def __init__(self, parts: Sequence[TrainingData], weights: Sequence[float], *, shuffled: bool = True) -> None:
        length = sum(round(len(parts[0]) * weight) for weight in weights)
        named = {str(number): part for number, part in enumerate(parts)}
        shares = dict(zip(named, weights, strict=True))
        self.mixture = Mixture(named, weights=shares, length=length, shuffled=shuffled)
        self.parts, self.tally = tuple(parts), Tally()
        self.has_images = any(part.has_images for part in parts)
        for part in reversed(parts):
            self.tally.counts += part.tally.counts
            self.tally.examples |= part.tally.examples

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> LoadedSample:
        return replace(self.mixture[index], index=index)

    def fingerprint(self) -> str:
        """Return a digest of the sets and of the order of their samples."""
        digest = hashlib.sha256(self.mixture.order.tobytes())
        for part in self.parts:
            digest.update(part.fingerprint().encode())
        return digest.hexdigest()


def mixture_order(
    sizes: Sequence[int], weights: Sequence[float], *, length: int, seed: int = 0, shuffled: bool = True
) -> Int64[np.ndarray, " length"]:
    """Return which items come one after the other, as numbers in all sources one behind the other.

    Shares are exact up to one item. Each source's items come in passes, each a random order of all of them, or with
    `shuffled=False` their own; every stretch of the result holds the sources in about their shares. Raises VPPError
    where a weight is below zero or not finite, where all are zero, and where a source with a weight is empty.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(weights, dtype=float)
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise VPPError(
            f"the weights of a mixture are numbers from 0 up, one above 0 at least, but are {list(weights)}."
        )
    if length < 1:
        raise VPPError(f"a mixture has at least one item, but its length is {length}.")
    counts = _apportion(shares / shares.sum(), length)
    starts = [0, *accumulate(sizes)]
    keys, items = [], []
    for start, size, count in zip(starts, sizes, counts, strict=False):
        if count and not size:
            raise VPPError("a source of the mixture has a weight but no items: leave it out, or give it weight 0.")
        passes = -(-count // size) if count else 0
        drawn = [rng.permutation(size) if shuffled else np.arange(size) for _ in range(passes)]
        items.append(start + np.concatenate([np.empty(0, dtype=np.int64), *drawn])[:count])
        # one random place in each of `count` equal stretches: sources spread evenly, and keep their own order
        keys.append((np.arange(count) + rng.random(count)) / max(1, count))
    return np.concatenate(items)[np.argsort(np.concatenate(keys), kind="stable")].astype(np.int64)


def _apportion(shares: np.ndarray, length: int) -> list[int]:
    """Return whole numbers that add up to the length, by the largest remainders."""
    exact = shares * length
    counts = np.floor(exact).astype(int)
    most = np.argsort(counts - exact, kind="stable")[: length - counts.sum()]
    counts[most] += 1
    return [int(count) for count in counts]


def _shares(sources: Mapping[str, MixtureSource], weights: Mapping[str, float] | None) -> list[float]:
    if not sources:
        raise VPPError("a mixture needs at least one source, but there is none.")
    if weights is None:
        return [float(len(source)) for source in sources.values()]
    for name in weights:
        known_name(name, sources, "source of the mixture")
    if missing := [name for name in sources if name not in weights]:
        raise VPPError(f"the source '{missing[0]}' of the mixture has no weight: give every source one, or none any.")
    return [float(weights[name]) for name in sources]
