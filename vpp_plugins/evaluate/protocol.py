"""Protocols: how an accuracy is measured, frozen in files, so that two numbers under one name can be compared."""

import functools
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

import numpy as np

from vpp_plugins.boxes import Box, BoxCodec, BoxStatus, ImageMeta, count_pairs, least_overlap
from vpp_plugins.errors import VPPError, known_name
from vpp_plugins.evaluate.metrics import OVERLAPS
from vpp_plugins.evaluate.readers import READERS, ParsedBox
from vpp_plugins.evaluate.rows import Row, Task
from vpp_plugins.plugins import box_codec


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to ask, to read and to count. The files in `protocols/` hold them; one that changes gets a new name."""

    name: str
    source: str
    """Where its rules were read."""
    task: Task = "box"
    question: str = ""
    """The request, with `{expr}` for the expression or `{box}` for the box's text; empty: the family's own."""
    family: str = ""
    """The family whose answers it reads; empty: the model's own."""
    reader: str = "codec"
    """Which of `readers.READERS` turns an answer into a box."""
    overlap: str = "exact"
    """Which of `metrics.OVERLAPS` compares two boxes."""
    nothing: Literal["said", "no box"] = "said"
    """What is right where nothing is: an answer that says so, or any answer without a box."""
    extra: Sequence[str] = ()
    """Further figures, of `results.EXTRA`."""
    correct: Literal["iou >= threshold", "iou > threshold"] = "iou >= threshold"
    truth: Literal["pixels", "as written"] = "pixels"
    """The true box as it stands in the data, or rounded as the family would write it."""
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    num_beams: int = 1
    splits: Mapping[str, int] = field(default_factory=dict)
    """Published numbers of rows, one per sentence, by `dataset/split`."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of a split's rows (`rows.fingerprint`), where the rows come with this library."""
    sha256: str = ""
    """Of the protocol's file."""

    def check_family(self, codec: BoxCodec) -> None:
        """Raise VPPError where the protocol reads one family's answers and the codec writes another's.

        Families that write alike, such as LLaVA and VPP-LLaVA, are one here: they differ in their questions only.
        """
        if self.family and not write_alike(box_codec(self.family), codec):
            raise VPPError(
                f"the protocol '{self.name}' reads answers of the family '{self.family}', but these boxes are written "
                f"as '{codec.family}': choose another protocol, or, if the model does write as '{self.family}', say so "
                f"(--box-format {self.family})."
            )

    def ask(self, row: Row, codec: BoxCodec, meta: ImageMeta | None = None) -> str:
        """Return the question about a row, in the protocol's words or else in the family's.

        Where a box is given in it, families that count the pixels of the resized image need `meta`.
        """
        if self.task == "caption":
            return self.question.format(box=codec.encode([row.box], meta or ImageMeta(row.size_hw)))
        return self.question.format(expr=row.expression) if self.question else codec.prompt(row.expression)

    def read(self, answer: str, meta: ImageMeta, codec: BoxCodec) -> ParsedBox:
        """Return the one box that an answer gives under this protocol, in pixels of the original image."""
        return READERS[self.reader](answer, meta, codec)

    def iou(self, parsed: ParsedBox, truth: Box, meta: ImageMeta, codec: BoxCodec) -> float:
        """Return the overlap of what was read with the true box, 0 to 1; an answer without a box gives 0."""
        if parsed.box is None:
            return 0.0
        if self.truth == "as written":
            written = self.read(codec.encode([truth], meta), meta, codec).box
            truth = truth if written is None else written
        return OVERLAPS[self.overlap](parsed.box, truth)

    def score(self, parsed: ParsedBox, truth: Sequence[Box], meta: ImageMeta, codec: BoxCodec) -> tuple[float, float]:
        """Return the overlap of what was read with all that is true, and F1 at a threshold of 0.5; each 0 to 1.

        Of several boxes it is the least of the best pairing, one to one, and 0 where one side has more: an accuracy at
        a threshold is the share of the answers with F1 = 1 there. Where nothing is, saying so is 1.
        """
        if not truth:
            right = parsed.box is None and (self.nothing == "no box" or parsed.status is BoxStatus.NONE)
            return float(right), float(right)
        if len(truth) == 1 and len(parsed.boxes) <= 1:
            iou = self.iou(parsed, truth[0], meta, codec)
            return iou, float(self.is_correct(iou))
        if parsed.box is None:
            return 0.0, 0.0
        found = [ParsedBox(box, parsed.status) for box in parsed.boxes]
        overlaps = np.array([[self.iou(one, box, meta, codec) for box in truth] for one in found])
        same = count_pairs(overlaps > 0.5 if self.correct == "iou > threshold" else overlaps >= 0.5)
        return least_overlap(overlaps), 2 * same / (len(found) + len(truth))

    def is_correct(self, iou: float, threshold: float = 0.5) -> bool:
        """Return whether an overlap counts as found."""
        return iou > threshold if self.correct == "iou > threshold" else iou >= threshold


def write_alike(a: BoxCodec, b: BoxCodec) -> bool:
    """Return whether two families write the same box as the same text, in whatever words they ask."""
    return (a.frame, a.unit, a.scale, a.text) == (b.frame, b.unit, b.scale, b.text)


def protocol(name: str) -> Protocol:
    """Return a protocol by name, or raise VPPError that names the nearest and all."""
    return protocols()[known_name(name, protocols(), "protocol")]


@functools.cache
def protocols() -> Mapping[str, Protocol]:
    """Return every protocol by name."""
    files = [
        file for file in resources.files(__package__).joinpath("protocols").iterdir() if file.name.endswith("toml")
    ]
    loaded = [_load(file.read_bytes()) for file in files]
    return {one.name: one for one in sorted(loaded, key=lambda one: one.name)}


def _load(content: bytes) -> Protocol:
    return Protocol(**tomllib.loads(content.decode()), sha256=hashlib.sha256(content).hexdigest())
