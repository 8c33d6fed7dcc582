"""Calls that cannot be served: tiles without their places, and videos."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.tiny import attached, cached, inputs_for, toy_config
from vpp_plugins import VPPError, detach_vpp, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.validation import CACHES, check_call, embedded_ids
from vpp_plugins.processor.tile_boxes import to_tile_boxes

WINDOWS = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
BOXES = to_tile_boxes(WINDOWS)


def tiled(**changes: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A host that says that its images come in tiles, and inputs without their places."""
    model, processor = attached(config=toy_config(**changes))
    state = host_state(model)
    state.backbone = replace(state.backbone, tiled=True)
    return model, inputs_for(processor, [2, 1])


@pytest.mark.usefixtures("toy")
class TestTileBoxes:
    @pytest.mark.parametrize("how", ["forward", "generate"])
    def test_are_needed_for_the_global_prompt_on_tiles(self, how: str) -> None:
        model, inputs = tiled()

        with pytest.raises(VPPError, match="images came without vpp_tile_boxes"):
            model(**inputs) if how == "forward" else model.generate(**inputs, max_new_tokens=2)

    def test_are_not_needed_without_a_global_prompt(self) -> None:
        model, inputs = tiled(global_vpp=None)

        assert model(**inputs).logits.isfinite().all()

    def test_are_not_needed_without_a_image(self) -> None:
        model, _ = tiled()

        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()

    def test_are_not_needed_where_vpp_is_disabled(self) -> None:
        model, inputs = tiled()
        with vpp_disabled(model):
            found = model(pixel_values=inputs["pixel_values"], input_ids=torch.full((3, 16), 4)).logits

        expected = detach_vpp(model)(pixel_values=inputs["pixel_values"], input_ids=torch.full((3, 16), 4)).logits
        assert torch.equal(found, expected)

    def test_place_the_axes(self) -> None:
        model, inputs = tiled()
        seen: list[torch.Tensor] = []
        model.model.vision_tower.embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

        model(**inputs, vpp_tile_boxes=BOXES)

        expected = model.vpp(None).overlay.blend(inputs["pixel_values"], WINDOWS)
        assert torch.equal(seen[0], expected)
        assert not torch.equal(expected, model.vpp(None).overlay.blend(inputs["pixel_values"]))

    def test_must_be_four_numbers_each(self) -> None:
        model, inputs = tiled()

        with pytest.raises(VPPError, match=r"must be \[inputs, 4\].*but are \[4, 3\]"):
            model(**inputs, vpp_tile_boxes=BOXES.T)

    def test_may_be_written_as_fractions(self) -> None:
        model, inputs = tiled()

        whole = model(**inputs, vpp_tile_boxes=BOXES).logits
        assert torch.equal(model(**inputs, vpp_tile_boxes=torch.tensor(WINDOWS)).logits, whole)

    def test_are_not_in_half_precision(self) -> None:
        """A cast to bfloat16 shifts the axes of tiles by 2 to 4 thousandths."""
        model, inputs = tiled()

        with pytest.raises(VPPError, match=r"in millionths .* but are \[3, 4\] of torch.bfloat16"):
            model(**inputs, vpp_tile_boxes=torch.tensor(WINDOWS, dtype=torch.bfloat16))

    def test_must_be_one_for_each_tile(self) -> None:
        model, inputs = tiled()

        with pytest.raises(VPPError, match="2 came for 3 images"):
            model(**inputs, vpp_tile_boxes=BOXES[:2])


@pytest.mark.usefixtures("toy")
def test_the_detectors_images_are_no_bytes() -> None:
    model, processor = attached()
    inputs = inputs_for(processor, [1])

    with pytest.raises(VPPError, match=r"must be normalised floats .* but are \[1, 3, 64, 64\] of torch.uint8"):
        model(**{**inputs, "vpp_pixel_values": inputs["vpp_pixel_values"].to(torch.uint8)})


@pytest.mark.usefixtures("toy")
class TestImagesForTheHost:
    @pytest.mark.parametrize("how", ["forward", "generate"])
    def test_are_missed_where_only_the_detectors_came(self, how: str) -> None:
        """The placeholders were filled, and the host answered without ever having seen the image."""
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        del inputs["pixel_values"]

        with pytest.raises(VPPError, match="vpp_pixel_values came without pixel_values, so the host would not see"):
            model(**inputs) if how == "forward" else model.generate(**inputs, max_new_tokens=2)

    def test_are_not_missed_where_they_are_encoded_already(self) -> None:
        model, processor = attached(config=toy_config(global_vpp=None))
        inputs = inputs_for(processor, [1])
        state, call = host_state(model), {"mm_encoder_outputs": {"image": torch.zeros(1)}}
        vpp, ids, pixels = model.vpp, inputs["input_ids"], inputs["vpp_pixel_values"]

        check_call(state, vpp, call, ids, pixels, None)
        check_call(state, vpp, {"image_embeds": torch.zeros(1)}, ids, pixels, None)

    def test_are_not_missed_in_the_steps_of_decoding(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        cache = model(**inputs, use_cache=True).past_key_values

        assert model(input_ids=torch.tensor([[5]]), **cached(cache)).logits.isfinite().all()

    def test_encoded_already_they_bypass_the_global_prompt(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        call = {"image_hidden_states": torch.zeros(1)}

        with pytest.raises(VPPError, match="precomputed image features bypass the vision encoder"):
            check_call(host_state(model), model.vpp, call, inputs["input_ids"], inputs["vpp_pixel_values"], None)


@pytest.mark.usefixtures("toy")
class TestVideos:
    @pytest.mark.parametrize("how", ["forward", "generate"])
    @pytest.mark.parametrize("with_images", [True, False])
    def test_are_refused_in_words(self, how: str, with_images: bool) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1 if with_images else 0])
        videos = {"pixel_values_videos": torch.zeros(2, 3, 32, 32)}

        with pytest.raises(VPPError, match="videos not yet"):
            model(**inputs, **videos) if how == "forward" else model.generate(**inputs, **videos)


@pytest.mark.parametrize("name", CACHES)
def test_what_a_cache_holds_is_not_embedded_again_whatever_it_is_called(name: str) -> None:
    """transformers 5.24 calls it `cache`, and generate passes it on under that name."""
    ids, cache = torch.arange(6)[None], DynamicCache()
    cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 0)

    found = embedded_ids((), {"input_ids": ids, name: cache})

    assert found is not None
    assert found.tolist() == [[4, 5]]
