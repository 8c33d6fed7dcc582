import numpy as np
from PIL import Image

from tests.tiny import image
from vpp_plugins import GlobalVPP
from vpp_plugins.prompts import draw_axes
from vpp_plugins.prompts.draw import draw_overlay, draw_prompt


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

    def test_a_larger_side_shows_the_same_more_finely(self) -> None:
        prompt, shown = GlobalVPP(64, border=6), Image.new("RGB", (64, 32), (128, 128, 128))

        drawn = draw_overlay(prompt, shown, gain=6, side=160)

        assert drawn.size == (160, 160)
        small = np.asarray(drawn.resize((64, 64), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - np.asarray(draw_overlay(prompt, shown, gain=6), dtype=float)).mean() < 3
