"""Labels of chats: the answers and nothing else, on the reference's own text and on every kind of template."""

import random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.adapters.test_vicuna import CHECKPOINT, REFERENCE_IMAGE, chat_of
from tests.reference import reference
from tests.tiny import attached, image, tiny_config
from vpp_adapters.vpp_llava.vicuna import IMAGE, VICUNA_V1, vicuna_tokenizer, with_axis_sentence
from vpp_plugins import VPPError
from vpp_plugins.train.labels import IGNORED, NoAnswerError, RenderedChat, label_answers, render_chat

MARKED = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""ChatML in little, with marks around what is learned."""
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
FORGETFUL = UNMARKED.replace(
    "message['content'] + '<|end|>' }}{% else", "(message['content'] if loop.last else '...') }}{% else"
)
"""A template that writes earlier answers otherwise than the last, as those do that drop thoughts."""
SPECIAL = ["<|user|>", "<|assistant|>", "<|end|>", IMAGE, "<|vpp|>"]
CHAT = [
    {"role": "user", "content": f"{IMAGE}where is the cup"},
    {"role": "assistant", "content": "at the left"},
    {"role": "user", "content": f"and in{IMAGE} this"},
    {"role": "assistant", "content": "the cup is not there"},
]


def toy_tokenizer(template: str = MARKED) -> PreTrainedTokenizerFast:
    """Characters as tokens: every boundary counts."""
    letters = [chr(code) for code in range(32, 127)] + ["\n", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=template)
    fast.add_tokens(SPECIAL, special_tokens=True)
    return fast


def expanded(tokenizer: Any, text: str, runs: list[int], *, inside: str = IMAGE) -> Tensor:
    """Ids of the text with each image marker replaced by a run of ids, as processors do."""
    pieces = text.split(IMAGE)
    longer = pieces[0] + "".join(
        (IMAGE + inside * run + "<|vpp|>" * 3) + piece for run, piece in zip(runs, pieces[1:], strict=True)
    )
    return torch.tensor(tokenizer(longer)["input_ids"])


def learned_text(tokenizer: Any, labels: Tensor) -> str:
    return tokenizer.decode(labels[labels != IGNORED])


@pytest.mark.parametrize("sample", reference("text")["train"], ids=lambda sample: sample["sample"]["id"])
@pytest.mark.parametrize("legacy", [False, True], ids=["today's", "legacy"])
def test_labels_are_the_references(sample: dict[str, Any], legacy: bool) -> None:
    tokenizer = vicuna_tokenizer(CHECKPOINT, legacy=legacy)
    chat = render_chat(tokenizer, with_axis_sentence(chat_of(sample)))
    ids = torch.tensor(tokenizer(chat.text)["input_ids"])

    found = label_answers(ids, chat, tokenizer, image_token=IMAGE)

    kind = "_legacy" if legacy else ""
    ids[ids == tokenizer.convert_tokens_to_ids(IMAGE)] = REFERENCE_IMAGE
    assert ids.tolist() == sample["input_ids" + kind]
    assert found.labels.tolist() == sample["labels" + kind]
    assert not found.truncated
    assert found.learned == sum(label != IGNORED for label in sample["labels" + kind])


@pytest.mark.parametrize("template", [MARKED, UNMARKED], ids=["marked", "unmarked"])
def test_answers_are_learned_and_nothing_else(template: str) -> None:
    tokenizer = toy_tokenizer(template)
    chat = render_chat(tokenizer, CHAT)
    ids = expanded(tokenizer, chat.text, [5, 2])

    found = label_answers(ids, chat, tokenizer, image_token=IMAGE)

    assert learned_text(tokenizer, found.labels) == "at the left<|end|>the cup is not there<|end|>"
    learned = found.labels != IGNORED
    assert torch.equal(found.labels[learned], ids[learned])
    assert not torch.isin(found.labels, torch.tensor(tokenizer.convert_tokens_to_ids([IMAGE, "<|vpp|>"]))).any()


def test_marks_and_prefixes_agree() -> None:
    """The fallback finds what the marks say."""
    rng = random.Random(0)
    for _ in range(50):
        turns = rng.randint(1, 4)
        words = ["".join(rng.choices("ab \n", k=rng.randint(1, 6))) + "x" for _ in range(2 * turns)]
        chat = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(words)]
        assert render_chat(toy_tokenizer(MARKED), chat) == render_chat(toy_tokenizer(UNMARKED), chat)


@pytest.mark.parametrize("runs", [[1, 1], [7, 3], [40, 0]])
@pytest.mark.parametrize("inside", [IMAGE, "\n", "and in"], ids=["markers", "newlines", "the text's own words"])
def test_runs_of_any_kind_are_stepped_over(runs: list[int], inside: str) -> None:
    tokenizer = toy_tokenizer()
    chat = render_chat(tokenizer, CHAT)

    found = label_answers(expanded(tokenizer, chat.text, runs, inside=inside), chat, tokenizer, image_token=IMAGE)

    assert learned_text(tokenizer, found.labels) == "at the left<|end|>the cup is not there<|end|>"


def test_every_truncation_is_noticed() -> None:
    tokenizer = toy_tokenizer()
    chat = render_chat(tokenizer, CHAT[:2])
    ids = expanded(tokenizer, chat.text, [4])
    whole = label_answers(ids, chat, tokenizer, image_token=IMAGE)
    first = int(torch.nonzero(whole.labels != IGNORED)[0])

    for length in range(first + 1, len(ids)):
        found = label_answers(ids[:length], chat, tokenizer, image_token=IMAGE)
        assert found.truncated
        assert torch.equal(found.labels, whole.labels[:length])
    assert not whole.truncated
    with pytest.raises(NoAnswerError, match="cut off before the first answer"):
        label_answers(ids[: first - 1], chat, tokenizer, image_token=IMAGE)


def test_a_chat_without_an_answer_is_an_error() -> None:
    tokenizer = toy_tokenizer()
    chat = render_chat(tokenizer, [{"role": "user", "content": "where"}])

    with pytest.raises(NoAnswerError, match="it has no answer"):
        label_answers(torch.tensor(tokenizer(chat.text)["input_ids"]), chat, tokenizer)


def test_ids_of_another_chat_are_refused() -> None:
    tokenizer = toy_tokenizer()
    chat = render_chat(tokenizer, CHAT)
    other = render_chat(tokenizer, [*CHAT[:3], {"role": "assistant", "content": "behind it"}])

    with pytest.raises(VPPError, match="not in input_ids"):
        label_answers(expanded(tokenizer, other.text, [2, 2]), chat, tokenizer, image_token=IMAGE)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(VPPError, match="generation"):
        render_chat(toy_tokenizer(FORGETFUL), CHAT)


def test_the_next_turns_first_token_is_not_learned() -> None:
    """sentencepiece joins a blank at an answer's end to the next word; its last character is not the answer's."""
    tokenizer = vicuna_tokenizer(CHECKPOINT)
    text = "ASSISTANT: of the cup the"
    start, end = text.index(" of"), text.rindex("the")
    assert tokenizer.tokenize(text)[-1] == "▁the"

    found = label_answers(torch.tensor(tokenizer(text)["input_ids"]), RenderedChat(text, ((start, end),)), tokenizer)

    assert learned_text(tokenizer, found.labels) == "of the cup"


def test_a_vppprocessors_inputs_are_labelled() -> None:
    """The whole way: a chat with two images through an attached LLaVA's processor."""
    model, processor = attached(config=tiny_config())
    processor.processor.chat_template = VICUNA_V1
    chat = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "where is the cup"}],
        },
        {"role": "assistant", "content": "the red cup"},
    ]
    rendered = render_chat(processor, chat)

    inputs = processor(images=[image(0), image(1)], text=rendered.text, return_tensors="pt")
    found = label_answers(inputs["input_ids"][0], rendered, processor.tokenizer, image_token=IMAGE)

    assert learned_text(processor.tokenizer, found.labels) == "the red cup </s>"
    outputs = model(**inputs, labels=found.labels[None])
    assert torch.isfinite(outputs.loss)
