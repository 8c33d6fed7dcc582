"""Referring expressions that are true of exactly one object of a scene, by construction; for sets of several, or none.

Every rule leaves a margin: where two objects are nearly level, nearly equal or nearly as close, nothing is said.
Kinds: name, absolute (position in the image), size, ordinal, relation (to a landmark), attribute; several, none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import dist, hypot
from random import Random
from typing import Any

BoxXYXY = tuple[float, float, float, float]
KINDS = ("name", "absolute", "size", "ordinal", "relation", "attribute")
SINGLES = 2
"""Expressions of one object beside those of several and of none in a scene of the split `sets`."""

LEVEL_GAP = 0.10  # of the image's side: two centres closer than this are "level" and are not told apart
AREA_RATIO = 1.5  # box areas closer than this are "the same size"
SIDE_RATIO = 1.15  # the longest sides must agree with the areas about what is bigger
NEXT_TO_GAP = 0.15  # of the image's side: boxes farther apart are not "next to" each other
SLACK = 0.03  # of the image's side: how far a thing may be off before it counts
MOST_OF_A_KIND = 4  # expressions of one kind in one scene
DISTANCE_RATIO = 1.4  # distances closer than this are "equally near"


@dataclass(frozen=True)
class SceneObject:
    """One thing in an image. `box_xyxy` is its visible extent in pixels, right and bottom edges exclusive."""

    name: str
    box_xyxy: BoxXYXY
    attribute: str | None = None

    @property
    def center(self) -> tuple[float, float]:
        """Centre of the box, (x, y) in pixels."""
        left, top, right, bottom = self.box_xyxy
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """Area of the box, square pixels."""
        left, top, right, bottom = self.box_xyxy
        return (right - left) * (bottom - top)

    @property
    def longest_side(self) -> float:
        """Longest side of the box, pixels."""
        left, top, right, bottom = self.box_xyxy
        return max(right - left, bottom - top)


@dataclass(frozen=True)
class Expression:
    """A text and the boxes of all that it is true of: one, or in the split `sets` any number of objects.

    `object` is the index of the one or the first of them, None where there is none or objects are not listed.
    """

    text: str
    boxes_xyxy: tuple[BoxXYXY, ...]
    kind: str
    object: int | None

    @property
    def box_xyxy(self) -> BoxXYXY:
        """The box of the only object; raises ValueError where there are several or none."""
        (box,) = self.boxes_xyxy
        return box

    def to_record(self) -> dict[str, Any]:
        """Return JSON values; one box stands alone, under a key of its own."""
        one = len(self.boxes_xyxy) == 1
        boxes = {"box_xyxy": self.box_xyxy} if one else {"boxes_xyxy": self.boxes_xyxy}
        return {"text": self.text, **boxes, "kind": self.kind, "object": self.object}


_Wording = tuple[str, ...]
Found = tuple[str, int, str]  # text, index of the object, kind


def refer(objects: Sequence[SceneObject], side: int, rng: Random) -> tuple[Expression, ...]:
    """All expressions that one scene supports, each text at most once; wording is drawn from `rng`.

    `side` is the image's side in pixels; margins are fractions of it.
    """
    by_name = _places_by_name(objects)
    landmarks = [indices[0] for indices in by_name.values() if len(indices) == 1]

    found: list[Found] = []
    for name, group in by_name.items():
        found += _names(name, group, rng)
        found += _attributes(objects, name, group, rng)
        if len(group) >= 2:
            found += _places(objects, name, group, side, rng)
            found += _sizes(objects, name, group, rng)
        if len(group) >= 3:
            found += _ordinals(objects, name, group, side)
        # A unique noun needs no landmark; it gets one now and then, so that relations are not a sign of distractors.
        if len(group) >= 2 or rng.random() < 0.3:
            found += _relations(objects, name, group, landmarks, side, rng)
    return tuple(
        Expression(text, (objects[index].box_xyxy,), kind, index)
        for kind in KINDS
        for text, index, kind in _at_most([one for one in found if one[2] == kind], MOST_OF_A_KIND, rng)
    )


def _places_by_name(objects: Sequence[SceneObject]) -> dict[str, list[int]]:
    names = [item.name for item in objects]
    return {name: [index for index, other in enumerate(names) if other == name] for name in names}


def refer_to_sets(
    objects: Sequence[SceneObject], singles: Sequence[Expression], absent: Sequence[str], rng: Random
) -> tuple[Expression, ...]:
    """Some of the expressions of one object, one for each noun of several objects, and one for each absent thing."""
    by_name = _places_by_name(objects)
    several = [
        Expression(
            f"{rng.choice(('every', 'each'))} {name}", tuple(objects[i].box_xyxy for i in group), "several", group[0]
        )
        for name, group in by_name.items()
        if len(group) >= 2
    ]
    none = [Expression(f"the {thing}", (), "none", None) for thing in absent]
    return (*rng.sample(singles, min(SINGLES, len(singles))), *several, *none)


def _at_most(found: list[Found], most: int, rng: Random) -> list[Found]:
    """Some of the finds, in their order: three alike beside three landmarks would give a dozen relations."""
    if len(found) <= most:
        return found
    return [found[position] for position in sorted(rng.sample(range(len(found)), most))]


def _names(name: str, group: list[int], rng: Random) -> Iterator[Found]:
    if len(group) == 1:
        yield (f"the {name}" if rng.random() < 0.85 else name), group[0], "name"


def _attributes(objects: Sequence[SceneObject], name: str, group: list[int], rng: Random) -> Iterator[Found]:
    """Says "the green frog" where every frog has a known attribute, and no other frog's shares a word with it."""
    words = {index: set((objects[index].attribute or "").split()) for index in group}
    if not all(words.values()):
        return
    for index in group:
        others = set[str]().union(*(words[other] for other in group if other != index))
        if not words[index] & (others | set(name.split())) and (len(group) > 1 or rng.random() < 0.5):
            yield f"the {objects[index].attribute} {name}", index, "attribute"


_ANY_COUNT: dict[str, tuple[_Wording, _Wording]] = {
    "x": (("leftmost {}", "{} farthest to the left"), ("rightmost {}", "{} farthest to the right")),
    "y": (("topmost {}", "highest {}"), ("bottommost {}", "lowest {}")),
}
_PAIR: dict[str, tuple[_Wording, _Wording]] = {
    "x": (("left {}", "leftmost {}"), ("right {}", "rightmost {}")),
    "y": (("top {}", "upper {}"), ("bottom {}", "lower {}")),
}
_IN_ITS_HALF: dict[str, tuple[str, str]] = {
    "x": ("{} on the left", "{} on the right"),
    "y": ("{} at the top", "{} at the bottom"),
}


def _places(objects: Sequence[SceneObject], name: str, group: list[int], side: int, rng: Random) -> Iterator[Found]:
    for axis_index, axis in enumerate("xy"):
        at = {index: objects[index].center[axis_index] / side for index in group}
        ordered = sorted(group, key=at.__getitem__)
        for end, (target, rival) in enumerate(((ordered[0], ordered[1]), (ordered[-1], ordered[-2]))):
            if abs(at[target] - at[rival]) < LEVEL_GAP:
                continue
            wordings: _Wording = (_PAIR if len(group) == 2 else _ANY_COUNT)[axis][end]
            halves_differ = (at[target] < 0.45, at[rival] > 0.55) if end == 0 else (at[target] > 0.55, at[rival] < 0.45)
            if all(halves_differ):
                wordings = (*wordings, _IN_ITS_HALF[axis][end])
            yield "the " + rng.choice(wordings).format(name), target, "absolute"


def _sizes(objects: Sequence[SceneObject], name: str, group: list[int], rng: Random) -> Iterator[Found]:
    ordered = sorted(group, key=lambda index: objects[index].area)
    pair = len(group) == 2

    def clearly_bigger(big: int, small: int) -> bool:
        ratio = objects[big].longest_side / objects[small].longest_side
        return objects[big].area > AREA_RATIO * objects[small].area and ratio > SIDE_RATIO

    if all(clearly_bigger(other, ordered[0]) for other in ordered[1:]):
        words: _Wording = ("smaller {}", "small {}", "smallest {}") if pair else ("smallest {}",)
        yield "the " + rng.choice(words).format(name), ordered[0], "size"
    if all(clearly_bigger(ordered[-1], other) for other in ordered[:-1]):
        words = ("bigger {}", "larger {}", "big {}", "biggest {}") if pair else ("biggest {}", "largest {}")
        yield "the " + rng.choice(words).format(name), ordered[-1], "size"


def _ordinals(objects: Sequence[SceneObject], name: str, group: list[int], side: int) -> Iterator[Found]:
    for axis_index, (start, end) in enumerate((("left", "right"), ("top", "bottom"))):
        at = {index: objects[index].center[axis_index] / side for index in group}
        ordered = sorted(group, key=at.__getitem__)
        if any(at[after] - at[before] < LEVEL_GAP for before, after in pairwise(ordered)):
            continue
        yield f"the second {name} from the {start}", ordered[1], "ordinal"
        if len(group) > 3:
            yield f"the third {name} from the {start}", ordered[2], "ordinal"
        yield f"the second {name} from the {end}", ordered[-2], "ordinal"
        if len(group) == 3:
            across = [objects[index].center[1 - axis_index] / side for index in group]
            # "In the middle" means the row they stand in, so they must stand in one.
            if at[ordered[2]] - at[ordered[0]] > 2 * (max(across) - min(across)):
                yield f"the {name} in the middle", ordered[1], "ordinal"


_Towards = Callable[[SceneObject, SceneObject], tuple[float, float]]  # (how far in the direction, how far aside)
_DIRECTIONS: tuple[tuple[_Wording, _Towards], ...] = (
    (("to the left of", "left of"), lambda a, b: (b.center[0] - a.center[0], abs(b.center[1] - a.center[1]))),
    (("to the right of", "right of"), lambda a, b: (a.center[0] - b.center[0], abs(b.center[1] - a.center[1]))),
    (("above",), lambda a, b: (b.center[1] - a.center[1], abs(b.center[0] - a.center[0]))),
    (("below",), lambda a, b: (a.center[1] - b.center[1], abs(b.center[0] - a.center[0]))),
)


def _relations(
    objects: Sequence[SceneObject], name: str, group: list[int], landmarks: list[int], side: int, rng: Random
) -> Iterator[Found]:
    for landmark in landmarks:
        if landmark in group:
            continue
        mark = objects[landmark]
        for directions, towards in _DIRECTIONS:
            lies = {index: towards(objects[index], mark) for index in group}
            clear = [i for i, (along, aside) in lies.items() if along > LEVEL_GAP * side and aside < 0.8 * along]
            possible = [index for index, (along, _) in lies.items() if along > -SLACK * side]
            if len(clear) == 1 and possible == clear:
                yield f"the {name} {rng.choice(directions)} the {mark.name}", clear[0], "relation"
        if len(group) >= 2:
            yield from _nearest(objects, name, group, mark, side, rng)


def _nearest(
    objects: Sequence[SceneObject], name: str, group: list[int], mark: SceneObject, side: int, rng: Random
) -> Iterator[Found]:
    """Nearest and farthest, only where centres and edges agree about it."""
    centers = {index: dist(objects[index].center, mark.center) for index in group}
    gaps = {index: box_gap(objects[index].box_xyxy, mark.box_xyxy) for index in group}
    ordered = sorted(group, key=centers.__getitem__)

    def clearly_nearer(near: int, far: int) -> bool:
        by_edge = gaps[far] > DISTANCE_RATIO * gaps[near] + SLACK * side
        return by_edge and centers[far] > DISTANCE_RATIO * centers[near]

    if all(clearly_nearer(ordered[0], other) for other in ordered[1:]):
        words = ["closest to", "nearest to"] + ["next to"] * (gaps[ordered[0]] < NEXT_TO_GAP * side)
        yield (
            f"the {name} {rng.choice(words)} the {mark.name}",
            ordered[0],
            "relation",
        )
    if all(clearly_nearer(other, ordered[-1]) for other in ordered[:-1]):
        yield f"the {name} farthest from the {mark.name}", ordered[-1], "relation"


def box_gap(first_xyxy: BoxXYXY, second_xyxy: BoxXYXY) -> float:
    """Shortest distance between two boxes in pixels; 0 where they touch or overlap."""
    across = max(first_xyxy[0] - second_xyxy[2], second_xyxy[0] - first_xyxy[2], 0.0)
    down = max(first_xyxy[1] - second_xyxy[3], second_xyxy[1] - first_xyxy[3], 0.0)
    return hypot(across, down)
