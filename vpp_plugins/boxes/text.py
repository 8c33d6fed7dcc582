"""The text around the numbers: how a family writes boxes and labels, and how they are found in an answer."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vpp_plugins.boxes.answer import answer_of, stated
from vpp_plugins.errors import VPPError

NOTHING = "[]"
"""How every family writes that there is no box: JSON families do so of their own, and `says_nothing` reads it."""

# Each pattern begins at a character that it cannot meet again before it fails, so searching an answer is linear.
# At most six digits before the point: no image and no unit of the table reaches a million, and what does is no box.
NUMBER = r"-?(?:\d{1,6}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(NUMBER)
_OPENING = re.compile(r"[\[({<]|\A\s*[-.\d]")  # no pattern below begins otherwise
_FOUR = rf"{NUMBER}(?:\s*,\s*{NUMBER}){{3}}"
_POINT = rf"\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)"
BRACKETS = rf"(?P<box>\[\s*{_FOUR}(?:\s*;\s*{_FOUR})*\s*\]|\A\s*{_FOUR}\s*\.?\s*\Z)"
# The second choice swallows whole polygons, of which the first would take the last two points.
CORNERS = rf"(?P<box>{_POINT}\s*,\s*{_POINT})(?!\s*,\s*\()|{_POINT}(?:\s*,\s*{_POINT})*+"
BRACES = rf"(?P<box>\{{(?:\s*<\s*{NUMBER}\s*>){{4}}\s*\}})"
# Models mix JSON's quotes and Python's. A brace, of the object around, opens and closes what its label speaks for.
JSON_LABEL = r"""["']label["']\s*:\s*(?P<quoted>"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
JSON_SCOPE = r"(?P<scope>[{}])"
OTHER_TAG = r"<[^<>]*>"


def location_tokens(name: str) -> str:
    """Return the pattern of a run of tokens such as `<loc_12>`, by what stands before the number."""
    return rf"(?P<box>(?:<{name}\d{{1,4}}>\s*)+)"


def tagged_label(template: str) -> str:
    """Return the pattern of a label before its boxes, from the template that writes it: `<ref>{}</ref>`."""
    before, after = (re.escape(tag.strip()) for tag in template.split("{}"))
    return rf"(?P<scope>){before}(?P<label>[^<]*){after}"


def finder(*patterns: str) -> re.Pattern[str]:
    """Compile what a family must notice in an answer; where two fit, the earlier wins."""
    return re.compile("|".join(patterns), re.DOTALL)


# What means one box in any family whose numbers are x1, y1, x2, y2: other brackets, two corners, names, quotes.
_VALUE = rf"""["']?{NUMBER}["']?"""
_COMMA = r"\s*+,\s*+"
_VALUES = rf"{_VALUE}(?:{_COMMA}{_VALUE}){{3}}"
_CORNER = rf"[\[(]\s*+{_VALUE}{_COMMA}{_VALUE}\s*+[\])]"
_SIDES = (r"x_?(?:1|min)", r"y_?(?:1|min)", r"x_?(?:2|max)", r"y_?(?:2|max)")
_NAMED = _COMMA.join(rf"""["']?{side}["']?\s*+[:=]\s*+{_VALUE}""" for side in _SIDES)
ANY_SPELLING = finder(
    JSON_LABEL,
    r"""["'](?:key)?(?:point|polygon|quad)\w*+["']\s*+:[^{}"']*+""",
    rf"""(?P<box>[\[({{"']\s*+{_VALUES}\s*+[\])}}"']|\A\s*+{_VALUES}\s*+\.?\s*+\Z"""
    rf"|{_CORNER}{_COMMA}{_CORNER}(?!{_COMMA}[\[(])|(?:<\s*+{NUMBER}\s*+>\s*+){{4}}+(?!<\s*+[-.\d])"
    rf"|\b{_NAMED})",
    r"(?P<scope>[{}]|<(?:ref|\|ref\||\|object_ref_start\||p|phrase)>(?P<label>[^<]*+))",
    rf"{_CORNER}(?:{_COMMA}{_CORNER})*+|(?:<\s*+{NUMBER}\s*+>\s*+)++",  # polygons, and runs of other lengths
)
_OTHER_ORDER = re.compile(
    r"""(?<![a-z])(?:c?xc?ywh|ltwh|tlwh|yxyx)(?![a-z])|(?<![a-z])x\W{1,4}y\W{1,4}w(?:idth)?\W{1,4}h(?:eight)?(?![a-z])"""
    r"""|(?<![a-z])y_?(?:min|1)["']?\W{1,4}x_?(?:min|1)(?!\d)|["']box_2d["']\s*+:""",
    re.IGNORECASE,
)
"""What says that four numbers are not x1, y1, x2, y2; Gemini's `box_2d` has y first."""
_HALF = re.compile(r"[\ud800-\udfff]")
_SIDE = re.compile(r"[a-z]\w*", re.IGNORECASE)
# Chinese answers: the punctuation and digits of full width, and the comma of lists.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("、"): ord(",")}


@dataclass(frozen=True)
class BoxText:
    """One family's way to write boxes, as templates, and the pattern that finds them again.

    Neighbouring boxes of one label share a group where `shared_label` is set, else each box has its own. The groups
    of `find` are `box` (the numbers of one or more boxes), `label` (`quoted` in JSON), and `scope`, which begins the
    stretch of text that one label speaks for. Answers in which it finds no box are searched for `other` spellings of
    the same numbers. Labels are JSON strings where `json_labels` is set; elsewhere they cannot hold the characters in
    `reserved`.
    """

    box: str
    find: re.Pattern[str]
    between_boxes: str = ", "
    label: str = ""
    group: str = "{label}{boxes}"
    between_groups: str = ""
    whole: str = "{}"
    shared_label: bool = True
    json_labels: bool = False
    reserved: str = "<>"
    other: re.Pattern[str] | None = ANY_SPELLING

    def write(self, boxes: Sequence[Sequence[float]], labels: Sequence[str] | None) -> str:
        """Return the text of boxes given as the family's numbers; no boxes are written as an empty list."""
        if not boxes:
            return NOTHING
        names = [self._label(label) for label in labels] if labels is not None and self.label else [""] * len(boxes)
        written = [(name, self.box.format(*numbers)) for name, numbers in zip(names, boxes, strict=True)]
        runs = itertools.groupby(written, lambda pair: pair[0]) if self.shared_label else ((p[0], [p]) for p in written)
        groups = (
            self.group.format(label=name, boxes=self.between_boxes.join(box for _, box in run)) for name, run in runs
        )
        return self.whole.format(self.between_groups.join(groups))

    def read(self, answer: str, per_box: int) -> list[tuple[tuple[float, ...], str | None]]:
        """Return the numbers of each box that an answer states, in order, and its label.

        Other spellings, and the punctuation of full width, are read where the family's own finds nothing, and no
        numbers where the answer says that they have another order.
        """
        if self.other is None:
            return self._find_boxes(self.find, answer, answer, per_box)
        if _OTHER_ORDER.search(answer):
            return []
        boxes = self._find_boxes(self.find, stated(answer), answer, per_box)
        if not boxes and _NUMBER.search(answer):
            answer = answer.translate(_FULL_WIDTH)
            numbers = stated(answer)
            boxes = self._find_boxes(self.find, numbers, answer, per_box)
            boxes = boxes or self._find_boxes(self.other, numbers, answer, per_box)
        return boxes

    def _find_boxes(
        self, find: re.Pattern[str], numbers: str, answer: str, per_box: int
    ) -> list[tuple[tuple[float, ...], str | None]]:
        found: list[tuple[tuple[float, ...], str | None]] = []
        boxes: list[tuple[float, ...]] = []
        label = None
        for match in find.finditer(numbers):
            if match.lastgroup is None:
                continue
            part = match.groupdict()
            if part.get("scope") is not None:
                found += [(box, label) for box in boxes]
                boxes, label = [], None
            if part.get("label") is not None:
                label = answer[slice(*match.span("label"))].strip() or None
            elif part.get("quoted") is not None:
                label = _unquoted(answer[slice(*match.span("quoted"))])
            if part.get("box") is not None:
                boxes += _boxes_of(_SIDE.sub("", part["box"]) if find is self.other else part["box"], per_box)
        return [*found, *((box, label) for box in boxes)]  # the last label of a scope is that of all its boxes

    def spans(self, text: str, per_box: int) -> Iterator[tuple[int, int, list[tuple[float, ...]]]]:
        """Yield where each piece of a text that states boxes begins and ends, and the numbers of its boxes."""
        if _OPENING.search(text) is None:
            return
        numbers = text if self.other is None else stated(text)
        for match in self.find.finditer(numbers):
            if match.lastgroup is None or (piece := match.groupdict().get("box")) is None:
                continue
            if boxes := _boxes_of(piece, per_box):
                yield match.start("box"), match.start("box") + len(piece.rstrip()), boxes

    def holds(self, label: str) -> bool:
        """Return whether a label can be written: words that are whole characters, and none of those reserved."""
        return bool(label.strip()) and (
            self.json_labels or not (set(label) & set(self.reserved) or _HALF.search(label))
        )

    def _label(self, label: str) -> str:
        if self.json_labels:
            return self.label.format(_quoted(label))
        if not self.holds(label):
            raise VPPError(
                f"A label must be words without any of '{self.reserved}', which this family's box text needs for "
                f"itself, and is {label!r}. Rename it, or encode the boxes without labels."
            )
        return self.label.format(label.strip())


def _boxes_of(piece: str, per_box: int) -> list[tuple[float, ...]]:
    """Return the numbers of each box in a piece of text; no box where numbers would be left over."""
    numbers = tuple(map(float, _NUMBER.findall(piece)))
    if len(numbers) == per_box:
        return [numbers]
    if len(numbers) % per_box:
        return []
    return [numbers[start : start + per_box] for start in range(0, len(numbers), per_box)]


def _quoted(label: str) -> str:
    """Return a label as a JSON string in which nobody can see a tag, a fence, or half a character."""
    text = json.dumps(label, ensure_ascii=False)
    if answer_of(text) == text and "```" not in text and _HALF.search(text) is None:
        return text
    return re.sub(r"[<\[{`:]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(label))


def _unquoted(label: str) -> str:
    try:
        return str(json.loads(label, strict=False))
    except ValueError:  # Python's quotes, or an escape that JSON does not know
        return re.sub(r"\\(.)", r"\1", label[1:-1], flags=re.DOTALL)
