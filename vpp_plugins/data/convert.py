"""Convert a data set from one format into another, as a stream."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vpp_plugins.data.formats import Reading, Writing, data_format
from vpp_plugins.data.json_stream import progress_bar
from vpp_plugins.data.record import ImageSizes, PixelBudget, Record, samples
from vpp_plugins.data.sample import Sample, Tally
from vpp_plugins.errors import VPPError


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote, and what was faulty."""

    samples: int
    turns: int
    boxes: int
    tally: Tally


def convert(
    source: str | Path,
    target: str | Path,
    *,
    source_format: str,
    target_format: str,
    images: str | Path | None = None,
    sizes: str | Path | None = None,
    family: str = "llava",
    target_family: str = "",
    reading: Reading | None = None,
    shard_bytes: int = 1 << 30,
    overwrite: bool = False,
    target_pixels: PixelBudget | None = None,
    chosen: Callable[[Iterable[Record]], Iterable[Record]] = iter,
    progress: bool = True,
) -> Conversion:
    """Convert a file; the target appears when it is complete.

    `images` is the folder of the images, and `sizes` a file of their sizes, read first and added to: an interrupted
    run need not open the images again. `family` names whose boxes stand in the source's text, `target_family` whose
    are written (the same unless named). `target_pixels` is how images
    are resized in whose pixels those are counted (the same unless named). `chosen` is given the records and returns
    those to convert. `shard_bytes` is about how large each of several files is. Faults are counted in the result;
    see `data.sample.Issue`. Raises VPPError where the source is no such format, a size cannot be found,
    or the target exists and `overwrite` is not set.
    """
    source, target = Path(source), Path(target)
    reader, writer = data_format(source_format), data_format(target_format).write
    if writer is None:
        raise VPPError(f"the format '{target_format}' can only be read.")
    check_target(target, data_format(source_format).files(source), overwrite=overwrite)
    if not target.absolute().parent.is_dir():
        raise VPPError(f"the folder '{target.parent}' does not exist: make it first.")
    reading = replace(reading or Reading(), family=family)
    folder = Path(images) if images is not None else None
    with ExitStack() as stack:
        if data_format(source_format).holds_images and data_format(target_format).holds_images:
            folder = reading.images_to or Path(stack.enter_context(TemporaryDirectory(dir=target.absolute().parent)))
            reading = replace(reading, images_to=folder)
        known = ImageSizes(folder, Path(sizes) if sizes is not None else None)
        writing = Writing(
            target, reading.tally, target_family or family, folder, shard_bytes, target_pixels or reading.pixels
        )
        stack.callback(known.save)
        advance = stack.enter_context(progress_bar(f"Converting {source.name}", shown=progress))
        records = chosen(reader.records(source, reading))
        found = advancing(samples(records, known, reading.tally), advance)
        writer(_some(found, writing, source, source_format, target_format), writing)
    written = writing.written
    return Conversion(written.samples, written.turns, written.boxes, reading.tally)


def copies(source_format: str, target_format: str, folder: Path) -> Path | None:
    """Return the folder for images that lie in the source and have no place in the target, or None."""
    return folder if data_format(source_format).holds_images > data_format(target_format).holds_images else None


def advancing(found: Iterable[Sample], advance: Callable[[int], None]) -> Iterator[Sample]:
    """Yield the same samples; `advance` is called every thousand."""
    for number, sample in enumerate(found, start=1):
        yield sample
        if number % 1000 == 0:
            advance(1000)


def _some(
    found: Iterable[Sample], writing: Writing, source: Path, source_format: str, target_format: str
) -> Iterator[Sample]:
    """Yield the samples; at their end, raise VPPError where none was written: then the file does not appear."""
    yield from found
    if not writing.written.samples:
        said = f"nothing of '{source}' could be written as {target_format}, so nothing was"
        folder = None if data_format(source_format).holds_images else writing.images
        raise writing.tally.nothing_left(said, source, source_format, folder)


def check_target(target: Path, sources: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse a target that is one of the sources or holds one, or that exists and may not be overwritten."""
    if target.exists() and any(
        source.exists() and (source.samefile(target) or source.resolve().is_relative_to(target.resolve()))
        for source in sources
    ):
        raise VPPError(f"'{target}' is read and cannot be written at the same time: name another file.")
    if target.exists() and not overwrite:
        raise VPPError(f"'{target}' exists: name another file, or allow overwriting (--overwrite).")
