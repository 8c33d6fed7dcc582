"""Turns apart: a turn among others is what it is alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.families import FAMILIES
from vpp_plugins.attach.attach import attach_vpp
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.data import LoadedSample, TrainingData
from vpp_plugins.data.sample import Describe, Locate, Sample, Talk, Tally, Turn
from vpp_plugins.errors import VPPError
from vpp_plugins.pocket import build_pocket
from vpp_plugins.processor.processor import VPPProcessor
from vpp_plugins.train.collate import ABOUT, ChatWriter, Collator, real_tokens
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.packing import PADDING, PackingCollator, check_packing, packed_mask
from vpp_plugins.train.preflight import preview

SIDE = 64
BOX = (4.0, 8.0, 30.0, 60.0)
TURNS: tuple[Turn, ...] = (
    Locate("the red cup", (BOX,)),
    Describe((BOX,), "cup"),
    Talk("is it big", "yes"),
    Locate("the dog on the left of the cup", (BOX,)),
)


class Images(TrainingData):
    has_images = True

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples, self.tally = samples, Tally()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> LoadedSample:
        sample = self.samples[index]
        noise = torch.randint(0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(index))
        image = Image.fromarray(noise.to(torch.uint8).numpy()) if sample.image else None
        return LoadedSample(index, sample, image)

    def fingerprint(self) -> str:
        return ""


def sample(turns: tuple[Turn, ...], number: int = 0) -> Sample:
    return Sample(f"s{number}", f"{number}.png", SIDE, SIDE, turns)


@pytest.fixture(scope="module")
def pocket() -> tuple[Any, VPPProcessor]:
    """A small pocket model with both prompts."""
    model, processor = build_pocket(image_size=SIDE, hidden_size=32, layers=2, intermediate_size=48)
    detector = {"backbone": "efficientnet_lite0", "width": 32, "heads": 2, "feedforward": 32, "dropout": 0.0}
    local = LocalVPPConfig(
        num_queries=3,
        image_size=SIDE,
        projector_size=16,
        generator_options={**detector, "encoder_layers": 1, "decoder_layers": 1},
    )
    attach_vpp(model, VPPConfig(global_vpp=GlobalVPPConfig(size=SIDE, border=6), local_vpp=local))
    wrapped = VPPProcessor(processor, model)
    model.vpp.trained = True
    return model.eval(), wrapped


def collator(
    processor: VPPProcessor, samples: Sequence[Sample], kind: type[Collator] = PackingCollator, **options: Any
) -> Any:
    return kind(Images(samples), processor, ChatWriter("llava"), image_token="<image>", **options)


def batch_of(collate: Any, *indices: int) -> dict[str, Any]:
    batch: dict[str, Any] = collate([collate.data[index] for index in indices])
    return batch


def answers(model: Any, batch: dict[str, Any], row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A row's learned tokens, and the logits that they are learned from."""
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name not in (ABOUT, "labels")}).logits
    learned = batch["labels"][row, 1:] != IGNORED
    return batch["labels"][row, 1:][learned], logits[row, :-1][learned]


def test_every_turn_is_what_it_is_alone(pocket: tuple[Any, VPPProcessor]) -> None:
    model, processor = pocket
    together = batch_of(collator(processor, [sample(TURNS[:2]), sample(TURNS, 1)]), 0, 1)
    found_ids, found = answers(model, together, 1)

    alone = [
        answers(model, batch_of(collator(processor, [sample((), 0), sample((turn,), 1)], Collator), 1), 0)
        for turn in TURNS
    ]

    assert torch.equal(found_ids, torch.cat([ids for ids, _ in alone]))
    torch.testing.assert_close(found, torch.cat([logits for _, logits in alone]), atol=1e-5, rtol=1e-4)


def test_words_that_questions_begin_with_are_there_once(pocket: tuple[Any, VPPProcessor]) -> None:
    """Of questions that are alike to the end, each keeps a token of its own, from which its answer follows."""
    model, processor = pocket
    turns = (TURNS[0], TURNS[1], TURNS[0], TURNS[3])
    together = batch_of(collator(processor, [sample(turns)]), 0)
    found_ids, found = answers(model, together, 0)

    alone = [batch_of(collator(processor, [sample((turn,))]), 0) for turn in turns]
    answered = [answers(model, batch, 0) for batch in alone]

    image = (alone[0]["input_ids"] == model.config.image_token_id).sum()
    whole = sum(batch["input_ids"].shape[1] - image for batch in alone)
    assert together["input_ids"].shape[1] - image < whole - 2 * len("Please provide the bounding box".split())
    assert torch.equal(found_ids, torch.cat([ids for ids, _ in answered]))
    torch.testing.assert_close(found, torch.cat([logits for _, logits in answered]), atol=1e-5, rtol=1e-4)
    assert preview(collator(processor, [sample(turns)]), 0).plain.count("Please provide the bounding box") == 3


def test_with_one_turn_each_the_batch_is_the_ordinary_one(pocket: tuple[Any, VPPProcessor]) -> None:
    _, processor = pocket
    samples = [sample(TURNS[:1]), sample(TURNS[3:], 1)]

    apart, plain = batch_of(collator(processor, samples), 0, 1), batch_of(collator(processor, samples, Collator), 0, 1)

    assert torch.equal(apart["input_ids"], plain["input_ids"])
    assert torch.equal(apart["labels"], plain["labels"])
    assert torch.equal(real_tokens(apart["attention_mask"]), plain["attention_mask"].bool())


def test_what_is_learned_is_every_answer(pocket: tuple[Any, VPPProcessor]) -> None:
    _, processor = pocket
    batch = batch_of(collator(processor, [sample(TURNS)]), 0)

    learned = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORED])

    assert [word in learned for word in ("cup</s>", "yes</s>")] == [True, True]
    assert learned.count("</s>") == len(TURNS)


def test_a_text_alone_keeps_its_first_turn(pocket: tuple[Any, VPPProcessor]) -> None:
    model, processor = pocket
    text = replace(sample((Talk("is it red", "yes"), Talk("is it big", "no"))), image="")

    batch = batch_of(collator(processor, [text]), 0)

    assert "no" not in processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORED])
    assert len(batch["input_ids"]) == 2  # the grey image is there
    assert answers(model, batch, 0)[1].isfinite().all()


def test_hosts_that_would_take_the_mask_for_something_else_are_refused() -> None:
    """Eager attention adds the mask to its scores, so that every token would see every other."""
    llava = FAMILIES["llava"].model()
    check_packing(llava)
    llava.set_attn_implementation("eager")
    with pytest.raises(VPPError, match="the host's is 'eager': set attn_implementation"):
        check_packing(llava)
    with pytest.raises(VPPError, match="a 'qwen2_5_vl' has several"):
        check_packing(FAMILIES["qwen2_5_vl"].model())


def test_nobody_sees_padding_and_no_row_is_blind() -> None:
    sees = packed_mask(torch.tensor([[0, 0, 1, 2, 2, PADDING]]))[0, 0]

    assert sees.any(-1).all()
    assert sees[3].tolist() == [True, True, False, True, False, False]
    assert not sees[:, 5].any()


def test_long_dialogues_are_skipped(pocket: tuple[Any, VPPProcessor]) -> None:
    _, processor = pocket
    batch = batch_of(collator(processor, [sample(TURNS), sample(TURNS[:1], 1)], max_length=45), 0)

    assert batch[ABOUT].ids == ("s1",)
    assert "max_length" in batch[ABOUT].skipped[0]


def test_a_box_outside_gives_its_place_to_the_next_sample(pocket: tuple[Any, VPPProcessor]) -> None:
    _, processor = pocket
    wrong = sample((TURNS[0], Locate("it", ((100.0, 100.0, 200.0, 200.0),))))

    batch = batch_of(collator(processor, [wrong, sample(TURNS[:1], 1)]), 0)

    assert batch[ABOUT].ids == ("s1",)
    with pytest.raises(VPPError):
        collator(processor, [wrong]).row(Images([wrong])[0])


@pytest.mark.parametrize("kind", [Collator, PackingCollator])
def test_only_the_first_turns_are_asked_but_all_are_told_of(
    pocket: tuple[Any, VPPProcessor], kind: type[Collator]
) -> None:
    _, processor = pocket
    expected = batch_of(collator(processor, [sample(TURNS[:2])], kind), 0)

    found = batch_of(collator(processor, [sample(TURNS)], kind, max_turns=2), 0)

    for name in ("input_ids", "labels"):
        assert torch.equal(found[name], expected[name])
    assert found[ABOUT].imaged[0].turns == TURNS  # for what learns from descriptions and boxes
