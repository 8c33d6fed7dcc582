"""Answer-only labels: training learns what the assistant says, and nothing else of a chat.

`render_chat` writes the chat as the host's template does and says where in the text the answers stand. `label_answers`
finds them again among the ids that the processor made of that text, wherever it put image tokens and placeholders.

The reference counts tokens instead: it tokenises every turn by itself, subtracts what sentencepiece may have added, and
masks the whole sample, with a printed warning, where its sum is not the length of the ids. Nothing is counted here, so
nothing can be lost that way; on its own text the labels are the same (tests/train/test_labels.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from vpp_plugins.errors import VPPError
from vpp_plugins.processor import hosts_processor

IGNORED = -100
"""The label of what is not learned, as torch's cross entropy has it."""

Chat = Sequence[Mapping[str, Any]]
Span = tuple[int, int]

_GENERATION_MARK = re.compile(r"{%-?\s*generation\s*-?%}")


class NoAnswerError(VPPError):
    """Nothing of this chat would be learned; a data pipeline may count such samples and go on."""


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text, images still as markers, and the character ranges of what the assistant says."""

    text: str
    answers: tuple[Span, ...]


@dataclass(frozen=True)
class Labels:
    """One label per id, -100 where nothing is learned."""

    labels: Int64[Tensor, " length"]
    learned: int
    """How many ids have a label."""
    truncated: bool
    """Whether the ids end before the chat does."""


def render_chat(processor: Any, chat: Chat) -> RenderedChat:
    """Render a chat with the template of a VPPProcessor, of a host's own processor, or of a tokenizer.

    Where the template has `generation` marks, what they enclose is the answer, so they should enclose the end of the
    turn too: what is not learned, a trained model will not write. Without marks the chat is rendered prefix by prefix,
    and an answer is what its message adds to the prompt before it, the end of the turn included and white space after
    that left out. Raises VPPError where neither tells.
    """
    own = hosts_processor(processor)
    messages = [dict(message) for message in chat]
    text: str = own.apply_chat_template(messages, tokenize=False)
    marked = _marked(own, messages)
    if marked is not None and marked.text == text:
        return marked
    numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    return RenderedChat(text, tuple(_added(own, messages, number, text) for number in numbers))


def label_answers(
    input_ids: Int64[Tensor, " length"], chat: RenderedChat, tokenizer: Any, *, image_token: str | None = None
) -> Labels:
    """Return the labels of one sample, unpadded: the answers' own ids where they stand, and -100 elsewhere.

    `input_ids` are what a processor made of `chat.text` by putting any run of ids in the place of each `image_token`,
    and by cutting off its end at most. A token belongs to an answer if its last character does: so the blank that
    sentencepiece writes into an answer's first token counts, and the first token of the next turn does not.

    Raises NoAnswerError where not one id would be learned, and VPPError where the ids are not those of the chat.
    """
    if not tokenizer.is_fast:
        raise VPPError(
            f"labels need a fast tokenizer, which says where its tokens stand; got a {type(tokenizer).__name__}."
        )
    labels = torch.full_like(input_ids, IGNORED)
    segments = chat_segments(chat, tokenizer, image_token)
    text, start, length, truncated = _as_text(input_ids.tolist()), 0, 0, False
    for number, segment in enumerate(segments):
        start, length = _find(segment.ids, text, start + length, last=number == len(segments) - 1)
        learned = torch.tensor(segment.learned[:length])
        labels[start : start + length] = torch.where(learned, input_ids[start : start + length], IGNORED)
        if length < len(segment.ids):
            truncated = True
            break
    learned_ids = int(labels.ne(IGNORED).sum())
    if not learned_ids:
        why = "its end was cut off before the first answer" if truncated else "it has no answer"
        raise NoAnswerError(f"nothing of the chat {chat.text[:80]!r}... would be learned: {why}. Leave it out.")
    return Labels(labels, learned_ids, truncated)


def _marked(own: Any, messages: list[dict[str, Any]]) -> RenderedChat | None:
    """Return what the template's `generation` marks enclose, or None where it has none."""
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import render_jinja_template

    template = own.chat_template
    if not isinstance(template, str) or not _GENERATION_MARK.search(template):
        return None
    tokenizer = own if isinstance(own, PreTrainedTokenizerBase) else own.tokenizer
    rendered: Any = render_jinja_template(  # said to be a string
        [messages], chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    texts, spans = rendered
    return RenderedChat(texts[0], tuple((start, end) for start, end in spans[0]))


def _added(own: Any, messages: list[dict[str, Any]], number: int, text: str) -> Span:
    """Return the range that message `number` adds to the prompt for it."""
    before: str = own.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
    after: str = own.apply_chat_template(messages[: number + 1], tokenize=False)
    if not (text.startswith(after) and after.startswith(before)):
        raise VPPError(
            f"the chat template writes message {number} in another way once more follows, so the answers cannot be "
            "told from the rest: put {% generation %} and {% endgeneration %} around them in the template."
        )
    return len(before), len(after.rstrip())


@dataclass(frozen=True)
class TextSegment:
    """The ids between two images, and which of them are an answer's."""

    ids: list[int]
    learned: list[bool]


def chat_segments(chat: RenderedChat, tokenizer: Any, image_token: str | None) -> list[TextSegment]:
    """Return the ids of a chat's text, before, between and after its images; empty ones are left out."""
    encoded = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    images = [] if image_token is None else [found.span() for found in re.finditer(re.escape(image_token), chat.text)]
    segments, current = [], TextSegment([], [])
    for token_id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if any(start < image_end and end > image_start for image_start, image_end in images):
            segments.append(current)
            current = TextSegment([], [])
        else:
            current.ids.append(token_id)
            current.learned.append(any(first < end <= last for first, last in chat.answers))
    return [segment for segment in [*segments, current] if segment.ids]


def _find(ids: list[int], text: str, start: int, *, last: bool) -> tuple[int, int]:
    """Return where a segment begins from `start` on, and how much of it is there before the text of all ids ends.

    The last one is searched from the end: inside an image's run, what stands between two rows may look like it.
    """
    wanted = _as_text(ids)
    found = text.rfind(wanted, start) if last else text.find(wanted, start)
    if found >= 0:
        return found, len(wanted)
    for length in range(min(len(wanted) - 1, len(text) - start), 0, -1):
        if text.endswith(wanted[:length]):
            return len(text) - length, length
    raise VPPError(
        f"the text of the chat is not in input_ids: {len(ids)} ids were searched among {len(text)}. Pass the ids of "
        "this very chat, unpadded, and the image_token that the processor replaces in it."
    )


def _as_text(ids: list[int]) -> str:
    """Write ids as characters: searching in a string is fast, and no vocabulary reaches the end of Unicode."""
    return "".join(map(chr, ids))
