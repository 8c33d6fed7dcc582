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
from vpp_plugins.host import active_vpp, every_vpp
from vpp_plugins.images import ImageSource, letterbox, load_image
from vpp_plugins.prompts.vpp import TOKEN


class VPPProcessor:
    """Called like the host's processor; adds `<|vpp|>` after every image of the text, and `vpp_pixel_values`.

    Works on a copy of `processor`, with the settings that grounding needs (LLaVA: pictures are padded to a square,
    because transformers' default crops their sides away). Adds `<|vpp|>` to the copy's tokenizer and binds its id to
    the model; a spare row of the embedding is used where there is one, else the table grows by a row, until detach_vpp:
    its Parameter is then a new one, so make the processor before the optimizer and before get_peft_model.
    """

    def __init__(self, processor: Any, model: nn.Module) -> None:
        if isinstance(processor, VPPProcessor):
            raise VPPError("this processor is a VPPProcessor already: pass the host's own processor.")
        host = unwrap(model)
        self._state = host_state(model)
        if self._state.disabled:
            raise VPPError("a VPPProcessor cannot be made inside a vpp_disabled block: leave the block first.")
        vpp = active_vpp(host)
        self.processor = copy.deepcopy(processor)
        self._state.backbone.prepare_processor(self.processor)
        self._tokens_per_image = vpp.tokens_per_image
        self._image_size = 0 if vpp.config.local_vpp is None else vpp.config.local_vpp.image_size
        for copied in every_vpp(host):
            self._match_normalisation(copied)
        if self._tokens_per_image:
            self._token_id = _add_token(self.processor.tokenizer, host, self._state)
            for copied in every_vpp(host):
                copied.bind_token(self._token_id)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Return the host's inputs with `vpp_pixel_values [images, 3, side, side]` in reading order of the images.

        `images` is one picture, a list, or a list per text; pictures are paths, bytes, PIL images, or 8-bit arrays
        [height, width, 3] or tensors [3, height, width]. Inside `vpp_disabled(model)` the host's inputs come alone.
        """
        if not self._state.attached:
            raise VPPError("this processor's model was detached from VPP: use the host's own processor.")
        flat = flatten_images(images)
        pictures = None if images is None else _like(images, iter(flat))
        if self._state.disabled or not self._tokens_per_image:
            return self.processor(images=pictures, text=text, **kwargs)
        inputs = self.processor(images=pictures, text=self._place(text, images, len(flat)), **kwargs)
        if flat:
            inputs["vpp_pixel_values"] = torch.stack([letterbox(picture, self._image_size) for picture in flat])
        if text is not None:
            self._check_whole(inputs["input_ids"], len(flat) * self._tokens_per_image)
        return inputs

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = False, **kwargs: Any) -> Any:
        """Render a chat with the host's template; with `tokenize`, also process the images that its content names."""
        if not tokenize:
            return self.processor.apply_chat_template(conversation, tokenize=False, **kwargs)
        chats = [conversation] if isinstance(conversation[0], dict) else list(conversation)
        forwarded = {
            name: kwargs.pop(name)
            for name in ("return_tensors", "padding", "truncation", "max_length")
            if name in kwargs
        }
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

    def _place(self, text: Any, images: Any, count: int) -> Any:
        """Return the text, or texts, with the placeholders after every image marker."""
        if text is None:
            return None
        marker, texts = self.processor.image_token, [text] if isinstance(text, str) else list(text)
        if any(TOKEN in one for one in texts):
            raise VPPError(f"the text holds {TOKEN}, which VPPProcessor places itself: leave it out.")
        found = [one.count(marker) for one in texts]
        if sum(found) != count:
            raise VPPError(
                f"the text has {sum(found)} image placeholders '{marker}', but {count} images came: every image needs "
                "one."
            )
        given = [len(flatten_images(part)) for part in images] if _is_nested(images) else found
        if given != found:
            raise VPPError(
                f"the texts have {found} image placeholders '{marker}', but {given} images came for them: give each "
                "text a list of its own images."
            )
        marked = [one.replace(marker, marker + TOKEN * self._tokens_per_image) for one in texts]
        return marked[0] if isinstance(text, str) else marked

    def _check_whole(self, input_ids: Any, expected: int) -> None:
        rows = input_ids.tolist() if isinstance(input_ids, Tensor | np.ndarray) else input_ids
        found = sum(row.count(self._token_id) for row in (rows if rows and isinstance(rows[0], list) else [rows]))
        if found != expected:
            raise VPPError(
                f"{found} of {expected} {TOKEN} placeholders are left in the tokenised text: max_length cuts them off, "
                "so raise it or turn truncation off."
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
                f"this processor normalises pixels with mean {mean} and std {std}, but the global prompt was trained "
                f"with {prompt.image_mean} and {prompt.image_std}: use the processor that it was trained with."
            )
        prompt.renormalise_(mean, std)
        vpp.config = replace(vpp.config, global_vpp=replace(vpp.config.global_vpp, image_mean=mean, image_std=std))


def flatten_images(images: Any) -> list[Image.Image]:
    """Return every picture of a picture, a list, or a list of lists, upright RGB, in reading order; None holds none."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        lists = [flatten_images(part) if isinstance(part, list | tuple) else [_to_picture(part)] for part in images]
        return [picture for part in lists for picture in part]
    return [_to_picture(images)]


def _to_picture(image: Any) -> Image.Image:
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.shape[0] == 3 else image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise VPPError(
                f"a picture array must be 8-bit [height, width, 3], but is {image.dtype} {list(image.shape)}: convert "
                "it, or pass a PIL image."
            )
        image = Image.fromarray(image)
    if not isinstance(image, ImageSource):
        raise VPPError(f"a picture must be a path, bytes, a PIL image, an array or a tensor, but is {image!r}.")
    return load_image(image)


def _is_nested(images: Any) -> bool:
    return isinstance(images, list | tuple) and any(isinstance(part, list | tuple) for part in images)


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
