"""What was found wrong in data, counted, with the first samples of each kind."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

_EXAMPLES = 5


class Issue(StrEnum):
    """What can be wrong with a sample. Those in `KEPT` are kept or mended; the others cost the turn or the sample."""

    NOT_FINITE = "box with NaN or infinity"
    HUGE_NUMBER = "box with a number beyond a million"
    WRONG_COUNT = "box with a wrong count of numbers"
    INVERTED = "inverted box (x2 < x1 or y2 < y1)"
    OUTSIDE = "box wholly outside its image"
    CLIPPED = "box beyond the edge, cut to its image"
    NO_BOX = "box expected, none found"
    AMBIGUOUS = "several boxes where one is expected"
    ODD_LIST = "list of numbers that is no box, kept as text"
    PLACEHOLDER = "text that holds the box placeholder itself"
    IMAGE_REPEATED = "<image> more than once in a dialogue"
    IMAGE_MISSING = "image without an <image> in the dialogue"
    BAD_FIELD = "field missing or of the wrong type"
    BAD_TURNS = "turns that do not alternate"
    EMPTY_TEXT = "empty expression"
    NO_TURNS = "no turn left"
    UNSAFE_PATH = "image path that leaves its folder"
    NO_IMAGE = "image missing or unreadable"
    CROWD = "crowd annotation, skipped"
    OTHER_SPLIT = "sample of another split, skipped"
    NOT_SELECTED = "sample without a region, not selected"
    SKIPPED_SOURCE = "sample of a source that the recipe leaves out"
    COUNT_DIFFERS = "count differs from the published one"
    NOT_WRITABLE = "turn that the format cannot hold, left out"


KEPT = frozenset({Issue.CLIPPED, Issue.ODD_LIST, Issue.IMAGE_REPEATED, Issue.IMAGE_MISSING, Issue.COUNT_DIFFERS})
"""Issues that are mended or kept; all others cost the turn or the sample."""

CHOSEN = frozenset({Issue.CROWD, Issue.OTHER_SPLIT, Issue.NOT_SELECTED, Issue.SKIPPED_SOURCE})
"""Not faults of the data: what was asked for leaves these out."""


@dataclass
class Tally:
    """Counts of issues, and for each the first samples it was met in."""

    counts: Counter[Issue] = field(default_factory=Counter)
    examples: dict[Issue, list[str]] = field(default_factory=dict)

    def add(self, issue: Issue, sample_id: str, detail: str = "") -> None:
        """Count one issue of a sample; the detail is kept for the first few only."""
        self.counts[issue] += 1
        if self.counts[issue] <= _EXAMPLES:
            said = f"{sample_id}: {detail[:120]}" if detail else sample_id
            said = said.encode(errors="replace").decode()  # JSON can hold half a character, which cannot be printed
            self.examples.setdefault(issue, []).append(said)

    def rows(self) -> list[tuple[str, int, str]]:
        """Return (issue, count, examples) for each issue met, the most frequent first."""
        return [(str(issue), count, "; ".join(self.examples[issue])) for issue, count in self.counts.most_common()]
