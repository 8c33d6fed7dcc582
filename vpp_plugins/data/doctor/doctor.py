"""Examine a data set before it costs a training run: which faults it has, and in which frame and unit its boxes are."""

from dataclasses import dataclass
from pathlib import Path

from vpp_plugins.data.convert import progress_bar
from vpp_plugins.data.doctor.collect import Specimen, Ward
from vpp_plugins.data.doctor.findings import Fault, Finding
from vpp_plugins.data.doctor.frame_evidence import FrameVerdict
from vpp_plugins.data.doctor.image_check import check_images, shared_images
from vpp_plugins.data.formats import Reading, data_format
from vpp_plugins.data.image_sizes import ImageSizes

_SHOWN = 5


@dataclass(frozen=True)
class Examination:
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
    specimens: tuple[Specimen, ...]
    notes: tuple[str, ...]

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
    against: str | Path | None = None,
    against_format: str = "",
    against_images: str | Path | None = None,
    decode: int = 5000,
    progress: bool = True,
) -> Examination:
    """Read a data set once and report its faults; nothing is changed.

    `images` is the folder of the images. Without it, or a file of their `sizes`, boxes of a format that stores no
    sizes cannot be judged. All images' headers are read, and up to `decode` of them, drawn at random beyond that, are
    decoded whole. `against` is another set, such as the test set, with which no image may be shared. Raises VPPError
    where a file cannot be read at all.
    """
    path, folder, reading = Path(path), Path(images) if images is not None else None, Reading(family=family)
    ward = Ward(ImageSizes(folder, Path(sizes) if sizes is not None else None), reading.tally)
    with progress_bar(f"Reading {path.name}", shown=progress) as advance:
        for row, record in enumerate(data_format(format_name).read(path, reading)):
            ward.admit(row, record)
            if row % 1000 == 999:
                advance(1000)
    verdicts = {columns: columns.judged() for columns in ward.columns.values()}
    findings = ward.findings()
    for columns, verdict in verdicts.items():
        findings += columns.findings(verdict, ward.ids)
    notes = ward.notes(verdicts)
    if folder is not None:
        with progress_bar("Looking at the images", shown=progress) as advance:
            checked = check_images(folder, ward.images, decode=decode, advance=advance)
        findings += checked.findings(len(ward.images))
        notes.append(f"{checked.decoded:,} of {len(ward.images):,} images were decoded whole.")
    else:
        notes.append("The images themselves were not looked at: no folder was given (--images).")
    if against is not None:
        other = data_format(against_format or format_name).read(Path(against), Reading(family=family))
        names = {record.image for record in other if record.image}
        both = shared_images(list(ward.images), names, folder, Path(against_images) if against_images else None)
        meaning = f"What is learned on them, '{against}' no longer measures."
        findings.append(Finding(Fault.LEAKAGE, len(both), len(ward.images), meaning, tuple(both[:_SHOWN])))
    return Examination(
        path=path,
        format=format_name,
        folder=folder,
        samples=len(ward.ids),
        boxes=sum(map(len, ward.columns.values())),
        images=len(ward.images),
        findings=tuple(finding for finding in findings if finding.count),
        verdicts=tuple(verdict for verdict in verdicts.values() if verdict is not None),
        specimens=tuple(ward.specimens),
        notes=tuple(notes),
    )
