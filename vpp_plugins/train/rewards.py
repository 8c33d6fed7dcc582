"""Rewards for reinforcement learning on boxes, as TRL's GRPOTrainer takes them, all read through one family's codec.

    reward = rewards("llava", tokenizer=processor.tokenizer)
    GRPOTrainer(..., reward_funcs=[reward.iou, reward.format])

Beside the completions they take columns of the data: `boxes`, the true boxes of each sample, xyxy in pixels of its
original image, and `size_hw`, that image's size. Families that measure in the resized image (`qwen2.5-vl`) also
need `processed_size_hw`; `VPPProcessor.image_metas` tells it.
"""

import reprlib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from vpp_plugins.boxes import (
    Box,
    BoxCodec,
    BoxLike,
    BoxStatus,
    Decoded,
    ImageMeta,
    box_fault,
    box_iou,
    codec,
    count_pairs,
    count_repeats,
    generalized_box_iou,
    opens_thought,
    shown_box,
)
from vpp_plugins.errors import VPPError

Score: TypeAlias = Callable[[Decoded, Sequence[BoxLike]], float]
"""What an answer is worth, beside the true boxes."""

_PATIENCE = 64
"""So many answers without any reward, and a warning says why."""
_SHOWN = 160


class NoRewardWarning(UserWarning):
    """A reward has been zero for every answer so far, so nothing can be learned from it."""


@dataclass
class BoxReward:
    """One reward: called with a batch of completions, it returns a number for each, and counts how they were read.

    TRL's logs have it under its name, and the share of answers without a box as `iou_reward/unparsable`.
    """

    name: str
    score: Score
    codec: BoxCodec
    tokenizer: Any = None
    statuses: Counter[BoxStatus] = field(default_factory=Counter)
    """How often each status was met: one for each box, or one for an answer without any."""
    answers: int = 0
    rewarded: int = 0
    """How many answers got more than zero."""
    outside: int = 0
    """How many boxes were left out, as they lay wholly outside their images."""
    example: str = ""
    """The last answer that got nothing."""

    def __post_init__(self) -> None:
        self.__name__ = self.name  # where TRL looks

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        boxes: Sequence[Any],
        size_hw: Sequence[Sequence[int]],
        processed_size_hw: Sequence[Sequence[int]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        prompts: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return one reward per completion, a text or a chat's messages; other columns are not looked at.

        With a tokenizer the answers are read from `completion_ids`: TRL's texts lack special tokens, and with them the
        boxes of families that write these around them. `prompts` that end within a thought, as templates of reasoning
        models do, have completions that begin in one.
        """
        resized = [None] * len(completions) if processed_size_hw is None else processed_size_hw
        if len({len(completions), len(boxes), len(size_hw), len(resized)}) > 1:
            raise VPPError(
                f"each of {len(completions)} completions needs its row of every column, but boxes has {len(boxes)}, "
                f"size_hw {len(size_hw)} and processed_size_hw {len(resized)}."
            )
        unparsable = 0
        given = []
        texts = self._texts(completions, completion_ids, prompts)
        for text, truth, size, processed in zip(texts, boxes, size_hw, resized, strict=True):
            decoded = self.codec.decode(text, _meta(size, processed))
            unparsable += decoded.statuses == (BoxStatus.UNPARSABLE,)
            given.append(self._counted(text, decoded, self.score(decoded, _several(truth, size))))
        if log_metric is not None and given:
            log_metric(f"{self.name}/unparsable", unparsable / len(given))
        if not self.rewarded and self.answers >= _PATIENCE > self.answers - len(given):
            warnings.warn(self.explanation(), NoRewardWarning, stacklevel=2)
        return given

    def explanation(self) -> str:
        """Say how the answers so far were read and, where none was rewarded, what an answer should look like."""
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common()) or "nothing read"
        said = f"{self.name} was above zero for {self.rewarded} of {self.answers} answers ({counts})"
        if self.rewarded or not self.answers:
            return f"{said}."
        wanted = self.codec.encode([(10.0, 20.0, 60.0, 80.0)], ImageMeta((100, 100), (100, 100)))
        if self.outside and self.statuses.total() == self.statuses[BoxStatus.UNPARSABLE]:
            hint = (
                f"{self.outside} boxes lie wholly outside their images: the model writes them in another unit or frame"
            )
        elif self.statuses.total() == self.statuses[BoxStatus.UNPARSABLE]:
            hint = (
                "No answer holds a box of this family: ask in its words, raise the length of answers, or begin with "
                "supervised training"
            )
        else:
            hint = (
                "Boxes are read, but earn nothing: check that the data's boxes are xyxy pixels of the original image, "
                "and that the model writes boxes as this family does"
            )
        example = self.example if len(self.example) <= _SHOWN else f"{self.example[:_SHOWN]} ..."
        return (
            f"{said}. The family '{self.codec.family}' writes a box as {wanted!r}; an answer was {example!r}. {hint}."
        )

    def _texts(
        self, completions: Sequence[Any], ids: Sequence[Sequence[int]] | None, prompts: Sequence[Any] | None
    ) -> list[str]:
        texts = [_text(completion) for completion in completions]
        if self.tokenizer is not None and ids is not None:
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=False)
        begun = [self._in_thought(prompt) for prompt in prompts or [None] * len(texts)]
        return [f"<think>{text}" if opened else text for text, opened in zip(texts, begun, strict=True)]

    def _in_thought(self, prompt: Any) -> bool:
        """Whether a prompt, a text or a chat for the tokenizer's template, ends within a thought."""
        if isinstance(prompt, str) or self.tokenizer is None or not self.tokenizer.chat_template:
            return isinstance(prompt, str) and opens_thought(prompt)
        chat = [{"role": "user", "content": ""}]
        return opens_thought(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def _counted(self, text: str, decoded: Decoded, reward: float) -> float:
        self.answers += 1
        self.statuses.update(decoded.statuses)
        self.outside += decoded.outside
        if reward > 0:
            self.rewarded += 1
        else:
            self.example = text
        return reward


@dataclass(frozen=True)
class Rewards:
    """The rewards of one family; take those you want, and weigh them by TRL's `reward_weights`."""

    iou: BoxReward
    """IoU of the answer's first box with the true box, 0 to 1; 0 where there is no box."""
    giou: BoxReward
    """Generalised IoU of the first box, moved from -1..1 to 0..1: boxes that do not touch still differ."""
    f1: BoxReward
    """F1 of all the answer's boxes, matched one to one with the true ones at an IoU threshold, 0 to 1.

    An answer that says that there is nothing earns 1 where nothing is."""
    format: BoxReward
    """1 for an answer whose boxes are all written well: in order and in the image; else 0."""


def rewards(box_format: str, *, tokenizer: Any = None, threshold: float = 0.5) -> Rewards:
    """Return the rewards of a family, by its name in the table of box formats.

    `tokenizer` makes them read the answers with their special tokens, which Qwen-VL's, InternVL's and Florence's boxes
    need. `threshold` is the IoU, above 0 and at most 1, from which F1 counts two boxes as the same.
    """
    if not 0 < threshold <= 1:
        raise VPPError(f"the threshold of F1 is an IoU above 0 and at most 1, but is {threshold}.")
    family = codec(box_format)
    if family.text is None:
        raise VPPError(f"'{box_format}' writes points, not boxes, so IoU says nothing of it: choose another format.")
    return Rewards(
        iou=BoxReward("iou_reward", _iou, family, tokenizer),
        giou=BoxReward("giou_reward", _giou, family, tokenizer),
        f1=BoxReward("f1_reward", partial(_f1, threshold=threshold), family, tokenizer),
        format=BoxReward("format_reward", _well_written, family, tokenizer),
    )


def _iou(decoded: Decoded, truth: Sequence[BoxLike]) -> float:
    box = _only(truth)
    return box_iou(decoded.boxes_xyxy_px[0], box) if decoded.boxes_xyxy_px else 0.0


def _giou(decoded: Decoded, truth: Sequence[BoxLike]) -> float:
    box = _only(truth)
    return (1 + generalized_box_iou(decoded.boxes_xyxy_px[0], box)) / 2 if decoded.boxes_xyxy_px else 0.0


def _f1(decoded: Decoded, truth: Sequence[BoxLike], threshold: float) -> float:
    found = decoded.boxes_xyxy_px
    if not truth:
        return float(decoded.statuses == (BoxStatus.NONE,))
    return 2 * _matches(found, truth, threshold) / (len(found) + len(truth))


def _matches(found: Sequence[Box], truth: Sequence[BoxLike], threshold: float) -> int:
    """Return the most pairs, each box in one at most, that overlap by the threshold."""
    if not found:
        return 0
    a, b = np.array(found)[:, None], np.array(truth, dtype=float)[None]  # an answer may hold thousands
    overlap = _areas(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = _areas(a[..., :2], a[..., 2:]) + _areas(b[..., :2], b[..., 2:]) - overlap
    return count_pairs(overlap / union >= threshold)


def _areas(first: Float[np.ndarray, "*n 2"], second: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    return np.asarray(np.clip(second - first, 0, None).prod(axis=-1))


def _well_written(decoded: Decoded, truth: Sequence[BoxLike]) -> float:
    return float(not decoded.outside and all(status == BoxStatus.OK for status in decoded.statuses))


def _only(truth: Sequence[BoxLike]) -> BoxLike:
    if len(truth) != 1:
        raise VPPError(f"IoU is of one box, but a sample has {len(truth)} true boxes: use the F1 reward for several.")
    return truth[0]


def _several(truth: Any, size_hw: Sequence[int]) -> Sequence[BoxLike]:
    """Return the true boxes of one sample as a list; a single box may stand without one."""
    meant = "the column 'boxes' holds lists of boxes x1, y1, x2, y2 in pixels, but one"
    try:
        rows = np.asarray(truth, dtype=float)
    except OverflowError:  # such a number cannot be shown either
        raise VPPError(f"{meant} holds a number that is too large for any image.") from None
    except (TypeError, ValueError):
        raise VPPError(f"{meant} is {reprlib.repr(truth)}.") from None
    if rows.size % 4 or rows.ndim > 2 or (rows.ndim == 2 and rows.shape[1] != 4 and rows.size):
        raise VPPError(f"{meant} is {reprlib.repr(truth)}.")
    boxes: list[BoxLike] = list(rows.reshape(-1, 4))
    for box in boxes:
        if fault := box_fault(box, (size_hw[0], size_hw[1])):
            raise VPPError(
                f"no answer can be right about the true box {shown_box(box)}, which {fault} (height and width: "
                f"{tuple(size_hw)}): leave this sample out, or correct its boxes."
            )
    if count_repeats(boxes):
        raise VPPError(f"{meant} repeats a box, {reprlib.repr(truth)}: leave one of the two out.")
    return boxes


def _meta(size_hw: Sequence[int], processed: Sequence[int] | None) -> ImageMeta:
    height, width = size_hw
    return ImageMeta((height, width), None if processed is None else (processed[0], processed[1]))


def _text(completion: Any) -> str:
    """Return the text of a completion, which TRL gives as it is, or as the messages of a chat."""
    if isinstance(completion, str):
        return completion
    chat = isinstance(completion, Sequence) and completion and isinstance(completion[-1], Mapping)
    last = completion[-1] if chat else {"content": completion}
    if last.get("role", "assistant") != "assistant" or last["content"] is None:  # a tool's words, or a call of one
        return ""
    content = last["content"]
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        return "".join(part.get("text", "") for part in content)
    raise VPPError(f"a completion should be a text or the messages of a chat, but is {completion!r}.")
