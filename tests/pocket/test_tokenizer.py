import pytest
from transformers import PreTrainedTokenizerFast

from vpp_plugins.pocket.tokenizer import COORDINATES, GROUNDING_QUESTION, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


class TestBoxes:
    @pytest.mark.parametrize("box", ["[0.3, 0.05, 0.47, 1.0]", "[0.0, 0.0, 1.0, 1.0]", "[0.01, 0.1, 0.11, 0.99]"])
    def test_a_box_is_nine_tokens_and_comes_back_exactly(self, tokenizer: PreTrainedTokenizerFast, box: str) -> None:
        ids = tokenizer(box).input_ids

        assert len(ids) == 9
        assert tokenizer.decode(ids) == box

    def test_there_are_101_coordinates_written_as_the_codec_writes_them(self) -> None:
        assert len(COORDINATES) == len(set(COORDINATES)) == 101
        assert all(value == str(round(float(value), 2)) for value in COORDINATES)

    def test_coordinates_have_consecutive_ids(self, tokenizer: PreTrainedTokenizerFast) -> None:
        ids = tokenizer.convert_tokens_to_ids(list(COORDINATES))

        assert ids == list(range(ids[0], ids[0] + 101))

    def test_an_answer_has_the_same_ids_with_and_without_a_blank_before_it(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        assert tokenizer("ASSISTANT: [0.1, 0.2").input_ids == tokenizer("ASSISTANT:[0.1, 0.2").input_ids


class TestWords:
    def test_the_grounding_question_is_one_token(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert len(tokenizer(GROUNDING_QUESTION).input_ids) == 1

    def test_a_noun_of_the_benchmark_is_one_token_per_word(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert len(tokenizer(" the leftmost pipe wrench").input_ids) == 4

    @pytest.mark.parametrize("text", ["a xylophonist's zürich trip", "日本", "it costs 5 $ (or 10.5 %)", "ñ\n\tx"])
    def test_any_text_can_be_written_and_read(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        assert tokenizer.decode(tokenizer(text).input_ids) == text

    def test_case_does_not_matter(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert tokenizer(" The Red Kettle").input_ids == tokenizer(" the red kettle").input_ids

    def test_building_twice_gives_the_same_vocabulary(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


class TestChat:
    def test_a_question_puts_the_image_first(self, tokenizer: PreTrainedTokenizerFast) -> None:
        content = [{"type": "text", "text": "Where?"}, {"type": "image"}]

        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

        assert prompt == "USER: <image>\nWhere? ASSISTANT:"

    def test_an_answer_ends_the_turn(self, tokenizer: PreTrainedTokenizerFast) -> None:
        chat = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "[0.1, 0.2, 0.3, 0.4]"}]

        prompt = tokenizer.apply_chat_template(chat, tokenize=False)

        assert prompt == "USER: Where? ASSISTANT: [0.1, 0.2, 0.3, 0.4]</s>"
