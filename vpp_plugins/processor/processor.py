"""The processor of an attached model: the host's own, plus the placeholders and the detector's images."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vpp_plugins import plugins
from vpp_plugins.attach import active_vpp, every_vpp, host_state, unwrap, vocabulary
from vpp_plugins.boxes import ImageMeta, ShownSizes, metas_of
from vpp_plugins.errors import VPPError
from vpp_plugins.images import flatten_images, image_sources, letterboxes
from vpp_plugins.processor.checks import (
    check_marker,
    check_pair,
    check_processor,
    image_marker,
)
from vpp_plugins.processor.tile_boxes import check_whole, tile_boxes
from vpp_plugins.prompts import RGB, TOKEN


class VPPProcessor:
    """Called like the host's processor; adds `<|vpp|>` after every image of the text, and `vpp_pixel_values`.

    Works on a copy of `processor`, with the settings that grounding needs (LLaVA: images are padded to a square,
    because transformers' default crops their sides away). Adds `<|vpp|>` to the copy's tokenizer and binds its id to
    the model; a spare row of the embedding is used where there is one, else the table grows by a row, until detach_vpp:
    its Parameter is then a new one, so make the processor before the optimizer and before get_peft_model.

    Each image of the text gets its placeholders right after its own tokens (Qwen: before `<|vision_end|>`). Where the
    host sets images before the text itself and writes no tokens for them, the text begins with the placeholders.
    """

    def __init__(self, processor: Any, model: nn.Module) -> None:
        if isinstance(processor, VPPProcessor):
            raise VPPError("this processor is a VPPProcessor already: pass the host's own processor.")
        check_processor(processor)
        host = unwrap(model)
        self._state = host_state(model)
        if self._state.disabled:
            raise VPPError("a VPPProcessor cannot be made inside a vpp_disabled block: leave the block first.")
        check_pair(processor, host)
        vpp = active_vpp(host)
        self.processor = copy.deepcopy(processor)
        self._state.backbone.prepare_processor(self.processor)
        self._tokens_per_image = vpp.tokens_per_image
        self._tiled = vpp.global_vpp is not None and self._state.backbone.tiled
        self._shown, self._codec = ShownSizes(), None
        with suppress(VPPError):  # a format that nobody knows is for whoever reads boxes to refuse
            self._codec = plugins.box_codec(self._state.backbone.box_format)
        self._image_size = 0 if vpp.config.local_vpp is None else vpp.config.local_vpp.image_size
        for copied in every_vpp(host):
            match_normalisation(copied, self.image_processor)
        if vpp.global_vpp is not None:
            self._state.pixel_units = pixel_units(self.image_processor, {})
        if self._tokens_per_image:
            marker = image_marker(self.processor, self._state.backbone.image_token)
            check_marker(self.processor, marker)
            self._place = Placement(marker, self._tokens_per_image)
            self._token_id = _add_token(self.processor.tokenizer, host, self._state)
            for copied in every_vpp(host):
                copied.bind_token(self._token_id)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], model: nn.Module, **kwargs: Any) -> Self:
        """Load the processor of a folder or hub id, as `save_pretrained` or the host's own wrote it, and wrap it."""
        from transformers import AutoProcessor

        return cls(AutoProcessor.from_pretrained(folder, **kwargs), model)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Return the host's inputs with `vpp_pixel_values [images, 3, side, side]` in reading order of the images.

        `images` is one image, a list, or a list per text; images are paths, addresses, bytes, PIL images, or 8-bit
        arrays [height, width, 3] or tensors [3, height, width]. Hosts that cut images into tiles also get
        `vpp_tile_boxes [encoder inputs, 4]`, see `tile_boxes`. Inside `vpp_disabled(model)` the host's inputs come
        alone.
        """
        if not self._state.attached:
            raise VPPError("this processor's model was detached from VPP: use the host's own processor.")
        flat = flatten_images(images)
        loaded = _like(images, iter(flat)) if flat else None
        if self._state.disabled:
            inputs = self.processor(images=loaded, text=text, **kwargs)
            self._remember_sizes(images, flat, inputs, kwargs)
            return inputs
        if kwargs.get("videos") is not None:
            raise VPPError("videos cannot be processed together with VPP yet: pass their frames as images.")
        host, marked = self._placed(text, _lengths(images), len(flat))
        inputs = host(images=loaded, text=marked, **kwargs)
        if self._tokens_per_image and "input_ids" in inputs:
            self._check_whole(inputs["input_ids"], len(flat) * self._tokens_per_image)
        if flat:
            for name, views in self._views(flat, kwargs).items():
                inputs[name] = views.numpy() if kwargs.get("return_tensors") == "np" else views
            self._remember_sizes(images, flat, inputs, kwargs)
        return inputs

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = False, **kwargs: Any) -> Any:
        """Render a chat, or a list of chats, with the host's template.

        With `tokenize`, return the inputs, images named in the chat (`image`, `url`, `path`) included. The other
        arguments are those of the host's own `apply_chat_template`.
        """
        if not tokenize:
            return self.processor.apply_chat_template(conversation, tokenize=False, **kwargs)
        # the host's own method on this object, which it calls with the images that it has loaded
        settings = {**kwargs, "return_dict": True}
        return type(self.processor).apply_chat_template(self, conversation, tokenize=True, **settings)

    def image_metas(self, images: Any, inputs: Any = None, **settings: Any) -> list[ImageMeta]:
        """Return what the box codec of the model's family must know of each image, in reading order.

        Some families count the pixels of the resized image. `inputs` are what a call made of these images. Without
        them, sizes are those of the latest call with each image; before any, those of a call with the arguments
        `settings`. Raises VPPError where calls have shown several sizes and it cannot be told which is meant.
        """
        flat, image_processor = flatten_images(images), self.image_processor
        codec = plugins.box_codec(self._state.backbone.box_format)
        metas = metas_of(flat, codec, image_processor, inputs, **settings)
        if inputs is not None or settings:
            return metas
        recalled = map(self._shown.recall, image_sources(images), metas)
        return [replace(meta, processed_size_hw=size_hw) for meta, size_hw in zip(metas, recalled, strict=True)]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The host processor's too: libraries that ask `isinstance(processor, ProcessorMixin)` take this one."""
        return type(self.processor)

    def __getattr__(self, name: str) -> Any:
        """Return what is not here from the host's processor: `tokenizer`, `image_processor`, `image_token`, ..."""
        if name == "processor":  # not there yet, while this object is being unpickled
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __reduce__(self) -> Any:
        return object.__new__, (VPPProcessor,), self.__dict__

    @property
    def chat_template(self) -> Any:
        """The copy's chat template; may be set."""
        return self.processor.chat_template

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        self.processor.chat_template = template

    @property
    def model_input_names(self) -> list[str]:
        """The host's input names and ours."""
        ours = {"vpp_pixel_values": self._tokens_per_image, "vpp_tile_boxes": self._tiled}
        return [*self.processor.model_input_names, *(name for name, given in ours.items() if given)]

    def save_pretrained(self, folder: Any, **kwargs: Any) -> Any:
        """Save the host's processor with its settings and `<|vpp|>`; `VPPProcessor.from_pretrained` wraps it again."""
        return self.processor.save_pretrained(folder, **kwargs)

    def _placed(self, text: Any, sizes: list[int] | None, images: int) -> tuple[Any, Any]:
        """Return the processor to call, and the text with the placeholders that it does not put in itself."""
        if not self._tokens_per_image:
            return self.processor, text
        found = self.tokenizer.get_vocab().get(TOKEN)
        if found != self._token_id:
            raise VPPError(
                f"the tokenizer's id of {TOKEN} is {found}, but the model knows {self._token_id}: the tokenizer was "
                "swapped or changed, so make a new VPPProcessor."
            )
        return self._place(self.processor, text, sizes, images)

    def _views(self, images: list[Image.Image], options: dict[str, Any]) -> dict[str, Tensor]:
        """Return what VPP takes beside the host's inputs; `options` are those of the call."""
        views = {}
        if self._tokens_per_image:
            views["vpp_pixel_values"] = letterboxes(images, self._image_size)
        asked = self.processor, [(image.height, image.width) for image in images], self._state.backbone
        settings = self._image_settings(options)
        if self._state.pixel_units is not None:
            check_units(self.image_processor, settings, self._state.pixel_units)
        if self._tiled:
            views["vpp_tile_boxes"] = tile_boxes(*asked, **settings)
        elif self._state.backbone.frame == "square" and not self._state.backbone.tiled and self.image_processor:
            check_whole(*asked, **settings)
        return views

    def _image_settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call that concern images, those in `images_kwargs` among them."""
        if self.image_processor is None:  # a stranger's processor may have none of its own
            return {}
        names = {*self.image_processor.valid_kwargs.__annotations__} - {"return_tensors"}
        given = {**options, **(options.get("images_kwargs") or {})}
        return {name: value for name, value in given.items() if name in names}

    def _remember_sizes(self, images: Any, flat: list[Image.Image], inputs: Any, options: dict[str, Any]) -> None:
        """Keep in which sizes the images were shown, for `image_metas`, where boxes are counted in them."""
        codec = self._codec
        if flat and codec is not None and codec.scale.full is None:
            usual = metas_of(flat, codec, self.image_processor)
            shown = metas_of(flat, codec, self.image_processor, inputs, **self._image_settings(options))
            self._shown.remember([*image_sources(images)], usual, shown)

    def _check_whole(self, input_ids: Any, expected: int) -> None:
        rows = input_ids.tolist() if isinstance(input_ids, Tensor | np.ndarray) else input_ids
        found = sum(row.count(self._token_id) for row in (rows if rows and isinstance(rows[0], list) else [rows]))
        if found != expected:
            raise VPPError(
                f"{found} of {expected} {TOKEN} placeholders are left in the tokenised text: max_length cuts them off, "
                "so raise it or turn truncation off."
            )


def _lengths(images: Any) -> list[int] | None:
    """Return how many images each list holds; None for a flat list, whose images belong to no text yet."""
    if not isinstance(images, list | tuple) or not any(isinstance(part, list | tuple) for part in images):
        return None
    return [len(part) if isinstance(part, list | tuple) else 1 for part in images]


def _like(images: Any, loaded: Iterator[Image.Image]) -> Any:
    """Put the images back into the nesting of `images`."""
    return [_like(part, loaded) for part in images] if isinstance(images, list | tuple) else next(loaded)


def _add_token(tokenizer: Any, host: Any, state: Any) -> int:
    tokenizer.add_tokens([TOKEN], special_tokens=True)
    token_id: int = tokenizer.convert_tokens_to_ids(TOKEN)
    bound = active_vpp(host).token_id
    if bound not in (None, token_id):
        raise VPPError(
            f"this processor's tokenizer gives {TOKEN} the id {token_id}, but another VPPProcessor has bound the model "
            f"to {bound}: use the processor of the same tokenizer, or detach_vpp and attach anew."
        )
    rows = vocabulary.rows_of(host)
    if token_id >= rows:
        state.host_rows = rows if state.host_rows is None else state.host_rows
        vocabulary.grow(host, token_id + 1)
    return token_id


class Placement:
    """Puts `per_image` placeholders next to each image of a processor's texts.

    There are three kinds of processor. Most write each image's tokens in `replace_image_token`: the run follows them.
    Others leave that to a marker in the text: the run follows the marker. The rest set images before the text
    themselves: the runs begin the text.
    """

    def __init__(self, marker: str, per_image: int) -> None:
        self.marker, self.run = marker, TOKEN * per_image

    def __call__(self, processor: Any, text: Any, sizes: Sequence[int] | None, images: int) -> tuple[Any, Any]:
        """Return the processor to call, and the text or texts to call it with.

        `images` is how many came, and `sizes` how many of them for each text; None is a flat list.
        """
        if not isinstance(text, str | list | tuple | None) or not all(isinstance(one, str) for one in text or ()):
            raise VPPError(f"the text must be a string or a list of strings, but is {text!r}.")
        texts = [text] if isinstance(text, str) else list(text or [])
        if any(TOKEN in one for one in texts):
            raise VPPError(f"the text holds {TOKEN}, which VPPProcessor places itself: leave it out.")
        if self.marker and texts:
            self._check_counts([one.count(self.marker) for one in texts], sizes, images)
        if not images:
            return processor, text
        if _writes_images(processor):
            return _with_run(processor, self.run), text
        if self.marker:
            texts = [one.replace(self.marker, self.marker + self.run) for one in texts]
        elif texts:
            counts = _spread(len(texts), sizes, images)
            space = " " if _is_a(processor, "Kosmos2Processor") else ""  # it sets one before the text
            texts = [self.run * count + space + one for one, count in zip(texts, counts, strict=True)]
        return _keeping_qformer(processor), texts[0] if isinstance(text, str) else texts or None

    def _check_counts(self, found: list[int], sizes: Sequence[int] | None, images: int) -> None:
        if sum(found) != images:
            raise VPPError(
                f"the text has {sum(found)} image placeholders '{self.marker}', but {images} images came: every image "
                "needs one."
            )
        if sizes is not None and list(sizes) != found:
            raise VPPError(
                f"the texts have {found} image placeholders '{self.marker}', but {list(sizes)} images came for them: "
                "give each text a list of its own images."
            )


def _is_a(processor: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(processor).__mro__)


def _writes_images(processor: Any) -> bool:
    from transformers import ProcessorMixin

    if not isinstance(processor, ProcessorMixin) or _is_a(processor, "MllamaProcessor"):
        return False  # Mllama attends to images from its single image token, and heeds no replacement
    return type(processor).replace_image_token is not ProcessorMixin.replace_image_token


def _with_run(processor: Any, run: str) -> Any:
    """Return a shallow copy of the processor that writes `run` after each image: other threads use the original."""

    def replace_image_token(*args: Any, **kwargs: Any) -> str:
        return str(processor.replace_image_token(*args, **kwargs)) + run

    changed = copy.copy(processor)
    changed.replace_image_token = replace_image_token
    return changed


def _keeping_qformer(processor: Any) -> Any:
    """Return the processor; InstructBLIP's as a shallow copy whose Q-Former is asked without placeholders."""
    if not _is_a(processor, "InstructBlipProcessor"):
        return processor

    def qformer_tokenizer(texts: list[str], **kwargs: Any) -> Any:
        return processor.qformer_tokenizer([text.replace(TOKEN, "") for text in texts], **kwargs)

    changed = copy.copy(processor)
    changed.qformer_tokenizer = qformer_tokenizer
    return changed


def _spread(texts: int, sizes: Sequence[int] | None, images: int) -> list[int]:
    """Return how many images each text has where no marker says so."""
    counts = list(sizes) if sizes is not None else [images] if texts == 1 else [1] * texts
    if len(counts) != texts or sum(counts) != images:
        raise VPPError(f"{images} images came for {texts} texts: give each text a list of its own images.")
    return counts


def match_normalisation(vpp: Any, image_processor: Any) -> None:
    """Bring an untrained global prompt to the units of this processor's pixels; it shows the same colours then.

    Raises VPPError for a trained one: it would act differently from what it learned.
    """
    prompt = vpp.global_vpp
    if prompt is None:
        return
    mean, std = normalisation(image_processor)
    if np.allclose([*mean, *std], [*prompt.image_mean, *prompt.image_std], atol=1e-6):
        return
    if vpp.trained:
        raise VPPError(
            f"this processor normalises pixels with mean {mean} and std {std}, but the global prompt was trained with "
            f"{prompt.image_mean} and {prompt.image_std}: use the processor that it was trained with."
        )
    prompt.renormalise_(mean, std)
    vpp.config = replace(vpp.config, global_vpp=replace(vpp.config.global_vpp, image_mean=mean, image_std=std))


def check_units(image_processor: Any, options: Mapping[str, Any], known: Sequence[float]) -> None:
    """Raise VPPError where a call with these options makes pixels in other units than the global prompt's.

    `known` are the `pixel_units` of the settings to which the prompt was brought.
    """
    units = pixel_units(image_processor, options)
    if not np.allclose(units, known, atol=1e-6):
        raise VPPError(
            f"this call normalises pixels by mean {units[1:4]} and std {units[4:]}, times {units[0]:g}, but the global "
            f"prompt counts in mean {tuple(known[1:4])} and std {tuple(known[4:])}, times {known[0]:g}: leave "
            "do_normalize, do_rescale, rescale_factor, image_mean and image_std as the processor had them, or make a "
            "new VPPProcessor."
        )


def pixel_units(image_processor: Any, options: Mapping[str, Any]) -> tuple[float, ...]:
    """Return by what a call with these options multiplies 8-bit pixels, and what `normalisation` says of it."""
    given = {name: value for name, value in options.items() if value is not None}
    values = {**vars(image_processor), **given}
    factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    mean, std = normalisation(image_processor, **given)
    return factor, *mean, *std


def normalisation(image_processor: Any, **options: Any) -> tuple[RGB, RGB]:
    """Return mean and standard deviation of the pixels that an image processor makes, one for each colour.

    `options` are those of a call.
    """
    if not options.get("do_normalize", image_processor.do_normalize):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (options.get(name, vars(image_processor)[name]) for name in ("image_mean", "image_std"))
    # Fuyu has one for all
    return ((mean, mean, mean), (std, std, std)) if isinstance(mean, float) else (tuple(mean), tuple(std))


def hosts_processor(processor: Any) -> Any:
    """Return the host's own processor of a VPPProcessor; any other, or a tokenizer, is returned as it is."""
    return processor.processor if isinstance(processor, VPPProcessor) else processor
