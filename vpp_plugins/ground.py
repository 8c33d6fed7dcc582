"""Grounding: an image and an expression in, boxes out."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor, nn

from vpp_plugins import plugins
from vpp_plugins.attach import (
    CONFIG_FILE,
    encoded_once,
    host_state,
    is_attached,
    prepared_once,
    refuse_dropped_prompts,
    unwrap,
)
from vpp_plugins.boxes import Box, BoxCodec, BoxStatus, ImageMeta, metas_of, opens_thought, worst_status
from vpp_plugins.errors import VPPError
from vpp_plugins.images import ImageSource, draw_boxes, load_images
from vpp_plugins.processor import VPPProcessor, check_pair, check_processor, hosts_processor, image_marker

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "max_time": None,
}
"""What the host's own generation configuration may not decide: one answer a question, whatever the clock says."""


@dataclass(frozen=True, repr=False)
class Grounding:
    """The answer for one image and one expression."""

    image: Image.Image
    expression: str
    boxes: tuple[Box, ...]
    """(left, top, right, bottom) in pixels of the original image, upright; empty when the answer holds no box."""
    labels: tuple[str | None, ...]
    """What the answer calls each box, where the family's format says."""
    statuses: tuple[BoxStatus, ...]
    """How each box was read."""
    text: str
    """The raw answer."""

    @property
    def status(self) -> BoxStatus:
        """The worst of the boxes' statuses: ok, clipped, inverted, unparsable or none."""
        return worst_status(self.statuses)

    def draw(self) -> Image.Image:
        """Return a copy of the image with every box and the expression on it; without a box, with the status."""
        note = "" if self.boxes else f"{self.expression}: {self.status}"
        return draw_boxes(self.image, self.boxes, labels=[self.expression] * len(self.boxes), note=note)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON values, without the image: boxes in its pixels, to a tenth."""
        return {
            "width": self.image.width,
            "height": self.image.height,
            "expression": self.expression,
            "boxes": [[round(value, 1) for value in box] for box in self.boxes],
            "labels": list(self.labels),
            "status": str(self.status),
            "text": self.text,
        }

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`: boxes in pixels, class 0, its name the label or else the expression."""
        try:
            from supervision import Detections
        except ModuleNotFoundError:
            raise VPPError("to_supervision makes supervision's Detections: pip install supervision.") from None
        count = len(self.boxes)
        names = [label or self.expression for label in self.labels]
        return Detections(
            xyxy=np.array(self.boxes, dtype=np.float32).reshape(count, 4),
            class_id=np.zeros(count, dtype=int),
            data={"class_name": np.array(names, dtype=str)},
        )

    def __repr__(self) -> str:
        """Return one line: what was asked, where it is, and how it was read."""
        boxes = ", ".join("(" + ", ".join(f"{value:.1f}" for value in box) + ")" for box in self.boxes)
        size = f"{self.image.width} x {self.image.height}"
        return f"<Grounding {self.expression!r}: {boxes or 'no box'} of {size} pixels, {self.status}>"

    def _repr_png_(self) -> bytes:
        """Show the drawing in a notebook."""
        png = BytesIO()
        self.draw().save(png, format="PNG")
        return png.getvalue()


class Grounder:
    """Ask a multimodal LLM where things are.

    Works on an attached model with its VPPProcessor and, for comparison, on a bare host with its own processor. The
    prompt and the reading of the answer are those of the model's family; answers are greedy.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        box_format: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 64,
    ) -> None:
        """`box_format` overrides the family's codec; `batch_size` pairs are answered at a time."""
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise VPPError(f"{name} must be at least 1, but is {value}.")
        if not isinstance(model, nn.Module):
            raise VPPError(f"a Grounder takes a model and its processor, but the model is a {type(model).__name__}.")
        self.model, self.processor = model, processor
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self._backbone = host_state(model).backbone if is_attached(model) else plugins.describe(unwrap(model))
        _check_parts(unwrap(model), processor)
        self.codec: BoxCodec = plugins.box_codec(box_format or self._backbone.box_format)

    @overload
    def __call__(self, images: ImageSource, expressions: str) -> Grounding: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[ImageSource], expressions: Sequence[str]) -> list[Grounding]: ...
    def __call__(
        self, images: ImageSource | Sequence[ImageSource], expressions: str | Sequence[str]
    ) -> Grounding | list[Grounding]:
        """Ground one pair, or two lists of equal length, which give one Grounding per pair.

        Raises VPPError, before anything is asked, for an image that cannot be read, an empty expression, and lists of
        unequal length.
        """
        if isinstance(expressions, str):
            if isinstance(images, list | tuple):
                raise VPPError(f"one expression came with {len(images)} images: give one expression per image.")
            return self([images], [expressions])[0]  # type: ignore[list-item]
        if not isinstance(expressions, Sequence) or not all(isinstance(one, str) for one in expressions):
            raise VPPError(f"an expression is a text, and several are a list of texts, but {expressions!r} came.")
        count = len(expressions)
        if isinstance(images, str | bytes | Image.Image) or not isinstance(images, Sequence):
            raise VPPError(f"one image came with {count} expressions: repeat the image for each of them.")
        if len(images) != count:
            raise VPPError(f"{len(images)} images came with {count} expressions: give one expression per image.")
        if not all(expression.strip() for expression in expressions):
            raise VPPError("the expression is empty: say what to look for.")
        loaded = load_images(images)  # type: ignore[arg-type]
        batches = [slice(start, start + self.batch_size) for start in range(0, count, self.batch_size)]
        return [answer for batch in batches for answer in self._ground(loaded[batch], list(expressions[batch]))]

    def ask(
        self, images: Sequence[ImageSource], questions: Sequence[str], **generation: Any
    ) -> list[tuple[str, ImageMeta]]:
        """Answer one question per image, in one batch, in any words; return the raw texts.

        With each comes what the codec must know of its image, turned upright. `generation` goes to the model's
        `generate`; answers are greedy and at most `max_new_tokens` long unless it says otherwise.
        """
        if len(images) != len(questions):
            raise VPPError(f"{len(images)} images came with {len(questions)} questions: give one question per image.")
        if not questions:
            return []
        return self._ask(load_images(images), questions, **generation)

    def _ask(
        self, images: Sequence[Image.Image], questions: Sequence[str], **generation: Any
    ) -> list[tuple[str, ImageMeta]]:
        """Answer as `ask` does; the images are as `load_images` returned them."""
        texts = [self._prompt(question) for question in questions]
        preparing = prepared_once(self.processor.image_processor, self._backbone)
        with _left_padding(self.processor.tokenizer), preparing:
            inputs = self.processor(images=[[image] for image in images], text=texts, return_tensors="pt", padding=True)
        metas = metas_of(images, self.codec, self.processor.image_processor, inputs)
        answers = self._decode(self._generate(inputs, generation))
        # Where the template opens the thought, an answer that was cut off within it would hold no tag at all.
        answers = [f"<think>{own}" if opens_thought(text) else own for text, own in zip(texts, answers, strict=True)]
        return list(zip(answers, metas, strict=True))

    def talk(self, questions: Sequence[str], **generation: Any) -> list[tuple[str, bool]]:
        """Answer plain questions without an image, in one batch; each text with whether it ended, or was cut off.

        `generation` is as for `ask`.
        """
        if isinstance(questions, str):
            raise VPPError("a text came in place of several questions: give a list of texts.")
        if not questions:
            return []
        texts = [self._prompt(question, image=False) for question in questions]
        bare = self._own_template() is None  # a template writes the token that begins a text itself
        with _left_padding(self.processor.tokenizer):
            inputs = self.processor.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=bare)
        told = self._generate(inputs, generation)
        ended = torch.isin(told, torch.tensor(self._ends(), device=told.device)).any(1)
        return list(zip(self._decode(told), ended.tolist(), strict=True))

    def _generate(self, inputs: Any, generation: Mapping[str, Any]) -> Int64[Tensor, "batch length"]:
        """Return the answers' tokens."""
        host = unwrap(self.model)
        inputs = inputs.to(host.get_input_embeddings().weight.device)
        settings = self.generation(**generation)
        if host.generation_config.stop_strings:
            settings["tokenizer"] = self.processor.tokenizer  # generate needs it for them
        with _evaluating(self.model), torch.no_grad(), encoded_once(host, self._backbone):
            output = self.model.generate(**inputs, **settings)  # type: ignore[operator]
        return _without_prompt(output, inputs["input_ids"])

    def generation(self, **changes: Any) -> dict[str, Any]:
        """Return the arguments of the model's `generate` where `ask` gets `changes`: what the host may not decide.

        Raises VPPError for changes by which one question would not get one answer.
        """
        for name in ("num_return_sequences", "return_dict_in_generate"):
            if changes.get(name, GREEDY[name]) != GREEDY[name]:
                raise VPPError(
                    f"a Grounder reads one answer a question, but {name} = {changes[name]} came: leave it out, or call "
                    "model.generate and read each answer by the `codec` of the Grounder."
                )
        return {**GREEDY, "max_new_tokens": self.max_new_tokens, **changes}

    def metas(self, images: Sequence[ImageSource]) -> list[ImageMeta]:
        """Return what the codec must know of images, as `ask` will show them; nothing is run."""
        return metas_of(load_images(images), self.codec, self.processor.image_processor)

    def _ground(self, images: list[Image.Image], expressions: list[str]) -> list[Grounding]:
        answers = self._ask(images, [self.codec.prompt(expression) for expression in expressions])
        return [
            self._read(image, expression, *answer)
            for image, expression, answer in zip(images, expressions, answers, strict=True)
        ]

    def _prompt(self, question: str, *, image: bool = True) -> str:
        if self._own_template() is not None:
            content = [*([{"type": "image"}] if image else []), {"type": "text", "text": question}]
            chat = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        marker = image_marker(hosts_processor(self.processor), self._backbone.image_token)
        if not marker:
            return question
        return self._backbone.plain_prompt.format(image=marker if image else "", question=question)

    def _own_template(self) -> Any:
        return hosts_processor(self.processor).chat_template

    def _decode(self, ids: Int64[Tensor, "batch length"]) -> list[str]:
        """Return the answers; only what bounds a text is left out, as many families' box tokens are special too."""
        tokenizer, settings = self.processor.tokenizer, unwrap(self.model).generation_config
        bounds = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id]
        bounds += [settings.pad_token_id, settings.bos_token_id, settings.decoder_start_token_id]
        bounds += self._ends()
        left_out = torch.tensor([token for token in bounds if token is not None], device=ids.device)
        rows = [row[~torch.isin(row, left_out)] for row in ids]
        return self.processor.batch_decode(rows, skip_special_tokens=False)

    def _ends(self) -> list[int]:
        """Return the tokens that end an answer."""
        ends = unwrap(self.model).generation_config.eos_token_id
        every = [self.processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        return [token for token in every if token is not None]

    def _read(self, image: Image.Image, expression: str, answer: str, meta: ImageMeta) -> Grounding:
        decoded = self.codec.decode(answer, meta)
        return Grounding(
            image=image,
            expression=expression,
            boxes=tuple(decoded.boxes_xyxy_px),
            labels=tuple(decoded.labels),
            statuses=tuple(decoded.statuses),
            text=answer.strip(),
        )


def _without_prompt(
    output: Int64[Tensor, "batch length"], prompt: Int64[Tensor, "batch prompt"]
) -> Int64[Tensor, "batch answer"]:
    """Cut off the prompt, where the host repeats it: decoder-only hosts do, unless they generate from embeddings."""
    length = prompt.shape[1]
    return output[:, length:] if torch.equal(output[:, :length], prompt) else output


def _check_parts(host: nn.Module, processor: Any) -> None:
    """Raise VPPError where a model cannot be asked with a processor, and warn of prompts beside it that are not on."""
    attached, wrapped = is_attached(host), isinstance(processor, VPPProcessor)
    if wrapped and not attached:
        raise VPPError(
            f"the processor is a VPPProcessor, but VPP is not attached to this {type(host).__name__}: call "
            "attach_vpp(model), or give the host's own processor."
        )
    if not attached:
        refuse_dropped_prompts(host)
        folder = vars(host).get("name_or_path")
        if folder and Path(folder, CONFIG_FILE).is_file():
            warnings.warn(
                f"'{folder}' holds prompts beside this host, which is asked without them: attach_vpp(model, "
                f"'{folder}') puts them on.",
                stacklevel=3,
            )
    own = processor.processor if wrapped else processor
    check_processor(own)
    check_pair(own, host)


@contextmanager
def _left_padding(tokenizer: Any) -> Iterator[None]:
    """Pad on the left, as generation needs, and put the tokenizer's own side back."""
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
