"""Where the placeholders go: a run of `<|vpp|>` right after each image, however the host's processor writes images."""

import copy
from collections.abc import Sequence
from typing import Any

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import TOKEN

IMAGES_FIRST = frozenset(
    "BlipProcessor Blip2Processor Florence2Processor FuyuProcessor GitProcessor IdeficsProcessor InstructBlipProcessor "
    "Kosmos2Processor Kosmos2_5Processor PaliGemmaProcessor".split()
)
"""transformers' processors that set a text's images before it themselves: their texts need no marker."""


def image_marker(processor: Any, image_token: str | None) -> str:
    """Return what stands for one image in the processor's texts, or "" where it sets images before the text itself.

    `image_token` is the adapter's word on it; None leaves it to the processor.
    """
    if image_token is not None:
        return image_token
    if _is_one_of(processor, IMAGES_FIRST):
        return ""
    if vars(processor).get("image_token") is None:
        raise VPPError(
            f"{type(processor).__name__} does not say what stands for an image in its texts: name it in the adapter, "
            'Backbone(image_token="<image>"), or "" where it sets images before the text.'
        )
    return str(processor.image_token)


def check_marker(processor: Any, marker: str) -> None:
    """Raise VPPError where the processor's tokenizer does not know the host's image token."""
    if not marker or marker in processor.tokenizer.get_vocab():
        return
    # some processors turn the marker into tokens of another name
    if vars(processor).get("image_token_id") not in processor.tokenizer.get_added_vocab().values():
        raise VPPError(
            f"the processor's tokenizer does not know the image token '{marker}': load the processor that belongs to "
            "the model."
        )


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
            space = " " if _is_one_of(processor, frozenset(["Kosmos2Processor"])) else ""  # it sets one before the text
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


def _is_one_of(processor: Any, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(processor).__mro__)


def _writes_images(processor: Any) -> bool:
    from transformers import ProcessorMixin

    if not isinstance(processor, ProcessorMixin) or _is_one_of(processor, frozenset(["MllamaProcessor"])):
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
    if not _is_one_of(processor, frozenset(["InstructBlipProcessor"])):
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
