"""A model's own plain answers, as data to mix in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins import Grounder, VPPError
from vpp_plugins.data import Talk, open_data
from vpp_plugins.pocket import build_pocket
from vpp_plugins.train import plain_questions, read_questions, write_chats
from vpp_plugins.train.self_distillation import whole_sentences

Pocket = tuple[LlavaForConditionalGeneration, LlavaProcessor]


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    """Untrained, so that it says anything."""
    return build_pocket(image_size=64, hidden_size=32, layers=1, heads=2, intermediate_size=32)


def saying(pocket: Pocket, monkeypatch: pytest.MonkeyPatch, *answers: str) -> tuple[Grounder, dict[str, Any]]:
    """Have the model say these, one after the other; one without </s> at its end is cut off.

    Returned with it is how it was asked to generate.
    """
    model, processor = pocket
    settings: dict[str, Any] = {}
    rows = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    longest = max(map(len, rows))
    told = torch.tensor([row + [processor.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])

    def generate(input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        settings.update(given)
        return torch.cat([input_ids, told[: len(input_ids)]], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    return Grounder(model, processor), settings


def test_no_question_comes_twice_and_a_seed_gives_the_same() -> None:
    every = plain_questions(800)

    assert len(set(every)) == 800
    assert plain_questions(5, seed=1) == plain_questions(5, seed=1) != plain_questions(5, seed=2)
    with pytest.raises(VPPError, match="there are 800 questions, but 801 were asked for: bring more in a file"):
        plain_questions(801)


def test_answers_are_samples_to_mix_in(pocket: Pocket, tmp_path: Path) -> None:
    questions = plain_questions(20)
    before = torch.random.get_rng_state()
    grounder = Grounder(*pocket)
    for name, seed in (("one", 0), ("again", 0), ("another", 1)):
        write_chats(tmp_path / name, grounder, questions, longest=40, seed=seed)

    data = open_data(tmp_path / "one", "neutral", cache=tmp_path)
    turns = [loaded.sample.turns for loaded in data]
    assert len(data) == len((tmp_path / "one").read_text().splitlines()) > 0
    assert all(isinstance(turn, Talk) and turn.question in questions and turn.answer for (turn,) in turns)
    assert not any(loaded.sample.image for loaded in data)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "another").read_bytes()
    assert torch.equal(before, torch.random.get_rng_state())


def test_of_what_is_cut_off_whole_sentences_are_kept(
    pocket: Pocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grounder, settings = saying(pocket, monkeypatch, "a cup. it is 0.5 of a jug and", "red</s>", "a thing of")

    assert write_chats(tmp_path / "chats.jsonl", grounder, ["What?", "Which?", "Why?"], longest=9) == 2
    assert settings["max_new_tokens"] == 9
    assert settings["do_sample"]
    assert (settings["temperature"], settings["top_k"], settings["top_p"]) == (1.0, 0, 1.0)
    rows = [json.loads(line)["turns"][0] for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [(row["ask"], row["answer"]) for row in rows] == [("What?", "a cup."), ("Which?", "red")]


def test_without_a_whole_sentence_nothing_is_written(
    pocket: Pocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grounder, _ = saying(pocket, monkeypatch, "a thing of")

    with pytest.raises(VPPError, match="none of the model's 1 answers is a whole sentence of 64 tokens at most"):
        write_chats(tmp_path / "chats.jsonl", grounder, ["What?"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1. Apple\n2. Pear.\n3. Ban", "1. Apple\n2. Pear."),
        ("1. Apple\n2. Ban", ""),
        ('She said "Go." He', 'She said "Go."'),
        ("**Done.** and", "**Done.**"),
        ("It is 0.5 m. So", "It is 0.5 m."),
        ("\u4f60\u597d\u3002\u6211\u662f", "\u4f60\u597d\u3002"),
    ],
)
def test_where_sentences_end(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept


def test_questions_are_lines_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "asked.txt"
    file.write_bytes("\ufeffWhat is a cup?\r\n\n  Why?\n".encode())
    assert read_questions(file) == ["What is a cup?", "Why?"]

    file.write_bytes("Wo ist der K\u00e4se?".encode("latin-1"))
    with pytest.raises(VPPError, match=r"asked\.txt' cannot be read as a text in UTF-8 .*: name another file"):
        read_questions(file)
    file.write_text("\n \n")
    with pytest.raises(VPPError, match=r"asked\.txt' holds no question: write one on each line"):
        read_questions(file)
