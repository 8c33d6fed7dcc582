"""What the doctor can find in a data set."""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What can be wrong with a data set."""

    WRONG_UNIT = "wrong unit"
    WRONG_FRAME = "wrong frame"
    XYWH_AS_XYXY = "xywh taken for xyxy"
    CENTRE_AS_CORNER = "middle and size of a box taken for corners"
    WRONG_ORDER = "x and y in the wrong order"
    OUT_OF_RANGE = "boxes out of range"
    INVERTED = "inverted boxes"
    FLAT = "boxes without an area"
    BROKEN_BOX = "broken boxes"
    IMAGE_REPEATED = "repeated <image>"
    IMAGE_MISSING = "missing <image>"
    UNREADABLE = "unreadable images"
    UNSAFE_PATH = "unsafe image paths"
    SIZE_DIFFERS = "sizes that are not the images'"
    DUPLICATE = "duplicate samples"
    CONFLICT = "conflicting samples"
    LEAKAGE = "images shared with the other set"
    EMPTY_TEXT = "empty expressions"
    NO_SAMPLES = "no samples"
    BAD_ROW = "rows that cannot be used"


@dataclass(frozen=True)
class Finding:
    """One fault: how often out of how many, what it means, and the first samples or images that have it."""

    fault: Fault
    count: int
    total: int
    meaning: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = f" of {self.total:,} ({self.count / self.total:.1%})" if self.total else ""
        seen = f" First: {'; '.join(self.examples)}." if self.examples else ""
        return f"{self.fault}: {self.count:,}{share}. {self.meaning}{seen}"
