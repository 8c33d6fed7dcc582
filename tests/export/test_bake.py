import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from PIL import Image
from transformers import SiglipImageProcessor
from typer.testing import CliRunner

from tests.tiny import TOY_GLOBAL, TOY_LOCAL, attached, image, tiny_llava, tiny_processor, toy_config
from vpp_plugins import GlobalVPPConfig, VPPConfig, VPPError, VPPProcessor, attach_vpp, is_attached
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.cli.bake import bake as command
from vpp_plugins.export import Baked, apply_axes, bake, drop_local_prompt, load_axes, score_baked
from vpp_plugins.export.apply_axes import blend, fit
from vpp_plugins.plugins.registry import describe

IMAGES = [image(0, (40, 24)).resize((400, 240)), image(1, (24, 40)).resize((150, 250))]


def global_only(**changes: Any) -> tuple[Any, VPPProcessor]:
    """A host whose axes have moved away from the drawn ones, as training does."""
    config = toy_config(global_vpp=replace(TOY_GLOBAL, **changes), local_vpp=None)
    model, processor = attached(config=config)
    with torch.no_grad():
        prompt = active_vpp(model).global_vpp.prompt
        prompt.add_(0.5 * torch.randn(prompt.shape, generator=torch.Generator().manual_seed(0)))
    return model, processor


def encoder_pixels(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What reaches the patch embedding."""
    seen = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.5, "border": 8},
        {"interior": "scaled"},
        {"interior": "scaled", "resample": "nearest", "size": 48},
        {"size": 48, "border": 8},
        {"style": "cross"},
        {"style": "padding"},
        {"style": "padding", "size": 48, "border": 7},
    ],
)
def test_the_encoder_gets_the_prompt_s_pixels_to_within_one_level(changes: dict[str, Any], tmp_path: Path) -> None:
    model, processor = global_only(**changes)

    baked = bake(model, processor, tmp_path / "baked", IMAGES)

    axes, images = load_axes(baked.folder), processor.image_processor
    std = torch.tensor(images.image_std)[:, None, None]
    for one in IMAGES:
        wanted = active_vpp(model).global_vpp(images(fit(one, axes), return_tensors="pt")["pixel_values"])
        made = images(apply_axes(one, axes), return_tensors="pt")["pixel_values"]
        colours = wanted * std + torch.tensor(images.image_mean)[:, None, None]
        inside = (colours >= 0) & (colours <= 1)
        assert ((wanted - made).abs() * std)[inside].max() <= 0.51 / 255
        assert inside.float().mean() > 0.5
    assert 0 < baked.largest_difference <= 0.51 / 255


def test_attached_and_baked_the_whole_model_answers_alike(tmp_path: Path) -> None:
    """Through both entries: what the encoder of the attached host gets, and of a bare one with the baked image."""
    model, processor = global_only(interior="scaled")
    baked = bake(model, processor, tmp_path / "baked", IMAGES)
    text, axes = "USER: <image> where is the cup ASSISTANT:", load_axes(baked.folder)

    own = tiny_processor()
    own.image_processor = processor.image_processor
    wanted = encoder_pixels(model, processor(images=IMAGES[0], text=text, return_tensors="pt"))
    made = encoder_pixels(tiny_llava(), own(images=apply_axes(IMAGES[0], axes), text=text, return_tensors="pt"))

    # torchvision's bicubic and Pillow's take one level apart, and rounding half a one
    assert ((wanted - made).abs() * 0.27).quantile(0.99) <= 1.6 / 255


def test_the_script_runs_by_itself(tmp_path: Path) -> None:
    model, processor = global_only()
    folder = bake(model, processor, tmp_path / "baked", IMAGES).folder
    IMAGES[0].save(tmp_path / "photo.png")
    command = [sys.executable, "-I", folder / "apply_axes.py", tmp_path / "photo.png", tmp_path / "laid.png"]

    subprocess.run(command, check=True)

    laid = apply_axes(IMAGES[0], load_axes(folder))
    with Image.open(tmp_path / "laid.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(laid))
    imported = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*{n.split('.')[0] for n in sys.modules})"
    names = subprocess.run(
        [sys.executable, "-I", "-c", imported, folder / "apply_axes.py"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {"numpy", "PIL"} <= set(names)
    assert not {"torch", "transformers", "vpp_plugins"} & set(names)


def test_clipped_colours_are_counted(tmp_path: Path) -> None:
    """Axes twice as bright as white, at half their weight: wherever they lie, a bright image is clipped."""
    model, processor = global_only(alpha=0.5)
    with torch.no_grad():
        prompt = active_vpp(model).global_vpp
        prompt.prompt.copy_((2 - torch.tensor(prompt.image_mean)).div(torch.tensor(prompt.image_std))[:, None, None])
    white = Image.new("RGB", (50, 50), "white")

    baked = bake(model, processor, tmp_path / "baked", [white, Image.new("RGB", (50, 50))])

    band = 32 * 32 - 24 * 24
    assert baked.clippable == 3 * band
    assert baked.clipped == 3 * band  # of the white image; black ones get 0.5 * 2, the last that is not too much
    assert np.asarray(apply_axes(white, load_axes(baked.folder))).min() == 255


def test_axes_within_the_colours_clip_nothing(tmp_path: Path) -> None:
    model, processor = attached(config=toy_config(local_vpp=None))

    baked = bake(model, processor, tmp_path / "baked", IMAGES)

    assert (baked.clipped, baked.clippable) == (0, 0)


def test_a_image_inside_kept_axes_stays_as_it_is(tmp_path: Path) -> None:
    model, processor = global_only()
    axes = load_axes(bake(model, processor, tmp_path / "baked", IMAGES).folder)

    fitted, laid = np.asarray(fit(IMAGES[0], axes)), np.asarray(apply_axes(IMAGES[0], axes))

    assert np.array_equal(fitted[4:-4, 4:-4], laid[4:-4, 4:-4])
    assert (fitted[:4] != laid[:4]).any()


def test_hosts_that_stretch_images_get_them_stretched(tmp_path: Path) -> None:
    """Frame "image": the axes span the image itself, not a square around it."""
    host = tiny_llava()
    backbone = replace(describe(host), frame="image", prepare_processor=lambda processor: None)
    config = VPPConfig(global_vpp=GlobalVPPConfig(size=32, border=4), local_vpp=None)
    model = attach_vpp(host, config, adapter=backbone)
    model.vpp.trained = True
    own = tiny_processor()
    own.image_processor = SiglipImageProcessor(
        size={"height": 32, "width": 32}, image_mean=backbone.image_mean, image_std=backbone.image_std
    )

    axes = load_axes(bake(model, VPPProcessor(own, model), tmp_path / "baked", IMAGES).folder)

    assert axes.background is None
    assert fit(IMAGES[0], axes).tobytes() == IMAGES[0].resize((32, 32), Image.Resampling.BICUBIC).tobytes()


def test_the_folder_says_how_to_serve_and_what_it_costs(tmp_path: Path) -> None:
    model, processor = global_only()

    folder = bake(model, processor, tmp_path / "baked", IMAGES).folder

    names = {file.name for file in folder.iterdir()}
    assert names == {"axes.npz", "axes.json", "axes.png", "apply_axes.py", "README.md"}
    page = (folder / "README.md").read_text()
    assert "vLLM" in page
    assert "32 x 32 pixels" in page
    assert "on 2 images: at most 0." in page
    assert json.loads((folder / "axes.json").read_text())["background"] == [122, 116, 104]
    with Image.open(folder / "axes.png") as shown:
        assert shown.size == (32, 32)


@pytest.mark.usefixtures("toy")
class TestLocalPrompts:
    def test_are_refused(self, tmp_path: Path) -> None:
        model, processor = attached()

        with pytest.raises(VPPError, match=r"has a local prompt, whose tokens an image cannot carry.*--global-only"):
            bake(model, processor, tmp_path / "baked", IMAGES)

    def test_can_be_dropped(self, tmp_path: Path) -> None:
        model, processor = attached()
        prompt = active_vpp(model).global_vpp.prompt.detach() + 1
        active_vpp(model).global_vpp.prompt.data.copy_(prompt)

        processor = drop_local_prompt(model, processor)

        assert is_attached(model)
        assert model.vpp.trained
        assert model.vpp.local_vpp is None
        assert torch.equal(model.vpp.global_vpp.prompt, prompt)
        assert isinstance(bake(model, processor, tmp_path / "baked", IMAGES), Baked)

    def test_alone_leave_nothing_to_bake(self) -> None:
        model, processor = attached(config=toy_config(global_vpp=None, local_vpp=TOY_LOCAL))

        with pytest.raises(VPPError, match="no global prompt, so nothing would be left"):
            drop_local_prompt(model, processor)
        assert is_attached(model)


def test_scores_compare_the_answers_of_both(tmp_path: Path) -> None:
    model, processor = global_only()
    folder = bake(model, processor, tmp_path / "baked", IMAGES).folder
    questions = [(one, "the red cup", (1.0, 2.0, 20.0, 30.0)) for one in IMAGES]

    scores = score_baked(model, processor, folder, questions, batch_size=1)

    assert scores.questions == 2
    assert scores.iou_attached == scores.iou_baked == 0  # a random model writes no boxes
    assert 0 <= scores.same_answers <= 2


def test_hosts_that_crop_images_cannot_be_baked(tmp_path: Path) -> None:
    model, processor = global_only()
    processor.image_processor.do_pad = False

    with pytest.raises(VPPError, match="the axes would lie elsewhere: this host cannot be baked"):
        bake(model, processor, tmp_path / "baked", IMAGES)
    assert not (tmp_path / "baked").exists()


def test_hosts_that_take_images_at_their_own_size_cannot_be_baked(tmp_path: Path) -> None:
    model, processor = global_only()
    processor.image_processor.do_resize = processor.image_processor.do_center_crop = False
    processor.image_processor.do_pad = False

    with pytest.raises(VPPError, match=r"images at their own size.*only hosts that see every image at one size"):
        bake(model, processor, tmp_path / "baked", IMAGES)


def test_a_full_folder_and_no_images_are_refused(tmp_path: Path) -> None:
    model, processor = global_only()
    (tmp_path / "mine.txt").touch()

    with pytest.raises(VPPError, match="holds other files: give a new or empty one"):
        bake(model, processor, tmp_path, IMAGES)
    with pytest.raises(VPPError, match="at least one image"):
        bake(model, processor, tmp_path / "baked", [])


def test_blending_is_exact_before_rounding(tmp_path: Path) -> None:
    """The two constants are the overlay's own, up to float32."""
    model, processor = global_only(interior="scaled", alpha=0.7)
    axes = load_axes(bake(model, processor, tmp_path / "baked", IMAGES).folder)
    prompt = active_vpp(model).global_vpp
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (prompt.image_mean, prompt.image_std))

    fitted = fit(IMAGES[0], axes)

    raw = torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255
    with torch.no_grad():
        wanted = prompt(((raw - mean) / std)[None])[0] * std + mean
    torch.testing.assert_close(torch.from_numpy(blend(fitted, axes)).permute(2, 0, 1), wanted, atol=2e-6, rtol=0)


class TestCommand:
    @staticmethod
    def run(*arguments: object) -> Result:
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_bakes_the_pocket_model_without_its_local_prompt(self, tmp_path: Path) -> None:
        done = self.run("--model", "pocket", "--global-only", "--no-score", "--out", tmp_path / "baked")

        assert "0.50/255 from the prompt at most" in done.output
        assert "29 images of 320 x 320" in done.output
        assert apply_axes(IMAGES[0], load_axes(tmp_path / "baked")).size == (320, 320)

    def test_refuses_a_local_prompt_that_nobody_left_out(self, tmp_path: Path) -> None:
        refused = self.run("--model", "pocket", "--out", tmp_path / "baked").exception

        assert isinstance(refused, VPPError)
        assert "vpp bake --global-only" in str(refused)

    def test_refuses_a_model_without_prompts(self, tmp_path: Path) -> None:
        refused = self.run("--model", "pocket-without-vpp", "--out", tmp_path / "baked").exception

        assert isinstance(refused, VPPError)
        assert "has no prompts: name those that save_vpp wrote" in str(refused)
