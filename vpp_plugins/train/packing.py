"""Packing: all questions about an image in one sequence behind it, none of which sees another.

The image's tokens are computed once for all its questions, and each question is learned as if it were the only one,
which is how grounding is asked for. A turn's positions go on from the image: every logit is that of the turn alone.
Words with which questions begin alike are computed once too: turns that begin as the first one do go on from there.

`PackingCollator` packs the turns of a run's dialogues; `pack` and `forward_packed` are for loops of one's own over
projected image tokens.
"""

import itertools
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vpp_plugins.data import LoadedSample
from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import Collator, RenderedSample
from vpp_plugins.train.labels import IGNORED, RenderedChat, TextSegment, chat_segments, render_chat

PREFIX, PADDING = 0, -1
"""Numbers of what is no turn; turns are counted from 1."""
SHARED = 1
"""The collator's number for what turns begin with alike."""
IGNORE = IGNORED


@dataclass(frozen=True)
class RenderedDialogue(RenderedSample):
    """A sample whose `chat` is its first turn alone; `others` are the other turns, each with the image before it."""

    others: tuple[RenderedChat, ...] = ()


class PackingCollator(Collator):
    """A Collator that asks each turn by itself. The host must take a mask [batch, 1, length, length] and positions.

    That is so for LLaVA and its like with `sdpa` attention, not for hosts with positions of several axes. A dialogue
    without an image keeps its first turn alone: there is nothing to share.
    """

    repeats = False
    """Whether each turn has the words that it shares with others, too."""

    def readable(self) -> "PackingCollator":
        """Return a copy whose batches have every question whole, for people to read."""
        copied = copy(self)
        copied.repeats = True
        return copied

    def row(self, loaded: LoadedSample) -> RenderedDialogue:
        """Return one sample, or raise VPPError where it cannot be used."""
        sample, image, meta = loaded.sample, loaded.image, self.meta(loaded)
        turns = sample.turns[: self.max_turns] if image is not None else sample.turns[:1]
        first, *others = (
            render_chat(self.processor, self.write(replace(sample, turns=(turn,)), meta)) for turn in turns
        )
        return RenderedDialogue(loaded.index, sample, image, meta, first, tuple(others))

    def batch(self, rows: Sequence[RenderedSample]) -> dict[str, Any]:
        """Return the padded inputs of the rows, with `labels`, `position_ids` and the mask of who sees whom."""
        first = super().batch(rows)
        packed = []
        for number, length in enumerate(first["attention_mask"].sum(1).tolist()):
            ids, labels = first["input_ids"][number, :length], first["labels"][number, :length]
            row = rows[number] if number < len(rows) else None  # the grey image of a batch of text
            packed.append(self._packed(ids, labels, row))
        pad_id = self.processor.tokenizer.pad_token_id or 0
        pads = {"input_ids": pad_id, "labels": IGNORED, "position_ids": 0, "turns": PADDING, "starts": PADDING}
        padded = {name: pad_sequence([parts[name] for parts in packed], True, pad) for name, pad in pads.items()}
        mask = packed_mask(padded.pop("turns"), padded.pop("starts"))
        return {**first, **padded, "attention_mask": mask}

    def _packed(self, ids: Tensor, labels: Tensor, row: RenderedSample | None) -> dict[str, Tensor]:
        """Put the other turns behind the first one of a row, those that begin as it does without that beginning."""
        if not isinstance(row, RenderedDialogue):
            return {"input_ids": ids, "labels": labels, **_places(len(ids))}
        first, *others = (self._segment(chat) for chat in (row.chat, *row.others))
        alike = [0 if self.repeats else _alike(first, other) for other in others]
        shared = max(alike, key=lambda length: length * sum(other >= length for other in alike), default=0)
        cuts = [shared if length >= shared else 0 for length in alike]
        rests = [TextSegment(other.ids[cut:], other.learned[cut:]) for other, cut in zip(others, cuts, strict=True)]
        learned = [torch.tensor(rest.ids).where(torch.tensor(rest.learned), IGNORED) for rest in rests]
        lengths = [len(first.ids) - shared, *(len(rest.ids) for rest in rests)]
        return {
            "input_ids": torch.cat([ids, *(torch.tensor(rest.ids) for rest in rests)]),
            "labels": torch.cat([labels, *learned]),
            **_places(len(ids) - len(first.ids), shared, list(zip([shared, *cuts], lengths, strict=True))),
        }

    def _segment(self, chat: RenderedChat) -> TextSegment:
        """Return what stands behind the image."""
        return chat_segments(chat, self.processor.tokenizer, self.marker)[-1]


def _alike(first: TextSegment, other: TextSegment) -> int:
    """Return with how many tokens both begin before what is learned; each keeps one that is not, to begin with."""
    both = zip(first.ids, first.learned[1:], other.ids, other.learned[1:], strict=False)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[2] and not (pair[1] or pair[3]), both)
    return sum(1 for _ in alike)


def _places(prefix: int, shared: int = 0, turns: Sequence[tuple[int, int]] = ()) -> dict[str, Tensor]:
    """Return `position_ids`, `turns` and `starts` of a row: of its prefix, what turns share, and what is left of them.

    `turns` are pairs of how much of what is shared a turn goes on from, and its length without that.
    """
    begins = [0, prefix, *(prefix + cut for cut, _ in turns)]
    lengths = torch.tensor([prefix, shared, *(length for _, length in turns)])
    starts = torch.tensor([PREFIX, SHARED, *(SHARED if cut else PREFIX for cut, _ in turns)])
    return {
        "position_ids": torch.cat([begin + torch.arange(n) for begin, n in zip(begins, lengths.tolist(), strict=True)]),
        "turns": torch.repeat_interleave(lengths),
        "starts": torch.repeat_interleave(starts, lengths),
    }


def check_packing(host: Any) -> None:
    """Raise VPPError where a host would take the mask, or the positions, for something else."""
    text = host.config.get_text_config()
    if text._attn_implementation != "sdpa":
        raise VPPError(
            f"turns_apart needs attention that takes a mask of each pair of tokens, but the host's is "
            f"'{text._attn_implementation}': set attn_implementation = \"sdpa\"."
        )
    if "mrope_section" in (text.to_dict().get("rope_parameters") or {}):
        raise VPPError(
            f"turns_apart counts positions along one axis, but a '{host.config.model_type}' has several: leave it out."
        )


def packed_mask(
    turns: Int64[Tensor, "batch length"], starts: Int64[Tensor, "batch length"] | None = None
) -> Bool[Tensor, "batch 1 length length"]:
    """Return True where a token may look: back, at the prefix, at its own turn, and at the one that it goes on from.

    `starts` has the numbers of these. Nobody sees padding, not even it.
    """
    starts = torch.full_like(turns, PREFIX) if starts is None else starts
    of_query, of_key, of_start = turns[:, :, None], turns[:, None, :], starts[:, :, None]
    back = torch.ones(turns.shape[1], turns.shape[1], dtype=torch.bool).tril()
    seen = (of_key == PREFIX) | (of_key == of_query) | (of_key == of_start)
    return (back & (of_key != PADDING) & seen)[:, None]


@dataclass(frozen=True)
class Segment:
    """One question and its answer as token ids; `answer` is where the answer starts."""

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class Packed:
    """A batch of packed sequences, padded on the right. `labels[t]` is the id that follows t, in answers only."""

    input_ids: Int[Tensor, "batch length"]
    position_ids: Int[Tensor, "batch length"]
    labels: Int[Tensor, "batch length"]
    segments: Int[Tensor, "batch length"]
    """0 in the prefix, then the number of the segment from 1, and -1 on padding."""

    def mask(self) -> Bool[Tensor, "batch 1 length length"]:
        """True where a token may look: back, at the prefix and its own segment."""
        return packed_mask(self.segments)


def pack(prefix: Sequence[int], questions: Sequence[Sequence[Segment]], pad_id: int) -> Packed:
    """Pack each image's questions behind the prefix, whose image and prompt placeholders every image shares."""
    rows = [_packed_row(prefix, per_image) for per_image in questions]
    pads = (pad_id, 0, IGNORE, PADDING)
    return Packed(
        *(pad_sequence([*column], True, pad) for column, pad in zip(zip(*rows, strict=True), pads, strict=True))
    )


def _packed_row(prefix: Sequence[int], segments: Sequence[Segment]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ids, positions, labels and segments of one image's sequence."""
    start, lengths = len(prefix), [len(segment.ids) for segment in segments]
    ids, labels = [*prefix], [IGNORE] * start
    for segment in segments:
        ids += segment.ids
        learned = [*[IGNORE] * segment.answer, *segment.ids[segment.answer :]]
        labels += [*learned[1:], IGNORE]
    positions = torch.cat([torch.arange(start), *(start + torch.arange(length) for length in lengths)])
    return torch.tensor(ids), positions, torch.tensor(labels), torch.repeat_interleave(torch.tensor([start, *lengths]))


def forward_packed(
    model: Any,
    packed: Packed,
    image_tokens: Float[Tensor, "batch tokens hidden"],
    prompt_tokens: Float[Tensor, "batch queries hidden"] | None = None,
    *,
    prompt_id: int = -1,
) -> Float[Tensor, "batch length hidden"]:
    """Run the language model of `model`, a LLaVA, over packed sequences, up to its output head.

    `image_tokens` are projected features. `prompt_tokens` go where `prompt_id` stands, like the local prompt of an
    attached model.
    """
    llava = model.model
    embeddings = llava.get_input_embeddings()(packed.input_ids)
    embeddings = _place(embeddings, packed.input_ids == model.config.image_token_id, image_tokens)
    if prompt_tokens is not None:
        embeddings = _place(embeddings, packed.input_ids == prompt_id, prompt_tokens)
    output = llava.language_model(
        inputs_embeds=embeddings, attention_mask=packed.mask(), position_ids=packed.position_ids, use_cache=False
    )
    return output.last_hidden_state


def _place(embeddings: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    return embeddings.masked_scatter(where[..., None], tokens.to(embeddings.dtype))
