"""What a host's processor says of itself: whether it can be this host's, and what marks an image."""

from typing import Any

from vpp_plugins.attach import vocabulary
from vpp_plugins.errors import VPPError, named_extras
from vpp_plugins.prompts import TOKEN

IMAGES_FIRST = frozenset(
    "BlipProcessor Blip2Processor Florence2Processor FuyuProcessor GitProcessor IdeficsProcessor InstructBlipProcessor "
    "Kosmos2Processor Kosmos2_5Processor PaliGemmaProcessor".split()
)
"""transformers' processors that set a text's images before it themselves: their texts need no marker."""


def check_processor(processor: Any) -> None:
    """Raise VPPError for a part of a processor, or for none."""
    with named_extras():
        from transformers import ImageProcessingMixin, PreTrainedTokenizerBase

    if processor is None or isinstance(processor, ImageProcessingMixin | PreTrainedTokenizerBase):
        raise VPPError(
            f"the host's whole processor is needed, tokenizer and image processor in one, but a "
            f"{type(processor).__name__} came: load it with AutoProcessor.from_pretrained(...)."
        )


def check_pair(processor: Any, host: Any) -> None:
    """Raise VPPError where a processor is certainly another model's.

    That is: its tokenizer has ids for which the host embeds nothing, or no image token at the id where the host expects
    its images. What cannot be told passes, as do processors and hosts that are not transformers' own.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    tokenizer = vars(processor).get("tokenizer")
    theirs = isinstance(processor, ProcessorMixin) and isinstance(host, PreTrainedModel)
    if not theirs or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    pair = f"{type(processor).__name__} is not the processor of this {type(host).__name__}"
    rows, ids = vocabulary.rows_of(host), {word: i for word, i in tokenizer.get_vocab().items() if word != TOKEN}
    word = max(ids, key=lambda name: ids[name], default=None)
    if word is not None and ids[word] >= rows:
        raise VPPError(
            f"{pair}: its tokenizer has '{word}' at {ids[word]}, but the model embeds {rows} ids; load the processor "
            "of the model's own checkpoint, or after adding tokens call model.resize_token_embeddings(len(tokenizer))."
        )
    expected = vocabulary.image_token_id(host)
    # some processors name the marker in texts, which is not what they write for an image: Gemma 3, Llama 4
    own = {vars(processor).get("image_token_id"), *tokenizer.get_added_vocab().values()}
    if isinstance(expected, int) and expected not in own:
        raise VPPError(
            f"{pair}: the model expects images at token id {expected}, which is "
            f"{tokenizer.convert_ids_to_tokens(expected)!r} to its tokenizer, and no image token; load the processor "
            "of the model's own checkpoint."
        )


def image_marker(processor: Any, image_token: str | None) -> str:
    """Return what stands for one image in the processor's texts, or "" where it sets images before the text itself.

    `image_token` is the adapter's word on it; None leaves it to the processor.
    """
    if image_token is not None:
        return image_token
    if IMAGES_FIRST & {kind.__name__ for kind in type(processor).__mro__}:
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
