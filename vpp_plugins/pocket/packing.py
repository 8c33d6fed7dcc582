"""Many questions about one image in one sequence: the image's tokens are computed once, no question sees another.

A packed sequence is the image's prefix and then one segment per question with its answer. A segment's positions go
on from the prefix, so every logit equals that of the single-turn sequence (tested).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100


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
        of_query, of_key = self.segments[:, :, None], self.segments[:, None, :]
        length = self.segments.shape[1]
        back = torch.ones(length, length, dtype=torch.bool).tril()
        return (back & ((of_key == 0) | (of_key == of_query)))[:, None]


def pack(prefix: Sequence[int], questions: Sequence[Sequence[Segment]], pad_id: int) -> Packed:
    """Pack each image's questions behind the prefix, whose image and prompt placeholders every image shares."""
    start = len(prefix)
    length = max(start + sum(len(segment.ids) for segment in per_image) for per_image in questions)
    ids = torch.full((len(questions), length), pad_id)
    positions = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    segments = torch.full_like(ids, -1)
    ids[:, :start] = torch.tensor(prefix)
    positions[:, :start] = torch.arange(start)
    segments[:, :start] = 0
    for row, per_image in enumerate(questions):
        at = start
        for number, segment in enumerate(per_image, start=1):
            end = at + len(segment.ids)
            content = torch.tensor(segment.ids)
            ids[row, at:end] = content
            positions[row, at:end] = torch.arange(start, start + len(segment.ids))
            segments[row, at:end] = number
            labels[row, at + segment.answer - 1 : end - 1] = content[segment.answer :]
            at = end
    return Packed(ids, positions, labels, segments)


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
    hidden: Tensor = output.last_hidden_state
    return hidden


def _place(embeddings: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    return embeddings.masked_scatter(where[..., None], tokens.to(embeddings.dtype))
