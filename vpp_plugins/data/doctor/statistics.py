"""What a set is like: how large its boxes are and where they lie, how many words say it, and of how many images."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from vpp_plugins.data.doctor.frame_evidence import Candidate, Columns, Sizes
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Describe, Locate

_BINS = 20
_CELLS = 24
_MOST_PAIRS = 300_000  # for the memory: 30 MB
_NOUNS = 20
_MOST_WORDS = 30
_BEHIND = re.compile(
    r"\s(?:of|on|in|at|with|to|by|near|behind|under|over|from|for|that|who|which|is|are|wearing|holding|next|between|"
    r"beside|above|below|standing|sitting)\b.*|[,.;:(].*|\s(?:left|right)\s*\Z",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Statistics:
    """Counts of a set's boxes and expressions.

    `sizes` are boxes by the root of their share of the image, in twenty steps from 0 to 1; `places` are boxes by where
    their middle lies, rows from the top. `words` are expressions by their count of words, and `nouns` the most frequent
    nouns with how many images they are said of.
    """

    sizes: Int64[np.ndarray, " bins"]
    places: Int64[np.ndarray, "cells cells"]
    words: dict[int, int]
    nouns: tuple[tuple[str, int], ...]


class Sayings:
    """Counts words and nouns as records pass; the nouns of the first 300,000 different pairs of noun and image."""

    def __init__(self) -> None:
        self.words: Counter[int] = Counter()
        self._nouns: Counter[str] = Counter()
        self._pairs: set[int] = set()

    def add(self, record: Record) -> None:
        """Count what a record says."""
        for turn in record.turns:
            if isinstance(turn, Locate | Describe):
                said = turn.expression if isinstance(turn, Locate) else turn.description
                self.words[min(len(said.split()), _MOST_WORDS)] += 1
                if record.image and len(self._pairs) < _MOST_PAIRS:
                    self._count(record.category or noun_of(said), record.image)

    def nouns(self) -> tuple[tuple[str, int], ...]:
        """Return the nouns of the most images, with how many these are."""
        return tuple(self._nouns.most_common(_NOUNS))

    def _count(self, noun: str, image: str) -> None:
        pair = hash((noun, image))
        if noun and pair not in self._pairs:
            self._pairs.add(pair)
            self._nouns[noun] += 1


def noun_of(expression: str) -> str:
    """Return the last word before the first preposition, in small letters: mostly the noun of an English expression."""
    words = [word for word in _BEHIND.sub("", expression[:200].strip()).split() if word.isalpha()]
    return words[-1].lower() if words else ""


def statistics_of(boxes: Iterable[tuple[Columns, Sizes, Candidate]], sayings: Sayings) -> Statistics:
    """Return the statistics; boxes whose image's size is not known, or without an area, are not counted."""
    sizes, places = np.zeros(_BINS, np.int64), np.zeros((_CELLS, _CELLS), np.int64)
    for numbers, sizes_wh, candidate in boxes:
        xyxy = candidate.pixels(numbers, sizes_wh) / np.tile(sizes_wh, 2)
        xyxy = np.clip(xyxy[np.isfinite(xyxy).all(axis=1)], 0, 1)
        area = np.prod(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0), axis=1)
        middle = ((xyxy[:, :2] + xyxy[:, 2:]) / 2)[area > 0]
        sizes += np.histogram(np.sqrt(area[area > 0]), _BINS, (0, 1))[0]
        places += np.histogram2d(middle[:, 1], middle[:, 0], _CELLS, ((0, 1), (0, 1)))[0].astype(np.int64)
    return Statistics(sizes, places, dict(sorted(sayings.words.items())), sayings.nouns())
