"""VPP-LLaVA's text against the recorded strings and ids of its own code."""

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from tests.reference import FOLDER, reference
from vpp_adapters.vpp_llava.vicuna import AXIS_SENTENCE, IMAGE, VICUNA_V1, vicuna_tokenizer, with_axis_sentence
from vpp_plugins.boxes import codec

CHECKPOINT = FOLDER / "checkpoint"
TRAIN, EVALUATE = reference("text")["train"], reference("text")["eval"]
ROLES = {"human": "user", "gpt": "assistant"}
REFERENCE_IMAGE = -200
USER = {"role": "user", "content": "Where?"}
ANSWER = {"role": "assistant", "content": "There."}

every_sample = pytest.mark.parametrize("sample", TRAIN, ids=lambda sample: sample["sample"]["id"])
both_kinds = pytest.mark.parametrize("legacy", [False, True], ids=["today's", "legacy"])


def chat_of(sample: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in sample["sample"]["conversations"]]


def in_parts(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same chat with contents as transformers' processors take them: a list of texts and images."""
    parts = []
    for message in chat:
        text = {"type": "text", "text": message["content"].replace(IMAGE, "")}
        parts.append({**message, "content": [text, *[{"type": "image"}] * message["content"].count(IMAGE)]})
    return parts


def reference_ids(tokenizer: Any, text: str) -> list[int]:
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return [REFERENCE_IMAGE if token == image else token for token in tokenizer(text)["input_ids"]]


@every_sample
@pytest.mark.parametrize("form", [list, in_parts], ids=["strings", "parts"])
def test_training_prompts_are_the_references(sample: dict[str, Any], form: Any) -> None:
    tokenizer = vicuna_tokenizer(CHECKPOINT)

    text = tokenizer.apply_chat_template(with_axis_sentence(form(chat_of(sample))), tokenize=False)

    if sample["prompt"] is None:  # not recorded for the sample without an image; its ids are
        assert reference_ids(tokenizer, text) == sample["input_ids"]
    else:
        assert text == sample["prompt"]


@pytest.mark.parametrize("question", EVALUATE, ids=lambda question: question["question"]["sent"])
@pytest.mark.parametrize("order", [1, -1], ids=["image first", "text first"])
def test_evaluation_prompts_are_the_references(question: dict[str, Any], order: int) -> None:
    asked = codec("vpp-llava").prompt(question["question"]["sent"])
    content = [{"type": "image"}, {"type": "text", "text": asked}][::order]

    text = vicuna_tokenizer(CHECKPOINT).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )

    assert text == question["prompt"]


@both_kinds
@pytest.mark.parametrize("saved", [False, True], ids=["made", "saved and loaded"])
def test_ids_are_the_references(tmp_path: Path, legacy: bool, saved: bool) -> None:
    tokenizer: Any = vicuna_tokenizer(CHECKPOINT, legacy=legacy)
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    for recorded in [*TRAIN, *EVALUATE]:
        expected = recorded["input_ids_legacy" if legacy else "input_ids"]
        if recorded["prompt"] is not None:
            assert reference_ids(tokenizer, recorded["prompt"]) == expected


def test_the_kind_of_tokenizer_is_the_folders_own(tmp_path: Path) -> None:
    """A folder that does not say had the old kind: transformers 4 took it so."""
    (tmp_path / "tokenizer.model").write_bytes((CHECKPOINT / "tokenizer.model").read_bytes())
    turns = TRAIN[1]

    said, unsaid = vicuna_tokenizer(CHECKPOINT), vicuna_tokenizer(tmp_path)

    assert reference_ids(said, turns["prompt"]) == turns["input_ids"]
    assert reference_ids(unsaid, turns["prompt"]) == turns["input_ids_legacy"]
    assert turns["input_ids"] != turns["input_ids_legacy"]


def test_decoding_gives_the_answer_back() -> None:
    tokenizer = vicuna_tokenizer(CHECKPOINT)
    ids = tokenizer(" [0.12, 0.25, 0.58, 0.81]", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True).strip() == (
        "[0.12, 0.25, 0.58, 0.81]"
    )


class TestTheAxisSentence:
    """Where the reference appends it: to the first message, if that is the user's."""

    def test_ends_the_first_question_only(self) -> None:
        chat = with_axis_sentence([USER, ANSWER, USER, ANSWER])
        assert [message["content"] for message in chat] == ["Where?" + AXIS_SENTENCE, "There.", "Where?", "There."]

    def test_follows_a_system_message(self) -> None:
        chat = with_axis_sentence([{"role": "system", "content": "Be brief."}, USER])
        assert [message["content"] for message in chat] == ["Be brief.", "Where?" + AXIS_SENTENCE]

    def test_is_left_out_where_the_assistant_begins(self) -> None:
        assert with_axis_sentence([ANSWER, USER]) == [ANSWER, USER]

    def test_leaves_the_given_chat_alone(self) -> None:
        chat = in_parts([{"role": "user", "content": f"Where?\n{IMAGE}"}])
        before = repr(chat)
        with_axis_sentence(chat)
        assert repr(chat) == before

    def test_is_that_of_the_evaluation(self) -> None:
        assert codec("vpp-llava").prompt("x").endswith("x." + AXIS_SENTENCE)


class TestTheTemplate:
    def test_takes_another_system_message_or_none(self) -> None:
        tokenizer = vicuna_tokenizer(CHECKPOINT)
        for words, begins in (("Be brief.", "Be brief. USER: Where? "), ("", "USER: Where? ")):
            chat = [{"role": "system", "content": words}, USER]
            assert tokenizer.apply_chat_template(chat, tokenize=False) == begins

    def test_sets_several_images_first(self) -> None:
        chat = in_parts([{"role": "user", "content": f"Both {IMAGE} of {IMAGE} them"}])
        text = vicuna_tokenizer(CHECKPOINT).apply_chat_template(chat, tokenize=False)
        assert text.endswith(f"USER: {IMAGE}\n{IMAGE}\nBoth  of  them ")

    def test_refuses_two_questions_in_a_row(self) -> None:
        with pytest.raises(TemplateError, match="take turns"):
            vicuna_tokenizer(CHECKPOINT).apply_chat_template([USER, USER], tokenize=False)

    def test_asks_for_an_answer(self) -> None:
        text = vicuna_tokenizer(CHECKPOINT).apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
        assert text.endswith(" USER: Where? ASSISTANT:")
        assert "generation" in VICUNA_V1
