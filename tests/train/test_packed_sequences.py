"""Packed sequences for loops of one's own: labels, positions, who sees whom."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins.pocket import build_pocket
from vpp_plugins.train.packing import IGNORE, Segment, forward_packed, pack

Pocket = tuple[LlavaForConditionalGeneration, LlavaProcessor]
PREFIX = [5, 6, 7]
FIRST, SECOND = Segment((10, 11, 12, 13), 2), Segment((20, 21, 22), 1)


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    """Untrained; images of 64 pixels, so four image tokens."""
    return build_pocket(image_size=64, hidden_size=32, layers=2, heads=2, intermediate_size=48)


def test_labels_are_the_next_ids_of_answers_only() -> None:
    packed = pack(PREFIX, [[FIRST, SECOND]], pad_id=0)

    assert packed.input_ids.tolist() == [[5, 6, 7, 10, 11, 12, 13, 20, 21, 22]]
    none = IGNORE
    assert packed.labels.tolist() == [[none, none, none, none, 12, 13, none, 21, 22, none]]


def test_positions_go_on_from_the_prefix_in_every_segment() -> None:
    packed = pack(PREFIX, [[FIRST, SECOND]], pad_id=0)

    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5]]


def test_a_segment_sees_the_prefix_and_its_own_past() -> None:
    mask = pack(PREFIX, [[FIRST, SECOND], [SECOND]], pad_id=0).mask()

    assert mask.shape == (2, 1, 10, 10)
    assert mask[0, 0, 8].nonzero().flatten().tolist() == [0, 1, 2, 7, 8]
    assert not mask[1, 0, :6, 6:].any()  # nobody sees padding


def test_packed_logits_equal_the_single_turns(pocket: Pocket) -> None:
    """The reason why packing is allowed: each question is answered as if it stood alone."""
    model, processor = pocket
    tokenizer = processor.tokenizer
    pixels = torch.randn(1, 3, 64, 64)
    prefix = tokenizer("USER: " + "<image>" * 4 + "\n").input_ids
    questions = ["Where is the cup? ASSISTANT: [0.1, 0.2, 0.3, 0.4]</s>", "And the red kettle? ASSISTANT: [0.5"]
    segments = [Segment(tuple(tokenizer(text).input_ids), 4) for text in questions]
    packed = pack(prefix, [segments], tokenizer.pad_token_id)

    with torch.no_grad():
        tower = model.model.vision_tower
        image_tokens = model.model.multi_modal_projector(tower.embed(tower.features(pixels)))
        together = model.lm_head(forward_packed(model, packed, image_tokens))[0]
        for number, segment in enumerate(segments, start=1):
            ids = torch.tensor([[*prefix, *segment.ids]])
            alone = model(input_ids=ids, pixel_values=pixels).logits[0, len(prefix) :]
            torch.testing.assert_close(together[packed.segments[0] == number], alone, atol=1e-4, rtol=1e-4)


def test_the_model_itself_takes_packed_sequences(pocket: Pocket) -> None:
    """Stage 2 passes mask and positions through the real forward, which must not add a mask of its own."""
    model, processor = pocket
    pixels = torch.randn(1, 3, 64, 64)
    prefix = processor.tokenizer("USER: " + "<image>" * 4 + "\n").input_ids
    packed = pack(prefix, [[FIRST, SECOND]], processor.tokenizer.pad_token_id)

    with torch.no_grad():
        tower = model.model.vision_tower
        image_tokens = model.model.multi_modal_projector(tower(pixels).last_hidden_state)
        expected = model.lm_head(forward_packed(model, packed, image_tokens))
        found = model(
            input_ids=packed.input_ids,
            attention_mask=packed.mask(),
            position_ids=packed.position_ids,
            pixel_values=pixels,
        ).logits

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
