import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import attached, image, toy_config
from vpp_plugins import GlobalVPP, VPPError
from vpp_plugins.prompts import VPP, draw_axes
from vpp_plugins.prompts.draw import draw_overlay, draw_prompt, draw_queries, draw_sensitivity
from vpp_plugins.prompts.generators.heads import DetectionHeads

WHITE = Image.new("RGB", (200, 100), "white")
BOXES = [(20.0, 10.0, 80.0, 60.0), (100.0, 30.0, 190.0, 90.0)]


def changed(drawn: Image.Image, before: Image.Image) -> np.ndarray:
    return (np.asarray(drawn) != np.asarray(before)).any(2)


def test_a_fresh_prompt_is_drawn_as_its_axes() -> None:
    drawn = draw_prompt(GlobalVPP(64, border=6))

    assert np.array_equal(np.asarray(drawn), np.asarray(draw_axes(64, border=6)))


class TestOverlay:
    def test_shows_the_padded_square_with_the_band_changed_only(self) -> None:
        prompt, shown = GlobalVPP(64, border=6), image(0, (64, 32))

        plain, drawn = draw_overlay(prompt, shown, gain=0), draw_overlay(prompt, shown)

        assert plain.size == drawn.size == (64, 64)
        assert np.array_equal(np.asarray(plain)[16:48], np.asarray(shown))
        band = prompt.mask.numpy() == 1
        assert changed(drawn, plain)[band].mean() > 0.5
        assert not changed(drawn, plain)[~band].any()

    def test_gain_multiplies_the_change(self) -> None:
        prompt, grey = GlobalVPP(64, border=6), Image.new("RGB", (64, 64), (128, 128, 128))

        once, six = (np.asarray(draw_overlay(prompt, grey, gain=gain), dtype=float) - 128 for gain in (1, 6))

        assert np.abs(once).max() == 6  # a twentieth of the way to black or white
        assert np.abs(six - 6 * once).max() <= 3.5

    def test_the_prompts_precision_does_not_matter(self) -> None:
        prompt = GlobalVPP(64, border=6)
        precise = np.asarray(draw_overlay(prompt, image()), dtype=int)

        assert np.abs(np.asarray(draw_overlay(prompt.bfloat16(), image()), dtype=int) - precise).max() <= 2


@pytest.mark.usefixtures("toy")
class TestSensitivity:
    def test_is_bright_where_the_tokens_look(self) -> None:
        vpp = attached()[0].vpp
        patches = vpp.local_vpp.generator.patches
        seen = torch.zeros(1, 3, 64, 64)

        def only_the_left(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            mask = torch.zeros_like(seen)
            mask[..., :32] = 1
            return (args[0] * mask,)

        patches.register_forward_pre_hook(only_the_left)

        drawn = np.asarray(draw_sensitivity(vpp, Image.new("RGB", (64, 32), "white")), dtype=float)

        assert drawn.shape == (32, 64, 3)
        assert drawn[:, :24].mean() > 1.5 * drawn[:, 40:].mean()
        assert drawn.max() == 255
        assert drawn[:, 48:].max() <= round(0.15 * 255)

    def test_leaves_no_gradients_behind_and_works_without_grad(self) -> None:
        vpp = attached()[0].vpp

        with torch.no_grad():
            draw_sensitivity(vpp, image())

        assert all(parameter.grad is None for parameter in vpp.parameters())

    def test_needs_a_local_prompt(self) -> None:
        with pytest.raises(VPPError, match="no local prompt"):
            draw_sensitivity(attached(config=toy_config(local_vpp=None))[0].vpp, image())


@pytest.mark.usefixtures("toy")
class TestQueries:
    """What the local queries see, on an image of 200 x 100 pixels: its square begins 50 pixels above it."""

    def heads(self, vpp: VPP) -> DetectionHeads:
        """Heads that see one cup, in the left half of the square's middle, whatever the query."""
        assert vpp.local_vpp is not None
        heads = DetectionHeads(vpp.local_vpp.generator.width, 1)
        with torch.no_grad():
            for parameter in heads.parameters():
                parameter.zero_()
            heads.class_embed.bias.copy_(torch.tensor([5.0, 0.0]))
            heads.bbox_embed.layers[-1].bias.copy_(torch.logit(torch.tensor([0.25, 0.5, 0.4, 0.3])))
        return heads

    def test_boxes_are_brought_from_the_square_to_the_image(self) -> None:
        vpp = attached()[0].vpp

        drawn = draw_queries(vpp, self.heads(vpp), ["cup"], WHITE)

        different = changed(drawn, WHITE)
        assert different[78:81, 20:80].any(0).all()  # the lower edge, which no label covers
        assert different[50:78, 9:12].any(1).all()
        assert different[50:78, 88:91].any(1).all()
        assert not different[82:].any()
        assert not different[:, 92:].any()

    def test_unsure_queries_are_left_out(self) -> None:
        vpp = attached()[0].vpp

        assert not changed(draw_queries(vpp, self.heads(vpp), ["cup"], WHITE, at_least=0.999), WHITE).any()

    def test_needs_a_local_prompt(self) -> None:
        bare = attached(config=toy_config(local_vpp=None))[0].vpp
        with pytest.raises(VPPError, match="no local prompt"):
            draw_queries(bare, self.heads(attached()[0].vpp), ["cup"], WHITE)
