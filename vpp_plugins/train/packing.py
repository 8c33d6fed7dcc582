"""Turns apart: all turns of a dialogue in one sequence behind its image, none of which sees another.

The image's tokens are computed once for all its questions, and each question is learned as if it were the only one,
which is how grounding is asked for. A turn's positions go on from the image: every logit is that of the turn alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from vpp_plugins.data import LoadedSample
from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import Collator, RenderedSample
from vpp_plugins.train.labels import IGNORED, RenderedChat, Segment, chat_segments, render_chat

PREFIX, PADDING = 0, -1
"""Numbers of what is no turn; turns are counted from 1."""


@dataclass(frozen=True)
class RenderedDialogue(RenderedSample):
    """A sample whose `chat` is its first turn alone; `others` are the other turns, each with the image before it."""

    others: tuple[RenderedChat, ...] = ()


class TurnsApart(Collator):
    """A Collator that asks each turn by itself. The host must take a mask [batch, 1, length, length] and positions.

    That is so for LLaVA and its like with `sdpa` attention, not for hosts with positions of several axes. A dialogue
    without an image keeps its first turn alone: there is nothing to share.
    """

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
        names, pads = ("input_ids", "labels", "position_ids", "turns"), (self._pad_id, IGNORED, 0, PADDING)
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([parts[name] for parts in packed], True, pad)
            for name, pad in zip(names, pads, strict=True)
        }
        return {**first, **padded, "attention_mask": who_sees_whom(padded.pop("turns"))}

    def _packed(self, ids: Tensor, labels: Tensor, row: RenderedSample | None) -> dict[str, Tensor]:
        """Put the other turns behind the first one of a row."""
        others = [self._segment(chat) for chat in row.others] if isinstance(row, RenderedDialogue) else []
        begins = len(ids) if row is None else len(ids) - len(self._segment(row.chat).ids)
        lengths = [len(ids) - begins, *(len(segment.ids) for segment in others)]
        learned = [torch.tensor(segment.ids).where(torch.tensor(segment.learned), IGNORED) for segment in others]
        return {
            "input_ids": torch.cat([ids, *(torch.tensor(segment.ids) for segment in others)]),
            "labels": torch.cat([labels, *learned]),
            "position_ids": torch.cat([torch.arange(begins), *(begins + torch.arange(length) for length in lengths)]),
            "turns": torch.repeat_interleave(torch.tensor([begins, *lengths])),
        }

    def _segment(self, chat: RenderedChat) -> Segment:
        """Return what stands behind the image."""
        return chat_segments(chat, self.processor.tokenizer, self.marker)[-1]

    @property
    def _pad_id(self) -> int:
        pad: int | None = self.processor.tokenizer.pad_token_id
        return 0 if pad is None else pad


def check_host(host: Any) -> None:
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


def who_sees_whom(turns: Int64[Tensor, "batch length"]) -> Bool[Tensor, "batch 1 length length"]:
    """Return True where a token may look: back, at the prefix and at its own turn. Nobody sees padding, not even it."""
    of_query, of_key = turns[:, :, None], turns[:, None, :]
    back = torch.ones(turns.shape[1], turns.shape[1], dtype=torch.bool).tril()
    return (back & (of_key != PADDING) & ((of_key == PREFIX) | (of_key == of_query)))[:, None]
