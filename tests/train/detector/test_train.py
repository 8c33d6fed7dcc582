"""Pretraining the detector: it learns, goes on where it was killed, and the prompts load what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.tiny import tiny_config, tiny_llava
from vpp_plugins import LocalVPPConfig, VPPConfig, VPPError, attach_vpp
from vpp_plugins.cli.train_detector import train_detector as command
from vpp_plugins.data.sample import Describe, Locate, Sample
from vpp_plugins.prompts.generators import DetectionHeads, build_detr, load_detr_weights
from vpp_plugins.train.detector.boxed_images import gather
from vpp_plugins.train.detector.loss import Objects
from vpp_plugins.train.detector.train import DetectorScore, DetectorTask, train_detector

OPTIONS: dict[str, Any] = {
    "backbone": "resnet10t",
    "width": 32,
    "heads": 4,
    "feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "dropout": 0.0,
}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images with a red and a blue rectangle each, and their boxes as COCO keeps them."""
    folder = tmp_path_factory.mktemp("boxes")
    images, annotations = [], []
    for number in range(6):
        image = Image.new("RGB", (64, 48), (120, 120, 120))
        for category, colour in enumerate(COLOURS.values(), start=1):
            x, y = (5 + 7 * number) % 36, 4 + 22 * ((number + category) % 2)
            ImageDraw.Draw(image).rectangle((x, y, x + 19, y + 15), fill=colour)
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "bbox": [x, y, 20, 16]}
            )
        image.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, start=1)]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def run(coco: Path, out: Path, **changes: Any) -> DetectorScore:
    settings: dict[str, Any] = {
        "num_queries": 4,
        "generator_options": OPTIONS,
        "image_size": 64,
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    return train_detector(coco, out, **settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_finds_what_it_was_shown(self, coco: Path, tmp_path: Path) -> None:
        start = run(coco, tmp_path / "start", max_steps=1)
        score = run(
            coco, tmp_path / "out", max_steps=150, save_steps=1000, per_device_train_batch_size=6, backbone_lr=1e-3
        )
        assert start.recall < 0.5
        assert score.recall > 0.8
        assert score.recall_named > 0.6
        about = json.loads((tmp_path / "out" / "detector.json").read_text())
        assert about["classes"] == ["blue", "red"]
        assert about["recall"] == score.recall

    def test_goes_on_to_the_same_weights(self, coco: Path, tmp_path: Path) -> None:
        """Killed after its first checkpoint, also while it wrote the second, it ends with the same bits."""
        run(coco, tmp_path / "whole")
        run(coco, tmp_path / "killed")
        killed = tmp_path / "killed"
        (killed / "checkpoint-4" / "trainer_state.json").write_text('{"global_')
        for name in ("model.safetensors", "detector.json"):
            (killed / name).unlink()

        with pytest.raises(VPPError, match="holds an earlier run"):
            run(coco, killed)
        run(coco, killed, resume=True)

        expected, found = weights(tmp_path / "whole"), weights(killed)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())

    def test_a_damaged_checkpoint_is_refused(self, coco: Path, tmp_path: Path) -> None:
        """Without its optimizer's state it went on to other weights."""
        run(coco, tmp_path)
        (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
        with pytest.raises(VPPError, match=r"optimizer\.pt' is missing"):
            run(coco, tmp_path, resume=True)

    def test_a_finished_run_takes_no_step_more(self, coco: Path, tmp_path: Path) -> None:
        run(coco, tmp_path)
        before = weights(tmp_path)
        run(coco, tmp_path, resume=True)
        assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())

    def test_trains_the_backbone_at_a_rate_of_its_own(self, coco: Path, tmp_path: Path) -> None:
        run(coco, tmp_path / "a", max_steps=1)
        run(coco, tmp_path / "b", backbone_lr=0.0)
        first, later = weights(tmp_path / "a"), weights(tmp_path / "b")
        assert not torch.equal(first["query_embed.weight"], later["query_embed.weight"])
        run(coco, tmp_path / "c", max_steps=1, backbone_lr=0.0)
        kept = weights(tmp_path / "c")
        assert all(torch.equal(kept[name], later[name]) for name in kept if name.startswith("backbone."))


class TestWeights:
    def test_the_prompts_load_them(self, coco: Path, tmp_path: Path) -> None:
        run(coco, tmp_path, max_steps=1)
        local = LocalVPPConfig(
            num_queries=4, image_size=64, projector_size=16, generator_options=OPTIONS, weights=str(tmp_path)
        )
        model: Any = attach_vpp(tiny_llava(), VPPConfig(global_vpp=tiny_config().global_vpp, local_vpp=local))
        written = weights(tmp_path)
        state = model.vpp.local_vpp.generator.state_dict()
        assert state.keys() < written.keys()
        assert all(torch.equal(value, written[name]) for name, value in state.items())
        assert {name.split(".")[0] for name in written.keys() - state.keys()} == {"class_embed", "bbox_embed"}

    def test_it_begins_with_given_ones(self, coco: Path, tmp_path: Path) -> None:
        run(coco, tmp_path / "first", max_steps=1)
        run(coco, tmp_path / "second", max_steps=1, weights=tmp_path / "first", learning_rate=0.0, backbone_lr=0.0)
        first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
        assert all(
            torch.equal(first[name], second[name]) for name in first if "_embed.l" not in name and "class" not in name
        )

    def test_another_size_is_refused_before_training(self, coco: Path, tmp_path: Path) -> None:
        run(coco, tmp_path / "first", max_steps=1)
        with pytest.raises(VPPError, match=r"does not fit: .* Build the DETR"):
            run(coco, tmp_path / "second", weights=tmp_path / "first", num_queries=5)


class TestTask:
    def test_mirrored_images_have_mirrored_boxes(self) -> None:
        """Where every image is its own mirror image, flipping may change nothing but the boxes' side."""
        seen: list[Objects] = []
        task = DetectorTask(build_detr(num_queries=4, **OPTIONS), DetectionHeads(32, 2)).train()
        pixels = torch.rand(8, 3, 64, 64) + 1
        boxes = torch.tensor([0.25, 0.5, 0.1, 0.2]).repeat(8, 1, 1)

        import vpp_plugins.train.detector.train as module

        original, images = module.detection_loss, []
        task.detector.backbone.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
        module.detection_loss = lambda found, objects: seen.append(objects) or original(found, objects)  # type: ignore[func-returns-value]
        try:
            task(pixels, torch.zeros(8, 1, dtype=torch.int64), boxes)
        finally:
            module.detection_loss = original
        for row in range(8):
            flipped = torch.equal(images[0][row], pixels[row].flip(-1))
            assert flipped or torch.equal(images[0][row], pixels[row])
            assert float(seen[0].boxes_cxcywh[row, 0, 0]) == (0.75 if flipped else 0.25)
        assert {float(side) for side in seen[0].boxes_cxcywh[:, 0, 0]} == {0.25, 0.75}

    def test_padding_takes_no_part(self) -> None:
        task = DetectorTask(build_detr(num_queries=4, **OPTIONS), DetectionHeads(32, 1), flip=False).eval()
        pixels = torch.randn(1, 3, 64, 64)
        pixels[..., 32:] = 0
        classes, boxes = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1, 4), 0.5)
        masked = task(pixels, classes, boxes)["loss"]
        task.mask_padding = False
        assert not torch.equal(task(pixels, classes, boxes)["loss"], masked)


class TestData:
    def test_samples_of_one_image_come_together_and_boxes_once(self) -> None:
        box, other = (1.0, 2.0, 30.0, 40.0), (5.0, 5.0, 9.0, 9.0)
        samples = [
            Sample("0", "a.png", 64, 48, (Locate("the cup", (box,)), Describe((other,), "a spoon"))),
            Sample("1", "b.png", 64, 48, (Locate("cup", ()),)),
            Sample("2", "a.png", 64, 48, (Locate("a red cup", (box,)), Locate("spoon", (other,)))),
        ]
        (image,) = gather(samples, one_class=True)
        assert (image.boxes, image.names) == ((box, other), ("object", "object"))
        assert len(gather(samples, one_class=False)[0].boxes) == 3

    def test_missing_images_are_named(self, coco: Path, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"6 of 6 images are not in .*0\.png, 1\.png, 2\.png"):
            run(coco, tmp_path / "out", images=tmp_path)

    def test_no_box_is_no_data(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.json"
        path.write_text('{"images": [], "annotations": [], "categories": []}')
        with pytest.raises(VPPError, match="holds no box to train a detector on"):
            run(path, tmp_path / "out")

    def test_expressions_are_no_categories(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coco: Path) -> None:
        monkeypatch.setattr("vpp_plugins.train.detector.boxed_images.MOST_CLASSES", 1)
        with pytest.raises(VPPError, match="one-class"):
            run(coco, tmp_path / "out")

    def test_names_that_only_the_held_out_data_know_are_refused(self, coco: Path, tmp_path: Path) -> None:
        other = coco.with_name("other.json")
        other.write_text(coco.read_text().replace('"red"', '"green"'))
        with pytest.raises(VPPError, match="'green'"):
            run(coco, tmp_path / "out", eval_data=other)

    def test_unknown_settings_are_named(self, coco: Path, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="max_stepz"):
            run(coco, tmp_path / "out", max_stepz=3)


class TestCommand:
    @pytest.fixture
    def app(self) -> Any:
        import typer

        app = typer.Typer()
        app.command()(command)
        return app

    def test_trains_and_prints_the_recall(self, app: Any, coco: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = [str(coco), "--out", str(out), "--steps", "1", "--image-size", "64", "--queries", "4"]
        arguments += ["--options", json.dumps(OPTIONS), "--workers", "0", "--batch-size", "3"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "recall at IoU 0.5:" in result.output
        detr = build_detr(num_queries=4, **OPTIONS)
        load_detr_weights(detr, out)

    def test_options_that_are_no_json(self, app: Any, coco: Path, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, [str(coco), "--out", str(tmp_path / "out"), "--options", "backbone=x"])
        assert isinstance(result.exception, VPPError)
