"""Samples to a batch: images, text, placeholders and the labels of the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from vpp_plugins import plugins
from vpp_plugins.boxes import AXIS_SENTENCE, ImageMeta, check_shown, codec, metas_of
from vpp_plugins.data import LoadedSample, Phrases, Sample, TrainingData
from vpp_plugins.errors import VPPError
from vpp_plugins.processor import VPPProcessor, image_marker
from vpp_plugins.train.labels import IGNORED, RenderedChat, label_answers, render_chat

Chat = list[dict[str, Any]]
TRIES = 100
"""Samples in a row that may be unusable before it is no accident."""
ABOUT = "vpp_about"
"""Key of a batch's `About`, which is not for the model."""


@dataclass(frozen=True)
class About:
    """Where a batch comes from."""

    samples: tuple[Sample, ...]
    """What it is made of, with all turns."""
    metas: tuple[ImageMeta | None, ...]
    """Their images' sizes, before the processor and after; None for text alone."""
    rows: tuple[int, ...]
    """The samples' numbers in the data."""
    skipped: tuple[str, ...]
    """Which samples gave their place to the next one, and why."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The samples' ids."""
        return tuple(sample.id for sample in self.samples)

    @property
    def imaged(self) -> tuple[Sample, ...]:
        """The samples with an image, in the order of their images."""
        return tuple(self.samples[row] for row in self.imaged_rows)

    @property
    def imaged_rows(self) -> tuple[int, ...]:
        """The rows of the batch with an image, in the order of their images."""
        return tuple(row for row, meta in enumerate(self.metas) if meta is not None)


class ChatWriter:
    """Writes samples in one box format.

    "vpp-llava" writes LLaVA's words and boxes and sets the axis sentence behind the first question, as the reference
    does in training; as a box format for evaluation it has that sentence in every question.
    """

    def __init__(self, box_format: str) -> None:
        self.codec = plugins.box_codec(box_format)
        axes = self.codec.family == "vpp-llava"
        self._phrases = Phrases(codec("llava") if axes else self.codec)
        self._appended = AXIS_SENTENCE if axes else ""

    def __call__(self, sample: Sample, meta: ImageMeta | None) -> Chat:
        """Return the chat, `meta` being of the image, or None without one.

        Raises VPPError for a box that lies outside the image, and for an image of another size than the sample says.
        """
        if meta is not None and sample.width and meta.size_hw != (sample.height, sample.width):
            height, width = meta.size_hw
            raise VPPError(
                f"the image of '{sample.id}' is {width} x {height}, but its boxes are for {sample.width} x "
                f"{sample.height}: it is another image, or a resized one."
            )
        chat: Chat = []
        for turn in sample.turns:
            question, answer = self._phrases.write(turn, meta)
            chat += [_said("user", question), _said("assistant", answer)]
        first = chat[0]["content"]
        first[0]["text"] += self._appended
        if meta is not None:
            first.insert(0, {"type": "image"})
        return chat


@dataclass(frozen=True)
class RenderedSample:
    """One sample, ready for the processor."""

    index: int
    sample: Sample
    image: Image.Image | None
    meta: ImageMeta | None
    chat: RenderedChat


class Collator:
    """Makes batches of a VPPProcessor's inputs.

    A sample that cannot be used (damaged image, box outside, longer than `max_length`) gives its place to the next
    one, so batches keep their size and a resumed run meets the same ones. A batch of text alone gets a grey image
    that nothing is learned from: so vision encoder, projector and prompts have their place in every backward, with
    zero gradients, and processes that share a model never wait for each other.
    """

    def __init__(
        self,
        data: TrainingData,
        processor: VPPProcessor,
        write: ChatWriter,
        *,
        image_token: str | None,
        max_length: int | None = None,
        max_turns: int | None = None,
        hide: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor] | None = None,
    ) -> None:
        self.data, self.processor, self.write, self.hide = data, processor, write, hide
        self.max_length, self.max_turns = max_length, max_turns
        self.marker = image_marker(processor.processor, image_token) or None

    def __call__(self, loaded: Sequence[LoadedSample]) -> dict[str, Any]:
        """Return the inputs of a padded batch with `labels`, and under ABOUT where it comes from."""
        skipped: dict[str, str] = {}
        rows = [self.usable(one, skipped) for one in loaded]
        for _ in range(TRIES):
            batch = self.batch(rows)
            lengths = real_tokens(batch["attention_mask"]).sum(1).tolist()
            long = [n for n, length in enumerate(lengths[: len(rows)]) if length > (self.max_length or length)]
            if not long:
                reasons = tuple(f"{sample}: {why}" for sample, why in skipped.items())
                samples, metas = tuple(row.sample for row in rows), tuple(row.meta for row in rows)
                about = About(samples, metas, tuple(row.index for row in rows), reasons)
                if self.hide is not None:
                    batch["input_ids"] = self.hide(batch["input_ids"], batch["labels"], about.rows)
                return {**batch, ABOUT: about}
            for number in long:
                row = rows[number]
                skipped[row.sample.id] = f"{lengths[number]} tokens are more than max_length = {self.max_length}"
                rows[number] = self.usable(self._after(row.index), skipped)
        raise VPPError(f"{TRIES} samples in a row are longer than max_length = {self.max_length}: raise it.")

    def usable(self, loaded: LoadedSample, skipped: dict[str, str]) -> RenderedSample:
        """Return this sample, or the next that can be used; says in `skipped` which cannot, and why."""
        for _ in range(TRIES):
            try:
                return self.row(loaded)
            except VPPError as error:
                last = skipped[loaded.sample.id] = str(error)
                loaded = self._after(loaded.index)
        raise VPPError(f"{TRIES} samples in a row cannot be used; the last: {last}")

    def row(self, loaded: LoadedSample) -> RenderedSample:
        """Return one sample, or raise VPPError where it cannot be used."""
        sample, meta = loaded.sample, self.meta(loaded)
        asked = replace(sample, turns=sample.turns[: self.max_turns])
        chat = render_chat(self.processor, self.write(asked, meta))
        return RenderedSample(loaded.index, sample, loaded.image, meta, chat)

    def meta(self, loaded: LoadedSample) -> ImageMeta | None:
        """Return the image's size as codecs take it, None for text; raises VPPError where it cannot be used."""
        if loaded.reason:
            raise VPPError(loaded.reason)
        if loaded.image is None:
            return None
        return metas_of([loaded.image], self.write.codec, self.processor.image_processor)[0]

    def _after(self, index: int) -> LoadedSample:
        return self.data[(index + 1) % len(self.data)]

    def batch(self, rows: Sequence[RenderedSample]) -> dict[str, Any]:
        """Return the padded inputs of the rows, with `labels`."""
        added = [] if any(row.image for row in rows) else [self._stand_in(rows[0])]
        everything = [*rows, *added]
        tokenizer = self.processor.tokenizer
        begins = tokenizer.bos_token is not None and rows[0].chat.text.startswith(tokenizer.bos_token)
        inputs = self.processor(
            images=[[] if row.image is None else [row.image] for row in everything],
            text=[row.chat.text for row in everything],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            **({"add_special_tokens": False} if begins else {}),
        )
        self._check_sizes(everything, inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        labels = torch.full_like(ids, IGNORED)
        for number, row in enumerate(rows):
            learned = label_answers(ids[number][mask[number]], row.chat, tokenizer, image_token=self.marker)
            labels[number][mask[number]] = learned.labels
        return {**inputs, "labels": labels}

    def _check_sizes(self, rows: Sequence[RenderedSample], inputs: Any) -> None:
        """Raise VPPError where the boxes in the texts are not those of the images as the inputs show them."""
        images = [row.image for row in rows if row.image is not None]
        shown = metas_of(images, self.write.codec, self.processor.image_processor, inputs)
        stated = [row.meta for row in rows if row.meta is not None]
        check_shown(stated, shown[: len(stated)])  # what stands in for images comes last, and has no box

    def _stand_in(self, row: RenderedSample) -> RenderedSample:
        """Return a grey image with a word."""
        content = [{"type": "image"}, {"type": "text", "text": "."}]
        chat = render_chat(self.processor, [{"role": "user", "content": content}])
        return replace(row, image=Image.new("RGB", (64, 64), (127, 127, 127)), chat=chat)


def real_tokens(attention_mask: Tensor) -> Bool[Tensor, "batch length"]:
    """Return what is no padding, of a mask [batch, length], or [batch, 1, length, length] where turns are apart."""
    mask = attention_mask.bool()
    return mask if mask.ndim == 2 else mask[:, 0].diagonal(dim1=-2, dim2=-1)


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
