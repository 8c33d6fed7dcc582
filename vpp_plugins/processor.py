"""The processor of an attached model: the host's own, plus the placeholders and the detector's pictures."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vpp_plugins import vocabulary
from vpp_plugins.attach import host_state, unwrap
from vpp_plugins.boxes import ImageMeta
from vpp_plugins.errors import VPPError
from vpp_plugins.host import active_vpp
from vpp_plugins.images import letterbox, load_image
from vpp_plugins.prompts.vpp import TOKEN

Picture = str | bytes | Image.Image | np.ndarray | Tensor


class VPPProcessor:
    """Called like the host's processor; adds `<|vpp|>` after every image of the text, and `vpp_pixel_values`.

    Works on a copy of `processor`, with the settings that grounding needs (LLaVA: pictures are padded to a square, because
    transformers' default crops their sides away). Adds `<|vpp|>` to the copy's tokenizer and binds its id to the model; a spare row of
    the embedding is used where there is one, else the table grows by a row, until detach_vpp.
    """

    def __init__(self, processor: Any, model: nn.Module) -> None:
        if isinstance(processor, VPPProcessor):
            raise VPPError("this processor is a VPPProcessor already: pass the host's own processor.")
        host = unwrap(model)
        self._state = host_state(model)
        vpp = active_vpp(host)
        self.processor = copy.deepcopy(processor)
        self._state.backbone.prepare_processor(self.processor)
        self._tokens_per_image = vpp.tokens_per_image
        self._image_size = 0 if vpp.config.local_vpp is None else vpp.config.local_vpp.image_size
        self._match_normalisation(vpp)
        if self._tokens_per_image:
            self._token_id = _add_token(self.processor.tokenizer, host, self._state)
            vpp.bind_token(self._token_id)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Return the host's inputs with `vpp_pixel_values [images, 3, side, side]` in reading order of the images.

        `images` is one picture, a list, or a list per text; pictures are paths, bytes, PIL images, or 8-bit arrays [height, width, 3] or
        tensors [3, height, width]. Inside `vpp_disabled(model)` the host's inputs come alone.
        """
        if not self._state.attached:
            raise VPPError("this processor's model was detached from VPP: use the host's own processor.")
        flat = flatten_images(images)
        pictures = None if images is None else _like(images, iter(flat))
        if self._state.disabled or not self._tokens_per_image:
            return self.processor(images=pictures, text=text, **kwargs)
        texts, single = ([text], True) if isinstance(text, str) else (list(text or []), False)
        marked = self._place(texts, len(flat))
        inputs = self.processor(images=pictures, text=marked[0] if single else marked, **kwargs)
        if flat:
            inputs["vpp_pixel_values"] = torch.stack([letterbox(picture, self._image_size) for picture in flat])
        self._check_whole(inputs, len(flat) if text is not None else 0)
        return inputs

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = False, **kwargs: Any) -> Any:
        """Render a chat with the host's template; with `tokenize`, also process the images that its content names."""
        if not tokenize:
            return self.processor.apply_chat_template(conversation, tokenize=False, **kwargs)
        chats = [conversation] if isinstance(conversation[0], dict) else list(conversation)
        forwarded = {name: kwargs.pop(name) for name in ("return_tensors", "padding", "truncation", "max_length") if name in kwargs}
        kwargs.pop("return_dict", None)
        texts = self.processor.apply_chat_template(chats, tokenize=False, **kwargs)
        images = [_chat_images(chat) for chat in chats]
        return self(images=images if any(images) else None, text=texts, **forwarded)

    def image_metas(self, images: Any) -> list[ImageMeta]:
        """Return what the box codec must know of each picture, in reading order."""
        return [
            ImageMeta(size_hw=(picture.height, picture.width), image_index=index)
            for index, picture in enumerate(flatten_images(images))
        ]

    @property
    def tokenizer(self) -> Any:
        """The copy's tokenizer, which knows `<|vpp|>`."""
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        """The copy's image processor."""
        return self.processor.image_processor

    @property
    def model_input_names(self) -> list[str]:
        """The host's input names and ours."""
        return [*self.processor.model_input_names, "vpp_pixel_values"]

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Decode ids as the host's processor does."""
        text: str = self.processor.decode(*args, **kwargs)
        return text

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decode a batch of ids as the host's processor does."""
        texts: list[str] = self.processor.batch_decode(*args, **kwargs)
        return texts

    def save_pretrained(self, folder: Any, **kwargs: Any) -> Any:
        """Save the host's processor with its settings and `<|vpp|>`; wrap it again after loading."""
        return self.processor.save_pretrained(folder, **kwargs)

    def _place(self, texts: list[str], images: int) -> list[str]:
        marker = self.processor.image_token
        if any(TOKEN in text for text in texts):
            raise VPPError(f"the text holds {TOKEN}, which VPPProcessor places itself: leave it out.")
        markers = sum(text.count(marker) for text in texts)
        if markers != images:
            raise VPPError(
                f"the text has {markers} image placeholders '{marker}', but {images} images came: every image needs one."
            )
        return [text.replace(marker, marker + TOKEN * self._tokens_per_image) for text in texts]

    def _check_whole(self, inputs: Any, images: int) -> None:
        if "input_ids" not in inputs:
            return
        ids = inputs["input_ids"]
        rows = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
        found = sum(row.count(self._token_id) for row in (rows if rows and isinstance(rows[0], list) else [rows]))
        if found != images * self._tokens_per_image:
            raise VPPError(
                f"{found} of {images * self._tokens_per_image} {TOKEN} placeholders are left in the tokenised text: "
                "max_length cuts them off, so raise it or turn truncation off."
            )

    def _match_normalisation(self, vpp: Any) -> None:
        """Bring an untrained global prompt to the units of this processor's pixels."""
        prompt = vpp.global_vpp
        if prompt is None:
            return
        settings = self.processor.image_processor
        mean, std = tuple(settings.image_mean), tuple(settings.image_std)
        if np.allclose([*mean, *std], [*prompt.image_mean, *prompt.image_std], atol=1e-6):
            return
        if vpp.trained:
            raise VPPError(
                f"this processor normalises pixels with mean {mean} and std {std}, but the global prompt was trained with "
                f"{prompt.image_mean} and {prompt.image_std}: use the processor that it was trained with."
            )
        prompt.renormalise_(mean, std)
        vpp.config = replace(vpp.config, global_vpp=replace(vpp.config.global_vpp, image_mean=mean, image_std=std))


def flatten_images(images: Any) -> list[Image.Image]:
    """Return every picture of a picture, a list, or a list of lists, as upright RGB, in reading order."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for part in images for picture in flatten_images(part)]
    return [_to_picture(images)]


def _to_picture(image: Picture) -> Image.Image:
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.shape[0] == 3 else image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise VPPError(
                f"a picture array must be 8-bit [height, width, 3], but is {image.dtype} {list(image.shape)}: convert it, or "
                "pass a PIL image."
            )
        image = Image.fromarray(image)
    return load_image(image)


def _like(images: Any, pictures: Any) -> Any:
    """Put the pictures back into the nesting of `images`."""
    if isinstance(images, list | tuple):
        return [_like(part, pictures) for part in images]
    return next(pictures)


def _chat_images(chat: Sequence[dict[str, Any]]) -> list[Any]:
    parts = [part for message in chat if isinstance(message["content"], list) for part in message["content"]]
    return [part.get("image", part.get("path", part.get("url"))) for part in parts if part["type"] == "image"]


def _add_token(tokenizer: Any, host: Any, state: Any) -> int:
    tokenizer.add_tokens([TOKEN], special_tokens=True)
    token_id: int = tokenizer.convert_tokens_to_ids(TOKEN)
    rows = vocabulary.rows_of(host)
    if token_id >= rows:
        state.host_rows = rows if state.host_rows is None else state.host_rows
        vocabulary.grow(host, token_id + 1)
    return token_id
