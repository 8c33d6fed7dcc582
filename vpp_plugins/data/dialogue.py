"""Turns as the text of a dialogue, with boxes as one family writes them, and back."""

import re
from dataclasses import dataclass
from functools import cached_property

from vpp_plugins.boxes import AXIS_SENTENCE, NOTHING, BoxCodec, ImageMeta
from vpp_plugins.data.record import BoxUnit, PixelBudget
from vpp_plugins.data.sample import BOX, Describe, Issue, Locate, Numbers, Sample, Talk, Tally, Turn
from vpp_plugins.errors import VPPError

IMAGE = "<image>"
_BUDGETS = {"qwen2.5-vl": PixelBudget()}
"""What the families' own processors are set to."""
_REGION = "Please provide a short description for this region: {}."
_LISTED = r"-?(?:\d++(?:\.\d*+)?|\.\d++)"  # possessive: a million digits must not be tried in every split
_NUMBER_LIST = re.compile(rf"\[\s*{_LISTED}(?:\s*[,;]\s*{_LISTED})+\s*\]")
_DECORATION = re.compile(r"<[^<>]*>|```(?:json)?|[\"'](?:bbox_2d|label)[\"']\s*:")
_WORD = re.compile(r"\w")

_PLEASE = r"(?:\[refer\] )?(?:in the image,? )?(?:(?:can|could|would|will) you )?(?:please |kindly )?"
_GIVE = r"(?:provide|give|output|return|predict|report|generate|tell|show)(?: me)?"
_PLACE = r"(?:bounding box(?:es)?|bbox|coordinates?|location|position)(?: coordinates?)?"
_SENTENCE = r"the region(?: that)? this (?:sentence|phrase|expression|description) describes:?"
_LOCATES = re.compile(
    rf"{_PLEASE}(?:(?:{_GIVE} (?:the )?|what (?:is|are) the |i (?:need|want) the ){_PLACE} (?:of|for)(?: {_SENTENCE})?"
    r"|where (?:is|are)|(?:locate|find|detect|ground|localize)(?: every object that matches the description)?)"
    r" (?P<expression>.+?)(?: located)?(?: in (?:the|this) image)?[.?!]?"
    rf"(?:(?:(?<=[.?!])|,? and) (?:please )?(?:{_GIVE}|answer|respond) [^.?!]*\b(?:{_PLACE}|format)\b[^?!]*)?",
    re.IGNORECASE,
)
_DESCRIBES = re.compile(
    rf"{_PLEASE}(?:{_GIVE}|write)? ?(?:(?:an? )?(?:short |brief )?(?:description|caption) (?:of|for)|describe|caption|"
    rf"what is (?:in|at)) ?(?:(?:this|the) (?:image )?(?:region|area|box|object))?:? {BOX}[.?]?",
    re.IGNORECASE,
)
_LONGEST_QUESTION = 1000
"""Characters: no wording of a region is as long, and the patterns take quadratic time."""


def located_in(question: str) -> str | None:
    """Return the expression that a question in one of the usual wordings asks to find, or None for another question."""
    if len(question) > _LONGEST_QUESTION or not (found := _LOCATES.fullmatch(" ".join(question.split()))):
        return None
    expression = found["expression"].removeprefix("<ref>").removesuffix("</ref>")
    quoted = len(expression) > 2 and expression[0] == expression[-1] and expression[0] in "\"'"
    return expression[1:-1] if quoted else expression


def describes(question: str) -> bool:
    """Whether a question, with the placeholder for its box, asks in one of the usual wordings what is there."""
    return len(question) <= _LONGEST_QUESTION and bool(_DESCRIBES.fullmatch(" ".join(question.split())))


@dataclass(frozen=True)
class Phrases:
    """How one family's data ask and answer. The family's codec is the only one that reads and writes the boxes."""

    codec: BoxCodec
    pixels: PixelBudget | None = None
    """Where the family counts pixels of the resized image: how its processor resizes."""

    @property
    def unit(self) -> BoxUnit | BoxCodec:
        """What the numbers of boxes in text mean. Raises VPPError where nothing says how images are resized."""
        if self.codec.scale.full is not None or self.codec.text is None:
            return self.codec
        return BoxUnit(resized=self._budget)

    def meta(self, sample: Sample) -> ImageMeta | None:
        """Return what the codec must know of a sample's image, or None where its size is not known."""
        if not sample.width:
            return None
        size_hw = (sample.height, sample.width)
        return ImageMeta(size_hw, self._budget(size_hw)) if self.codec.scale.full is None else ImageMeta(size_hw)

    @property
    def _budget(self) -> PixelBudget:
        if self.pixels is None and self.codec.family not in _BUDGETS:
            raise VPPError(
                f"the family '{self.codec.family}' writes boxes in pixels of the image as its processor resizes it: "
                "say how many pixels that gives, --min-pixels and --max-pixels, as in its preprocessor_config.json."
            )
        return self.pixels or _BUDGETS[self.codec.family]

    def read(self, question: str, answer: str, sample_id: str, tally: Tally) -> Turn | None:
        """Return a question and its answer as a turn, boxes as the family's numbers; None, counted, where broken.

        The family's own grounding question, or one in usual words, answered by nothing but boxes is a Locate, as is its
        own answered by an empty list, and a question for a region's description is a Describe. In all else placeholders
        stand for the boxes, and the words stay as they are; that is counted where nothing but boxes answers a question
        in words that are not known.
        """
        if BOX in question or BOX in answer:
            tally.add(Issue.PLACEHOLDER, sample_id)
            return None
        before, after = self._question
        bare = question.removesuffix(AXIS_SENTENCE)
        asked, asked_boxes = self._without_boxes(question)
        answered, boxes = self._without_boxes(answer)
        only_boxes = boxes and not asked_boxes and not self._says_more(answered, answer)
        if not asked_boxes and bare.startswith(before) and bare.endswith(after):
            expression = bare[len(before) : len(bare) - len(after)]
            if only_boxes or answer.strip() == NOTHING:
                return Locate(expression, boxes)
            if _NUMBER_LIST.fullmatch(answer.strip()):
                return Locate(expression, (tuple(map(float, re.findall(_LISTED, answer))),))
            if not boxes and (not answer.strip() or any(character.isdigit() for character in answer)):
                tally.add(Issue.NO_BOX, sample_id, answer)
                return None
        if only_boxes:
            if usual := located_in(bare):
                return Locate(usual, boxes)
            tally.add(Issue.OTHER_WORDS, sample_id, question)
        if len(asked_boxes) == 1 and not boxes and (asked == _REGION.format(BOX) or describes(asked)):
            return Describe(asked_boxes, answer)
        if "[" in asked or "[" in answered:
            for odd in _NUMBER_LIST.findall(f"{asked}\n{answered}"):
                tally.add(Issue.ODD_LIST, sample_id, odd)
        return Talk(asked, answered, asked_boxes + boxes)

    def write(self, turn: Turn, meta: ImageMeta | None) -> tuple[str, str]:
        """Return (question, answer) of a turn whose boxes are xyxy pixels; `meta` is needed where there are boxes."""
        match turn:
            case Locate(expression, boxes):
                return self.codec.prompt(expression), self._boxes(boxes, meta, expression)
            case Describe(boxes, description):
                return _REGION.format(self._boxes(boxes, meta)), description
            case Talk(question, answer, boxes):
                written = iter([self._boxes((box,), meta) for box in boxes])
                question = re.sub(BOX, lambda _: next(written), question)
                return question, re.sub(BOX, lambda _: next(written), answer)

    @cached_property
    def _question(self) -> tuple[str, str]:
        """What stands before and after the expression, without VPP-LLaVA's sentence on axes, which may be missing."""
        before, after = self.codec.prompt("\0").split("\0")
        return before, after.removesuffix(AXIS_SENTENCE)

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What the family writes before and after the numbers of a single box."""
        if self.codec.text is None:
            return "", ""
        example = self.codec.text.write([[0] * self.codec.scale.per_box], None)
        ((start, end, _),) = self.codec.text.spans(example, self.codec.scale.per_box)
        return example[:start], example[end:]

    def _without_boxes(self, text: str) -> tuple[str, tuple[Numbers, ...]]:
        """Return the text with a placeholder for each box, and the numbers of these."""
        if self.codec.text is None:
            return text, ()
        before, after = self._around
        parts: list[str] = []
        boxes: list[Numbers] = []
        taken = 0
        for start, end, found in self.codec.text.spans(text, self.codec.scale.per_box):
            parts += [text[taken:start].removesuffix(before), ", ".join([BOX] * len(found))]
            taken = end + len(after) if text.startswith(after, end) else end
            boxes += found
        return ("".join([*parts, text[taken:]]), tuple(boxes)) if boxes else (text, ())

    def _says_more(self, rest: str, answer: str) -> bool:
        """Whether an answer holds words beside its boxes and their labels."""
        rest = rest.replace(BOX, "")
        if self.codec.text is None or not _WORD.search(rest):
            return False
        for _, label in self.codec.text.read(answer, self.codec.scale.per_box):
            rest = rest.replace(label or "", "")
        return bool(_WORD.search(_DECORATION.sub("", rest)))

    def _boxes(self, boxes: tuple[Numbers, ...], meta: ImageMeta | None, label: str = "") -> str:
        if meta is None:
            raise VPPError("a sample with boxes has no image size, so they cannot be written.")
        fits = self.codec.text is not None and self.codec.text.holds(label)
        return self.codec.encode(boxes, meta, [label] * len(boxes) if fits else None)
