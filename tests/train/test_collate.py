"""Batches: the answers are labelled, text alone takes part, and what does not fit gives its place to the next."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import FAMILIES, attached_family
from tests.train.runs import samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.attach.attach import host_state
from vpp_plugins.data import open_data
from vpp_plugins.train.collate import ABOUT, ChatWriter, Collator
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.preflight import token_string

pytestmark = pytest.mark.usefixtures("toy")


def collator(family: str, folder: Path, *, max_length: int | None = None, text_only: Any = ()) -> tuple[Any, Collator]:
    path = write_data(folder, samples(6, text_only=text_only))
    data = open_data(path, "neutral", cache=folder)
    model, processor = attached_family(family)
    backbone = host_state(model).backbone
    return model, Collator(
        data, processor, ChatWriter(backbone.box_format), image_token=backbone.image_token, max_length=max_length
    )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_answers_alone_are_labelled(family: str, tmp_path: Path) -> None:
    _, collate = collator(family, tmp_path, text_only=[2])

    batch = collate([collate.data[index] for index in (0, 2, 5)])

    told = [collate.processor.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    answers = [loaded.sample.turns[0].answer for loaded in collate.data]
    assert [text.startswith(answers[index]) for text, index in zip(told, (0, 2, 5), strict=True)] == [True] * 3
    assert batch[ABOUT].ids == ("s0", "s2", "s5")
    assert batch[ABOUT].imaged == tuple(collate.data[n].sample for n in (0, 5))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_text_alone_gives_every_part_a_zero_gradient(family: str, tmp_path: Path) -> None:
    """No process may be without a gradient that another has: they would wait for each other for ever."""
    model, collate = collator(family, tmp_path, text_only=range(6))
    batch = collate([collate.data[0], collate.data[1]])
    batch.pop(ABOUT)
    alone = {name: value[:2] for name, value in batch.items() if name in ("input_ids", "attention_mask", "labels")}

    loss = model(**batch).loss
    loss.backward()

    torch.testing.assert_close(loss, model(**alone).loss, atol=1e-4, rtol=1e-4)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name.startswith("vpp.")}
    assert [name for name, gradient in gradients.items() if gradient is None or gradient.any()] == []


def test_too_long_gives_its_place_to_the_next(tmp_path: Path) -> None:
    _, collate = collator("llava", tmp_path, max_length=20, text_only=[1, 3])

    batch = collate([collate.data[0], collate.data[3]])

    assert batch[ABOUT].ids == ("s1", "s3")
    assert "tokens are more than max_length = 20" in batch[ABOUT].skipped[0]


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    _, collate = collator("llava", tmp_path, max_length=3)
    with pytest.raises(VPPError, match="longer than max_length = 3"):
        collate([collate.data[0]])


def test_the_token_string_counts_runs_and_marks_answers(tmp_path: Path) -> None:
    _, collate = collator("qwen2_5_vl", tmp_path)
    batch = collate([collate.data[0]])

    pieces = token_string(batch["input_ids"][0], batch["labels"][0], collate.processor.tokenizer)

    said = "".join(text for text, _ in pieces)
    assert "<|vpp|> x 4" in said
    assert "<|image_pad|> x " in said
    learned = [text for text, answer in pieces if answer]
    assert len(learned) == 1
    assert learned[0].startswith(collate.data[0].sample.turns[0].answer)
    run = torch.tensor([5, 5, 5, 5, 6])
    pieces = token_string(run, torch.tensor([5, 5, 5, 5, -100]), collate.processor.tokenizer)
    assert [answer for _, answer in pieces] == [True, False]  # a learned run was shown as if it were not
