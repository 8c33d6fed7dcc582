import random
from collections import Counter
from hashlib import sha256

import pytest
from PIL import Image

from vpp_plugins.data.scenes.assets import Assets
from vpp_plugins.data.scenes.generator import SCENES_VERSION, SMALLEST_SIDE, SPLITS, Scene, SceneGenerator
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.data.scenes.source import Cutout
from vpp_plugins.errors import VPPError


def fingerprint(scene: Scene) -> str:
    return sha256(scene.image.tobytes() + repr((scene.key, scene.objects, scene.expressions)).encode()).hexdigest()


def generator(split: str = "train", seed: int = 0, **settings: int) -> SceneGenerator:
    return SceneGenerator(Shapes(), split=split, seed=seed, size=settings.pop("size", 128), **settings)


def test_a_scene_depends_on_its_index_and_not_on_the_order() -> None:
    """Nor on the global random numbers."""
    forward, backward = generator(), generator()
    random.seed(1)
    first = [fingerprint(forward.scene(index)) for index in range(8)]
    random.seed(2)
    second = [fingerprint(backward.scene(index)) for index in reversed(range(8))]
    assert first == second[::-1]
    assert len(set(first)) == 8


def test_splits_and_seeds_are_different_streams() -> None:
    scenes = [fingerprint(generator(split, seed).scene(0)) for split in SPLITS for seed in (0, 1)]
    assert len(set(scenes)) == len(scenes)


def test_the_content_of_this_version_does_not_change() -> None:
    """A change here needs a new SCENES_VERSION. The numbers are this project's own: what version 1 gave at first."""
    make = generator(size=320)
    texts = [expression.text for index in range(20) for expression in make.scene(index).expressions]
    assert SCENES_VERSION == 1
    assert sha256("\n".join(texts).encode()).hexdigest()[:16] == "a787c0bf7f998953"


def test_numbers_of_objects_and_of_distractors() -> None:
    make = generator()
    scenes = [make.scene(index) for index in range(150)]
    assert set(Counter(len(scene.objects) for scene in scenes)) == {3, 4, 5, 6}
    with_twins = sum(len({item.name for item in scene.objects}) < len(scene.objects) for scene in scenes)
    assert 0.55 < with_twins / len(scenes) < 0.78
    assert all(scene.expressions for scene in scenes)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_curriculum_can_fix_the_number_of_objects(split: str, count: int) -> None:
    make = generator(split, min_objects=count, max_objects=count)
    assert all(len(make.scene(index).objects) == count for index in range(5))


def test_boxes_lie_in_the_image_and_have_the_promised_size() -> None:
    make = generator(size=320)
    for index in range(30):
        scene = make.scene(index)
        assert scene.image.size == (scene.width, scene.height) == (320, 320)
        for item in scene.objects:
            left, top, right, bottom = item.box_xyxy
            assert 0 <= left < right <= 320
            assert 0 <= top < bottom <= 320
            assert (SMALLEST_SIDE - 0.01) * 320 <= item.longest_side <= 0.51 * 320


class RedTile:
    """One noun: a red tile inside a wide transparent rim, on white. So the true box can be read off the pixels."""

    def names(self, heldout: bool) -> tuple[str, ...]:
        return ("tile",)

    def cutouts(self, name: str) -> tuple[Cutout, ...]:
        return (Cutout("tile", None, "tile", 80, 60),)

    def clash(self, first: str, second: str) -> bool:
        return False

    def countable(self, name: str) -> bool:
        return True

    def render(self, cutout: Cutout, longest_side: int) -> Image.Image:
        image = Image.new("RGBA", (longest_side, longest_side * 3 // 4))
        image.paste((255, 0, 0, 255), (9, 5, image.width - 4, image.height - 7))
        return image

    def background(self, rng: random.Random, heldout: bool, size: int) -> Image.Image:
        return Image.new("RGB", (size, size), "white")

    def digest(self) -> str:
        return "tile"


@pytest.mark.parametrize("index", range(6))
def test_the_box_is_the_visible_extent(index: int) -> None:
    make = SceneGenerator(RedTile(), split="train", seed=0, size=200, min_objects=1, max_objects=1)
    scene = make.scene(index)
    red, green, _ = scene.image.split()
    is_red = [255 * (r > 150 and g < 60) for r, g in zip(red.tobytes(), green.tobytes(), strict=True)]
    extent = Image.frombytes("L", scene.image.size, bytes(is_red)).getbbox()
    assert scene.objects[0].box_xyxy == extent
    assert [text.box_xyxy for text in scene.expressions] == [extent]


def test_photographs_keep_to_their_side_of_the_split(assets: Assets) -> None:
    for split in SPLITS:
        make = SceneGenerator(assets, split=split, seed=0, size=128)
        names = set(make.source.names(heldout=split == "heldout"))
        for index in range(12):
            present = {item.name for item in make.scene(index).objects}
            assert present <= names
            assert not any(make.source.clash(one, other) for one in present for other in present if one != other)


def test_things_that_cannot_be_counted_come_alone(assets: Assets) -> None:
    make = SceneGenerator(assets, split="heldout", seed=0, size=128)
    counts = [Counter(item.name for item in make.scene(index).objects)["pliers"] for index in range(80)]
    assert set(counts) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"split": "tain"}, "Did you mean 'train'"),
        ({"min_objects": 5, "max_objects": 4}, "min_objects=5 and max_objects=4"),
        ({"min_objects": 0}, "1 to 8 objects"),
        ({"size": 32}, "at least 96 pixels"),
        ({"distractors": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(VPPError, match=sentence):
        SceneGenerator(Shapes(), **{"split": "train", "seed": 0, **settings})


def test_sets_ask_for_all_of_a_kind_and_for_what_is_not_there() -> None:
    make = generator("sets", size=320)
    kinds: Counter[str] = Counter()
    for scene in map(make.scene, range(40)):
        for one in scene.expressions:
            kinds[one.kind] += 1
            *attribute, name = one.text.split()[1:] or [one.text]
            alike = [item for item in scene.objects if item.name == name]
            if one.kind == "several":
                assert not attribute
                assert one.boxes_xyxy == tuple(item.box_xyxy for item in alike)
                assert len(alike) >= 2
            elif one.kind == "none":
                assert one.boxes_xyxy == ()
                assert not alike if not attribute else all(item.attribute not in (None, *attribute) for item in alike)
            else:
                assert one.box_xyxy == scene.objects[one.object].box_xyxy
    assert kinds["several"] > 20
    assert kinds["none"] >= 40
    assert sum(kinds.values()) - kinds["several"] - kinds["none"] == 80


def test_an_expression_of_several_has_no_one_box() -> None:
    several = next(one for one in generator("sets").scene(0).expressions if one.kind == "none")
    with pytest.raises(ValueError, match="not enough values"):
        _ = several.box_xyxy
