"""Examine a data set before it costs a training run: which faults it has, and in which frame and unit its boxes are."""

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image

from vpp_plugins.config import most_image_pixels
from vpp_plugins.data.doctor.collect import BoxColumns, Collector, Example, Fault, Finding
from vpp_plugins.data.doctor.fix import Cure, doctor_command
from vpp_plugins.data.doctor.frame_evidence import Candidate, Columns, FrameVerdict, Sizes
from vpp_plugins.data.doctor.statistics import Statistics, statistics_of
from vpp_plugins.data.formats import Reading, data_format
from vpp_plugins.data.json_stream import progress_bar
from vpp_plugins.data.record import (
    ImageError,
    ImageSizes,
    PixelBudget,
    Record,
    UnsafePathError,
    image_path,
    upright_size,
)
from vpp_plugins.data.same_images import Digest, image_digest, shared_images
from vpp_plugins.errors import VPPError

_SHOWN = 5


@dataclass(frozen=True)
class DoctorReport:
    """What the doctor found.

    `verdicts` holds one judgement per declared unit; none where there are no boxes, or no image's size is known.
    """

    path: Path
    format: str
    folder: Path | None
    samples: int
    boxes: int
    images: int
    findings: tuple[Finding, ...]
    verdicts: tuple[FrameVerdict, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    statistics: Statistics
    cure: Cure

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def examine(
    path: str | Path,
    format_name: str,
    *,
    images: str | Path | None = None,
    sizes: str | Path | None = None,
    family: str = "llava",
    boxes: str = "",
    pixels: PixelBudget | None = None,
    against: str | Path | None = None,
    against_format: str = "",
    against_images: str | Path | None = None,
    decode: int = 5000,
    progress: bool = True,
) -> DoctorReport:
    """Read a data set once and report its faults; nothing is changed.

    `images` is the folder of the images. Without it, or a file of their `sizes`, boxes of a format that stores no
    sizes are not judged, a finding. All images' headers are read, and up to `decode` images, drawn at random, decoded
    whole. `boxes` and `pixels` are as in `Reading`; where numbers do not decide how boxes of dialogues are written,
    `boxes` is asked for. No image may be shared with `against`, such as a test set. Raises VPPError for no such files.
    """
    path, folder = Path(path), Path(images) if images is not None else None
    known = Path(sizes) if sizes is not None else None
    reading = Reading(family=family, boxes=boxes, pixels=pixels)
    collector = _collected(path, format_name, reading, ImageSizes(folder, known), progress=progress)
    verdicts = {columns: columns.judged() for columns in collector.columns.values()}
    asks = not boxes and not data_format(format_name).says_unit
    frames, undecided = _frames(verdicts, collector.ids, asks=asks, sized=folder is not None or known is not None)
    found, notes, left_out = collector.findings() + frames, collector.notes(verdicts, undecided), set[str]()
    if folder is not None:
        checked = check_images(folder, collector.images, decode=decode, progress=progress)
        found += checked.findings(len(collector.images))
        left_out |= {*checked.unsafe, *checked.unreadable}
        notes.append(f"{checked.decoded:,} of {len(collector.images):,} images were decoded whole.")
    else:
        notes.append(_unseen(format_name))
    if against is not None:
        theirs = against_format or format_name, Reading(family=family, pixels=pixels), against_images
        both, by_names = _shared(collector.images, _digest(format_name, reading, images), Path(against), *theirs)
        left_out |= set(both)
        notes += by_names
        found.append(_leakage(both, len(collector.images), against))
    other = {"against": against, "against_format": against_format, "against_images": against_images}
    cure = Cure(
        command=doctor_command(path, format_name, reading, images=images, sizes=sizes, **other),
        path=path,
        format=format_name,
        folder=folder,
        sizes=known,
        reading=reading,
        rows=frozenset(collector.repeats.duplicates).union(*(columns.fractions for columns in verdicts)),
        images=frozenset(left_out),
        best=next((verdict.best for verdict in verdicts.values() if verdict and verdict.contradicts), None),
        undecided=undecided,
    )
    return DoctorReport(
        path=path,
        format=format_name,
        folder=folder,
        samples=len(collector.ids),
        boxes=sum(map(len, collector.columns.values())),
        images=len(collector.images),
        findings=tuple(replace(finding, fix=cure.for_finding(finding)) for finding in found if finding.count),
        verdicts=tuple(verdict for verdict in verdicts.values() if verdict is not None),
        examples=tuple(collector.examples),
        notes=tuple(notes),
        statistics=statistics_of(_read_as(verdicts), collector.sayings),
        cure=cure,
    )


def _frames(
    verdicts: Mapping[BoxColumns, FrameVerdict | None], ids: Sequence[str], *, asks: bool, sized: bool
) -> tuple[list[Finding], str]:
    """Return what is wrong with frames and units, and the options to state first, "" where all is decided."""
    found, undecided = [], ""
    for columns, verdict in verdicts.items():
        wrong = columns.findings(verdict, ids)
        if verdict is not None and not verdict.decided and (asks or verdict.contradicts):
            wrong = wrong or [_question(verdict, len(columns))]
            undecided = verdict.best.options
        elif verdict is None and len(columns) and not sized:
            wrong, undecided = [*wrong, _unsized(len(columns))], "--images FOLDER"
        elif verdict is not None and verdict.contradicts and len(verdicts) > 1:  # one statement cannot hold for all
            undecided = verdict.best.options
        found += wrong
    return found, undecided


def _collected(path: Path, format_name: str, reading: Reading, sizes: ImageSizes, *, progress: bool) -> Collector:
    collector = Collector(sizes, reading.tally)
    with progress_bar(f"Reading {path.name}", shown=progress) as advance:
        for row, record in enumerate(data_format(format_name).records(path, reading)):
            collector.add(row, record)
            if row % 1000 == 999:
                advance(1000)
    return collector


def _leakage(shared: Sequence[str], total: int, against: str | Path) -> Finding:
    meaning = f"What is learned on them, '{against}' no longer measures."
    return Finding(Fault.LEAKAGE, len(shared), total, meaning, tuple(shared[:_SHOWN]))


def _shared(
    ours: Iterable[str],
    our_digest: Digest | None,
    against: Path,
    format_name: str,
    reading: Reading,
    folder: str | Path | None,
) -> tuple[list[str], list[str]]:
    """Return which of our images another set has too, and a note where only names could be compared."""
    names = _names(data_format(format_name).read(against, reading))
    their_digest = _digest(format_name, reading, folder)
    both, notes = shared_images(list(ours), names, our_digest, their_digest), list[str]()
    if our_digest is None or their_digest is None:
        notes.append(
            f"Images shared with '{against}' are known by their names alone: bytes are compared where --images and "
            "--against-images are given, or the sets hold their images."
        )
    return both, notes


def _digest(format_name: str, reading: Reading, folder: str | Path | None) -> Digest | None:
    """Return what gives the digests of the images that were read, or lie in a folder; None where neither is so."""
    if data_format(format_name).holds_images:
        return reading.seen.get
    if folder is not None and not Path(folder).is_dir():
        raise VPPError(f"the folder of images '{folder}' does not exist.")
    return None if folder is None else partial(image_digest, Path(folder))


def _names(records: Iterable[Record]) -> set[str]:
    return {record.image for record in records if record.image}


def _read_as(
    verdicts: Mapping[BoxColumns, FrameVerdict | None],
) -> Iterator[tuple[Columns, Sizes, Candidate]]:
    """Yield the boxes of each unit, the images' sizes, and how the boxes are most likely to be read."""
    for columns, verdict in verdicts.items():
        candidate = columns.declared if verdict is None else verdict.best
        for numbers, sizes_wh in columns.blocks():
            yield numbers, sizes_wh, candidate


def _question(verdict: FrameVerdict, boxes: int) -> Finding:
    """Ask for what the numbers do not decide."""
    ways = (verdict.best, *verdict.rivals[:2])
    states = ", or ".join(f"{way.options} for {way}" for way in ways)
    return Finding(Fault.UNDECIDED, boxes, boxes, f"The numbers do not decide; state how they are written: {states}.")


def _unseen(format_name: str) -> str:
    inside = data_format(format_name).holds_images
    why = "those in the data are not decoded" if inside else "no folder was given (--images)"
    return f"The images themselves were not looked at: {why}."


def _unsized(boxes: int) -> Finding:
    """Ask for the images' sizes: without them a set with any fault would look sound."""
    return Finding(Fault.UNDECIDED, boxes, boxes, "No image's size is known, so no box was judged.")


@dataclass
class ImageCheck:
    """Names of images, by what is wrong with them, and how many were decoded whole."""

    unsafe: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    decoded: int = 0

    def findings(self, total: int) -> list[Finding]:
        """Return what was found, of so many images."""
        kinds = (
            (Fault.UNSAFE_PATH, self.unsafe, "Their names leave the folder of the images."),
            (
                Fault.UNREADABLE,
                self.unreadable,
                "Missing, damaged, or of too many pixels (vpp --max-image-pixels).",
            ),
            (Fault.SIZE_DIFFERS, self.differing, "The data state other sizes, so their boxes are in another frame."),
        )
        return [Finding(fault, len(names), total, meaning, tuple(names[:_SHOWN])) for fault, names, meaning in kinds]


def check_images(
    folder: Path, stated: Mapping[str, tuple[int, int] | None], *, decode: int, progress: bool
) -> ImageCheck:
    """Check images by name, with the sizes that the data state.

    Headers are read of all, and up to `decode` of them, drawn at random beyond that number, are decoded whole: only
    that finds a truncated file.
    """
    names = list(stated)
    whole = set(names if len(names) <= decode else random.Random(0).sample(names, decode))
    found = ImageCheck()
    with progress_bar("Looking at the images", shown=progress) as advance:
        for name in names:
            _check_image(folder, name, stated[name], found, whole=name in whole)
            advance(1)
    return found


def _check_image(folder: Path, name: str, stated: tuple[int, int] | None, found: ImageCheck, *, whole: bool) -> None:
    try:
        path = image_path(folder, name)
        size = upright_size(path)
        if whole:
            found.decoded += 1
            _decode(path)
        if stated not in (None, size):
            found.differing.append(name)
    except UnsafePathError:
        found.unsafe.append(name)
    except ImageError:
        found.unreadable.append(name)


def _decode(path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an image lacks is among the findings, or is an error
            with Image.open(path) as image:
                if math.prod(image.size) > most_image_pixels():  # whoever loads it will refuse it
                    raise ImageError(
                        f"'{path}' has {image.width} x {image.height} pixels, and at most {most_image_pixels():,} are "
                        "decoded: resize it first, or allow more (vpp --max-image-pixels)."
                    )
                image.load()
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        raise ImageError(f"'{path}' cannot be decoded ({error}).") from None
