from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import attached, image, toy_config
from vpp_plugins import Grounder
from vpp_plugins.evaluate.attention import CHOSEN, QUERY, Attention, attend
from vpp_plugins.plugins import BoxedQueries

pytestmark = pytest.mark.usefixtures("toy")
WIDE = Image.new("RGB", (200, 100), "white")
"""Its padded square begins 50 pixels above it."""


def quarters(queries: Tensor) -> Tensor:
    """Where the toy's four queries look; the last is none and looks nowhere."""
    boxes = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0, 0, 0, 0]]
    return torch.tensor(boxes, dtype=torch.float32).expand(len(queries), -1, -1)


def scores(queries: Tensor) -> Tensor:
    return torch.tensor([[0.9, 0.1], [0.1, 0.2], [0.0, 0.4], [0.0, 0.0]]).expand(len(queries), -1, -1)


def asker(*, boxes: bool = True, numbers: bool = True, **changes: Any) -> Grounder:
    """A random host that answers by two words and two numbers in some order, or by two words."""
    model, processor = attached(config=toy_config(**changes))
    processor.tokenizer.add_tokens(["0.25", "0.5"])
    said = ["red", ".", *["0.25", "0.5"] * numbers]
    kept = processor.tokenizer.convert_tokens_to_ids(said)
    model.generation_config.suppress_tokens = sorted({*range(32)} - {*kept})
    model.generation_config.no_repeat_ngram_size = 1
    if boxes and model.vpp.local_vpp is not None:
        generator = model.vpp.local_vpp.generator
        generator.names, generator.boxes, generator.scores = ("cup", "dog"), quarters, scores
        assert isinstance(generator, BoxedQueries)
    return Grounder(model, processor, max_new_tokens=len(said))


@pytest.mark.parametrize("numbers", [True, False])
def test_it_is_the_mean_over_heads_and_the_places_where_numbers_come_next(numbers: bool) -> None:
    grounder, shown = asker(numbers=numbers), image()
    found = attend(grounder, shown, "the cup")

    answer = grounder(shown, "the cup").text.split()
    assert len(answer) == (4 if numbers else 2)
    model: Any = grounder.model
    processor = grounder.processor
    inputs = processor(images=[[shown]], text=[grounder._prompt(grounder.codec.prompt("the cup"))], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    said = torch.tensor([processor.tokenizer.convert_tokens_to_ids(answer)])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], said], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        last = model(**inputs, output_attentions=True).attentions[-1][0].mean(0)
    spoken = [place for place, word in enumerate(answer[:-1]) if word[0].isdigit()] if numbers else [0, 1]
    assert spoken
    plain = torch.stack([last[length - 1 + place, :length] for place in spoken]).mean(0)
    ids = inputs["input_ids"][0, :length]
    torch.testing.assert_close(found.on_queries, plain[ids == model.vpp.token_id])
    torch.testing.assert_close(found.on_image, plain[ids == model.config.image_token_id])
    assert len(found.on_queries) == 4
    assert len(found.on_image) == 16


def test_the_model_is_left_as_it_was() -> None:
    grounder = asker()
    model: Any = grounder.model
    before = grounder(image(), "the cup")
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    kinds = [part.config._attn_implementation for part in parts]
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    pre_hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]

    attend(grounder, image(), "the cup")

    assert [part.config._attn_implementation for part in parts] == kinds
    assert "eager" not in kinds
    assert grounder(image(), "the cup") == before
    assert [name for name, module in model.named_modules() if module._forward_hooks] == hooked
    assert [name for name, module in model.named_modules() if module._forward_pre_hooks] == pre_hooked


def test_queries_that_say_where_they_look_are_named_and_brought_into_the_image() -> None:
    found = attend(asker(), WIDE, "the cup")

    assert found.boxes_xyxy_px == ((0, 0, 100, 50), (100, 0, 200, 50), (0, 50, 100, 100), (0, 0, 0, 0))
    assert found.labels == ("cup 90%", "", "dog 40%", "")
    assert found.nearest((10, 60, 90, 100)) == 2
    assert found.nearest((150, 60, 190, 100)) is None


def test_others_have_their_attention_alone() -> None:
    silent, bare = (attend(asker(**changes), WIDE, "the cup") for changes in ({"boxes": False}, {"local_vpp": None}))

    assert (silent.boxes_xyxy_px, silent.labels, len(silent.on_queries)) == ((), (), 4)
    assert (bare.boxes_xyxy_px, len(bare.on_queries), len(bare.on_image)) == ((), 0, 16)
    assert silent.nearest((0, 0, 10, 10)) is None
    assert np.array_equal(np.asarray(silent.draw_queries()), np.asarray(WIDE))
    assert bare.draw().size == WIDE.size


class TestDrawing:
    """Two queries of an image of 200 x 100 pixels, all of whose tokens' attention lies on its left half."""

    def seen(self, shares: tuple[float, float] = (0.5, 0.01)) -> Attention:
        grid = torch.tensor([[0.1, 0.0], [0.1, 0.0]]).flatten()
        return Attention(WIDE, grid, torch.tensor(shares), ((20, 20, 80, 80), (120, 20, 180, 80)), ("", ""))

    def colours(self, drawn: Image.Image) -> set[str]:
        return {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.asarray(drawn).reshape(-1, 3).tolist()}

    def test_the_chosen_query_is_thick_and_of_its_own_colour(self) -> None:
        drawn = np.asarray(self.seen().draw_queries(1))

        def width(left: int) -> int:
            return int((drawn[50, left : left + 20] != 255).any(-1).sum())

        assert width(10) == 1
        assert width(110) == 2
        assert self.colours(self.seen().draw_queries(1)) == {"#ffffff", QUERY, CHOSEN}
        assert self.colours(self.seen().draw_queries()) == {"#ffffff", QUERY}

    def test_the_image_is_bright_where_it_is_attended_to(self) -> None:
        drawn = np.asarray(self.seen((0.0, 0.0)).draw(), dtype=float)

        assert drawn[:, :40].min() == 255
        assert drawn[:, 160:].max() == round(0.15 * 255)

    def test_only_queries_that_are_attended_to_stand_there_with_their_share(self) -> None:
        drawn = self.seen().draw()

        assert QUERY in self.colours(drawn.crop((0, 0, 100, 100)))
        assert QUERY not in self.colours(drawn.crop((100, 0, 200, 100)))
        assert CHOSEN in self.colours(self.seen().draw(0))

    def test_tokens_that_are_no_square_are_not_drawn(self) -> None:
        seen = Attention(WIDE, torch.ones(6), torch.zeros(0))

        assert np.array_equal(np.asarray(seen.draw()), np.asarray(WIDE))
