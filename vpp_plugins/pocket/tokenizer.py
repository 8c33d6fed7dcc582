"""The pocket model's tokenizer: byte-level BPE over a small vocabulary, with every coordinate as one token.

Single-token coordinates make a box ten tokens long and let a tiny model learn each of the 101 values by itself.
"""

import json
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
END_TOKEN = "</s>"
PAD_TOKEN = "<pad>"
GROUNDING_QUESTION = "Please provide the bounding box coordinate of the region this sentence describes:"
AXES_SENTENCE = (
    " Each image is accompanied by axes. If the question pertains to the bounding box coordinates, refer to the axes "
    "for the response."
)
REGION_QUESTION = "Please provide a short description for this region:"
COORDINATES = tuple(str(round(step / 100, 2)) for step in range(101))
"""The 101 values a LLaVA box is written with: two decimals, trailing zeros dropped, so "0.1" and not "0.10"."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_TEMPLATE_WORDS = (
    "the left {} the right {} leftmost {} rightmost {} {} on the left {} on the right {} farthest to the left "
    "{} farthest to the right top {} bottom {} upper {} lower {} topmost {} bottommost {} highest {} lowest {} "
    "{} at the top {} at the bottom smaller {} small {} smallest {} "
    "bigger {} larger {} big {} biggest {} large {} largest {} "
    "the second {} from the left the third {} from the right the second {} from the top the third {} from the bottom "
    "the {} in the middle the {} to the left of the {} the {} to the right of the {} "
    "the {} left of the {} the {} right of the {} "
    "the {} above the {} the {} below the {} the {} closest to the {} the {} nearest to the {} the {} next to the {} "
    "the {} farthest from the {} a {} an {} the object the biggest object"
)
_COLOURS = "red green blue yellow white black brown grey orange pink purple golden"


def build_tokenizer(words: Iterable[str] | None = None, vocab_size: int = 1600) -> "PreTrainedTokenizerFast":
    """Train the tokenizer on nouns and expression templates.

    `words` defaults to the scene benchmark's nouns and attributes. Text is lower-cased and falls back to bytes, so any
    text can be written. `vocab_size` counts the BPE pieces only.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    nouns = benchmark_words() if words is None else tuple(words)
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=[PAD_TOKEN, END_TOKEN, IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(nouns), trainer)
    phrases = (GROUNDING_QUESTION, AXES_SENTENCE, REGION_QUESTION, "USER:", "ASSISTANT:", ", ", "]", *COORDINATES)
    # lstrip: "ASSISTANT: [0.1" and "ASSISTANT:[0.1" must give the same ids, for answers begin right after the colon
    backend.add_tokens([AddedToken("[", lstrip=True, normalized=False)])
    backend.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def benchmark_words() -> tuple[str, ...]:
    """Return the scene benchmark's nouns and attributes, sorted."""
    listing = resources.files("vpp_plugins.data.scenes") / "tuxpaint_photo_objects.json"
    objects = json.loads(listing.read_text(encoding="utf-8"))
    return tuple(sorted({word for entry in objects for word in (entry["name"], entry["attr"]) if word}))


def _corpus(words: Iterable[str]) -> Iterable[str]:
    for word in words:
        for _ in range(20):
            yield f" {word}"
    for _ in range(50):
        yield " " + _TEMPLATE_WORDS.replace("{}", "")
        yield " " + _COLOURS
