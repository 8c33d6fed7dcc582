import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.tiny import attached, tiny_llava
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD, letterbox
from vpp_plugins.prompts.global_vpp import GlobalVPP, Overlay
from vpp_plugins.prompts.local_vpp import LocalVPP
from vpp_plugins.prompts.vpp import VPP, Frame

SIZES = [(64, 64), (64, 32), (32, 64), (500, 333), (37, 500), (1000, 9), (84, 80), (640, 31), (8, 9)]


class Recorder(nn.Module):
    """A generator that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 6))

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        self.seen, self.mask = pixel_values, pixel_mask
        return self.queries * (1 + pixel_values.square().mean((1, 2, 3))[:, None, None])


def prompts(
    *, axes: dict[str, Any] | None = None, frame: Frame = "square", without: str = "", **local: Any
) -> tuple[VPP, Recorder]:
    recorder = Recorder()
    settings = LocalVPPConfig(num_queries=4, image_size=64, projector_size=8, **local)
    global_vpp = None if without == "global" else GlobalVPP(32, border=4, **(axes or {}))
    local_vpp = LocalVPP(recorder, num_queries=4, query_width=6, hidden_size=5, projector_size=8)
    config = VPPConfig(global_vpp=GlobalVPPConfig(), local_vpp=None if without == "local" else settings)
    vpp = VPP(config, global_vpp=global_vpp, local_vpp=None if without == "local" else local_vpp, frame=frame)
    return vpp, recorder


def boxed(*sizes: tuple[int, int]) -> Tensor:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    return torch.stack([letterbox(image, 64) for image in images])


def test_features_stand_in_the_order_of_the_images() -> None:
    vpp, _ = prompts()
    pixels = boxed((64, 64), (64, 32), (20, 64))

    together = vpp(pixels).features

    assert together.shape == (3 * 4, 5)
    one_by_one = [vpp(pixels[i : i + 1]).features for i in range(3)]
    torch.testing.assert_close(together, torch.cat(one_by_one))
    assert not torch.allclose(one_by_one[0], one_by_one[1])


def test_a_prompt_that_is_left_out_gives_nothing() -> None:
    pixels = boxed((64, 64))

    only_local, only_global = prompts(without="global")[0], prompts(without="local")[0]

    assert only_local(pixels).overlay is None
    assert only_local(pixels).features.shape == (4, 5)
    assert only_local.tokens_per_image == 4
    assert only_global(None).features is None
    assert only_global(None).overlay is not None
    assert only_global.tokens_per_image == 0


def test_a_text_without_images_needs_no_detector() -> None:
    vpp, recorder = prompts()

    given = vpp(None)

    assert given.features is None
    assert "seen" not in vars(recorder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", ["square", "image"])
def test_the_mask_is_the_images_area_and_nothing_else(size: tuple[int, int], frame: Frame) -> None:
    """The detector's overlay fills the padding too where the axes lie on the square; the mask must not follow it."""
    vpp, recorder = prompts(frame=frame)
    pixels = boxed(size)
    scale = 64 / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    expected = torch.zeros(1, 64, 64, dtype=torch.bool)
    top, left = (64 - height) // 2, (64 - width) // 2
    expected[:, top : top + height, left : left + width] = True

    for dtype in (torch.float32, torch.bfloat16):
        vpp.to(dtype)(pixels)
        assert recorder.mask is not None
        assert torch.equal(recorder.mask, expected)


def test_without_mask_padding_everything_is_image() -> None:
    vpp, recorder = prompts(mask_padding=False)

    vpp(boxed((64, 20)))

    assert recorder.mask is None


def seen(**options: Any) -> Tensor:
    """What the detector sees of one wide image."""
    vpp, recorder = prompts(**options)
    vpp(boxed((64, 32)))
    return recorder.seen.detach()


def test_overlay_off_leaves_the_detectors_image_alone() -> None:
    assert torch.equal(seen(overlay=False), boxed((64, 32)))
    assert torch.equal(seen(without="global"), boxed((64, 32)))


def test_detector_units_show_the_axes_in_their_colours_and_host_units_take_the_prompt_raw() -> None:
    def shown(pixels: Tensor) -> Tensor:
        return pixels * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]

    opaque = {"axes": {"alpha": 0.0}}
    detector, host = (seen(overlay_units=units, **opaque)[0] for units in ("detector", "host"))

    prompt = GlobalVPP(32, border=4)
    rendered = prompt.overlay().render((64, 64))
    band = rendered[3] == 1
    torch.testing.assert_close(host[:, band], rendered[:3, band])
    assert shown(detector)[:, band].min() > -1e-4
    assert shown(detector)[:, band].max() < 1 + 1e-4
    assert shown(host)[:, band].max() < 0.999  # CLIP's white is no white in ImageNet's units
    torch.testing.assert_close(shown(detector)[:, band].amax(1), torch.ones(3))


def test_axes_on_the_square_cover_the_padding_and_axes_on_the_image_do_not() -> None:
    plain = boxed((64, 32))

    square, image = ((seen(frame=frame) != plain).any(1)[0] for frame in ("square", "image"))

    padding = ~(plain != 0).any(1)[0]
    assert square[padding].any()
    assert not image[padding].any()
    assert image[16, 32]  # the axes begin where the image does
    assert not image[32, 32]


def test_the_axes_on_a_letterboxed_image_are_those_of_the_bare_image() -> None:
    """Property: on the image's own pixels, letterboxing makes no difference."""
    vpp, recorder = prompts(frame="image")
    for width, height in ((64, 32), (40, 64), (64, 64)):
        pixels = boxed((width, height))
        vpp(pixels)
        top, left = (64 - height) // 2, (64 - width) // 2
        inside = (..., slice(top, top + height), slice(left, left + width))
        overlay = vpp.global_vpp.overlay_for(IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(recorder.seen[inside], overlay.blend(pixels[inside]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlay", [True, False])
def test_gradients_reach_every_parameter(overlay: bool) -> None:
    vpp, _ = prompts(overlay=overlay)

    vpp(boxed((64, 32))).features.square().sum().backward()

    gradients = {name: p.grad is not None and bool(p.grad.any()) for name, p in vpp.named_parameters()}
    prompt = gradients.pop("global_prompt.prompt")
    assert all(gradients.values())
    assert prompt == overlay


@pytest.mark.parametrize("axes", [{"style": "padding"}, {"resample": "nearest"}])
def test_axes_that_cannot_follow_the_letterbox_are_refused_when_built(axes: dict[str, Any]) -> None:
    """Such a model worked on square images and failed on the first other one."""
    with pytest.raises(VPPError, match=r"set local_vpp\.overlay to False"):
        prompts(frame="image", axes=axes)

    prompts(frame="image", axes=axes, overlay=False)[0](boxed((64, 32)))
    prompts(frame="square", axes=axes)[0](boxed((64, 32)))


def test_the_token_is_bound_by_its_id() -> None:
    vpp, _ = prompts()
    assert vpp.token_id is None

    vpp.bind_token(7)

    assert vpp.token_id == 7
    assert not vpp.trained


class TestAxesRenderedOnce:
    """Without gradients the axes on the padded square are rendered once, and again when they change."""

    @pytest.fixture
    def rendered(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []
        render = Overlay.render
        monkeypatch.setattr(
            Overlay, "render", lambda overlay, size, *window: sizes.append(size) or render(overlay, size, *window)
        )
        return sizes

    @pytest.mark.parametrize("units", ["host", "detector"])
    @pytest.mark.parametrize("resample", ["bilinear", "nearest"])
    def test_the_image_is_the_same(self, units: str, resample: str, rendered: list[tuple[int, int]]) -> None:
        vpp, _ = prompts(axes={"resample": resample}, overlay_units=units)
        pixels = boxed((64, 64), (64, 32))
        expected = vpp.detector_view(pixels).detach()
        with torch.no_grad():
            views = [vpp.detector_view(pixels) for _ in range(3)]
        with torch.inference_mode():
            views.append(vpp.detector_view(pixels))
        assert all(torch.equal(view, expected) for view in views)
        assert rendered == [(64, 64)] * 2

    def test_a_change_is_seen(self, rendered: list[tuple[int, int]]) -> None:
        vpp, _ = prompts()
        pixels = boxed((64, 64))
        prompt = vpp.global_vpp
        assert prompt is not None
        changes = [
            lambda: prompt.prompt.add_(1),
            lambda: prompt.prompt.data.mul_(2),
            lambda: prompt.mask.zero_(),
            lambda: prompt.load_state_dict({"prompt": torch.randn(3, 32, 32)}),
            lambda: setattr(prompt, "image_mean", (0.1, 0.2, 0.3)),
            lambda: vpp.double(),
        ]
        with torch.no_grad():
            vpp.detector_view(pixels)
        for change in changes:
            with torch.no_grad():
                change()
                cached = vpp.detector_view(pixels)
            assert torch.equal(cached, vpp.detector_view(pixels))
        assert len(rendered) == 1 + 2 * len(changes)

    def test_gradients_reach_the_axes_afterwards(self) -> None:
        vpp, _ = prompts()
        with torch.inference_mode():
            vpp(boxed((64, 64)))
        vpp(boxed((64, 64))).features.sum().backward()
        assert vpp.global_vpp is not None
        assert vpp.global_vpp.prompt.grad is not None
        assert vpp.global_vpp.prompt.grad.any()

    def test_a_copy_renders_its_own(self, rendered: list[tuple[int, int]]) -> None:
        vpp, _ = prompts()
        with torch.no_grad():
            vpp.detector_view(boxed((64, 64)))
            copy.deepcopy(vpp).detector_view(boxed((64, 64)))
        assert len(rendered) == 2


def test_a_gain_that_was_changed_on_the_prompt_is_refused(toy: None) -> None:
    model, _ = attached(tiny_llava())
    model.vpp.check_settings()
    model.vpp.local_vpp.gain = 8.0

    with pytest.raises(VPPError, match=r"local_vpp\.gain is 8\.0, but the prompts were attached with 1\.0"):
        model.vpp.check_settings()
