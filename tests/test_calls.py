"""Calls that cannot be served: tiles without their places, and videos."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tiny import attached, inputs_for, toy_config
from vpp_plugins import VPPError, detach_vpp, vpp_disabled
from vpp_plugins.attach import host_state

BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])


def tiled(**changes: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A host that says that its pictures come in tiles, and inputs without their places."""
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

    def test_are_not_needed_without_a_picture(self) -> None:
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

        expected = model.vpp(None).overlay.blend(inputs["pixel_values"], [tuple(box) for box in BOXES.tolist()])
        assert torch.equal(seen[0], expected)
        assert not torch.equal(expected, model.vpp(None).overlay.blend(inputs["pixel_values"]))

    def test_must_be_four_numbers_each(self) -> None:
        model, inputs = tiled()

        with pytest.raises(VPPError, match=r"must be \[inputs, 4\].*but are \[4, 3\]"):
            model(**inputs, vpp_tile_boxes=BOXES.T)

    def test_must_be_one_for_each_tile(self) -> None:
        model, inputs = tiled()

        with pytest.raises(VPPError, match="2 came for 3 pictures"):
            model(**inputs, vpp_tile_boxes=BOXES[:2])


@pytest.mark.usefixtures("toy")
class TestVideos:
    @pytest.mark.parametrize("how", ["forward", "generate"])
    @pytest.mark.parametrize("with_pictures", [True, False])
    def test_are_refused_in_words(self, how: str, with_pictures: bool) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1 if with_pictures else 0])
        videos = {"pixel_values_videos": torch.zeros(2, 3, 32, 32)}

        with pytest.raises(VPPError, match="videos not yet"):
            model(**inputs, **videos) if how == "forward" else model.generate(**inputs, **videos)
