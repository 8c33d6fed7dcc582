"""What mends a data set: a command for each finding, and the set written anew without what is certainly wrong."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpp_plugins.data.convert import Conversion, convert, copies
from vpp_plugins.data.doctor.collect import Fault, Finding
from vpp_plugins.data.doctor.frame_evidence import Candidate
from vpp_plugins.data.formats import Reading, data_format
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Tally
from vpp_plugins.errors import VPPError

_FRAMES = frozenset(
    {Fault.WRONG_UNIT, Fault.WRONG_FRAME, Fault.XYWH_AS_XYXY, Fault.CENTRE_AS_CORNER, Fault.WRONG_ORDER}
)
SAFE: Mapping[Fault, str] = {
    Fault.OUT_OF_RANGE: "cut to their images; those wholly outside are left out",
    Fault.INVERTED: "left out",
    Fault.FLAT: "left out",
    Fault.BROKEN_BOX: "left out",
    Fault.IMAGE_REPEATED: "one stays, before the first question",
    Fault.IMAGE_MISSING: "put before the first question",
    Fault.UNREADABLE: "their samples are left out",
    Fault.UNSAFE_PATH: "their samples are left out",
    Fault.DUPLICATE: "the first of each stays",
    Fault.LEAKAGE: "their samples are left out",
    Fault.EMPTY_TEXT: "left out",
    Fault.BAD_ROW: "left out",
}
"""What writing the set anew does about a fault, where no one need decide; frames and units are settled as found."""


@dataclass(frozen=True)
class Cure:
    """How to read a set so that what is wrong with it is not.

    `command` is the doctor's own, `rows` and `images` are left out, and `best` is how the boxes are most likely written
    where that is not as declared. `undecided` says what must be stated first, "" where all is decided.
    """

    command: str
    path: Path
    format: str
    folder: Path | None
    sizes: Path | None
    reading: Reading
    rows: frozenset[int]
    images: frozenset[str]
    best: Candidate | None
    undecided: str

    def for_finding(self, finding: Finding) -> str:
        """Return the command that mends a finding, or shows what a person must decide."""
        if finding.fault is Fault.NO_SAMPLES:
            return "vpp data formats"
        stated = f"{self.command} {self.undecided}".rstrip()
        if finding.fault is Fault.UNDECIDED or (self.undecided and finding.fault in _FRAMES):
            return stated
        if finding.fault is Fault.UNREADABLE and finding.count == finding.total:
            return "give --images the folder that their names start from"
        if finding.fault in SAFE or finding.fault in _FRAMES:
            suffix = self.path.suffix if self.target_format == self.format else ".jsonl"
            anew = f"{stated} --fix {shlex.quote(f'{self.path.stem}-fixed{suffix}')}"
            best = self._read_as(finding)
            return anew if best is None else f"state {best.options} wherever it is read, or write it anew: {anew}"
        return f"{self.command} --out doctor.html"

    @property
    def target_format(self) -> str:
        """The set's own format where that can be written, else ours."""
        return self.format if data_format(self.format).write else "neutral"

    def images_to(self, target: str | Path) -> Path | None:
        """Return where `write` puts images that lie in the set and find no place in what it writes, or None."""
        return copies(self.format, self.target_format, Path(target).with_suffix(".images"))

    def settles(self, finding: Finding) -> bool:
        """Whether `write` mends a finding."""
        return finding.fault in SAFE or finding.fault in _FRAMES

    def change(self, finding: Finding) -> str:
        """Return what `write` does about a finding."""
        if finding.fault in _FRAMES:
            best = self._read_as(finding)
            return (
                "their samples are left out" if best is None else f"read as {best}, and written as the format has them"
            )
        return SAFE.get(finding.fault, "nothing: someone must decide")

    def write(self, target: str | Path, *, overwrite: bool = False, progress: bool = True) -> Conversion:
        """Write the set without what is wrong, in its own format where that can be written, else in ours.

        Raises VPPError where it is not decided how boxes are written, and as `convert` does.
        """
        if self.undecided:
            raise VPPError(
                f"how the boxes of '{self.path}' are written is not decided, so nothing was fixed: "
                f"state it, as {self.undecided}."
            )
        stated: dict[str, Any] = {}
        if self.best is not None:
            words, budget = self.best.stated
            stated = {"boxes": words, "pixels": budget or self.reading.pixels}
        return convert(
            self.path,
            target,
            source_format=self.format,
            target_format=self.target_format,
            images=self.folder,
            sizes=self.sizes,
            family=self.reading.family,
            reading=replace(self.reading, tally=Tally(), images_to=self.images_to(target), **stated),
            target_pixels=self.reading.pixels,
            chosen=self._kept,
            overwrite=overwrite,
            progress=progress,
        )

    def _read_as(self, finding: Finding) -> Candidate | None:
        """Return how all boxes are to be read, where that is what a finding is about."""
        return self.best if finding.fault in _FRAMES and finding.count == finding.total else None

    def _kept(self, records: Iterable[Record]) -> Iterator[Record]:
        seen = self.reading.seen  # where another image lies in its place, one that lies in the data gets a new name
        left_out = {seen.get(name, name) for name in self.images}
        return (
            record
            for row, record in enumerate(records)
            if row not in self.rows and seen.get(record.image, record.image) not in left_out
        )


def doctor_command(path: Path, format_name: str, reading: Reading, **options: Any) -> str:
    """Return the command line of an examination; options that are None or empty are left out."""
    words = ["vpp", "doctor", str(path), "--format", format_name]
    family = reading.family if reading.family != Reading().family else ""
    least, most = (reading.pixels.least, reading.pixels.most) if reading.pixels else (None, None)
    read = {"family": family, "boxes": reading.boxes, "min_pixels": least, "max_pixels": most}
    for name, value in {**options, **read}.items():
        if value not in (None, ""):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
