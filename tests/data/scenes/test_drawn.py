"""Scenes drawn for training: functions of the seed and their number."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vpp_plugins.boxes import ImageMeta
from vpp_plugins.data.sample import Describe, Locate
from vpp_plugins.data.scenes import drawn
from vpp_plugins.data.scenes.drawn import LOCATED, SIZE, DrawnScenes
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.errors import VPPError
from vpp_plugins.train.data import load_data
from vpp_plugins.train.recipe import Recipe

COUNT = 60


@pytest.fixture
def scenes() -> DrawnScenes:
    return DrawnScenes(Shapes(), COUNT)


def recipe(folder: Path, **changes: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "model": "pocket",
            "data": str(folder),
            "data_format": "drawn-scenes",
            "max_samples": COUNT,
            "output_dir": "out",
            **changes,
        }
    )


def pixels(scenes: DrawnScenes, number: int) -> bytes:
    image = scenes[number].image
    assert image is not None
    return image.tobytes()


def no_images(folder: Any, progress: Any) -> Any:
    raise VPPError("There is no network.")


def test_a_sample_depends_on_its_number_alone(scenes: DrawnScenes) -> None:
    forwards = [(scenes[n].sample, pixels(scenes, n)) for n in range(5, 12)]
    again = DrawnScenes(Shapes(), COUNT)
    backwards = [(again[n].sample, pixels(again, n)) for n in reversed(range(5, 12))]

    assert forwards == backwards[::-1]
    assert len({image for _, image in forwards}) == len(forwards)


def test_another_seed_gives_other_scenes(scenes: DrawnScenes) -> None:
    assert pixels(DrawnScenes(Shapes(), COUNT, seed=1), 20) != pixels(scenes, 20)


def test_a_sample_locates_and_describes_what_its_image_shows(scenes: DrawnScenes) -> None:
    for number in range(10, 30):
        sample, image = scenes[number].sample, scenes[number].image
        located = [turn for turn in sample.turns if isinstance(turn, Locate)]
        described = {turn.boxes[0]: turn.description for turn in sample.turns if isinstance(turn, Describe)}

        assert image is not None
        assert image.size == (sample.width, sample.height) == (SIZE, SIZE)
        assert 1 <= len(located) <= LOCATED
        assert {turn.boxes[0] for turn in located} <= described.keys()
        for box in described:
            assert 0 <= box[0] < box[2] <= SIZE
            assert 0 <= box[1] < box[3] <= SIZE


def test_the_first_tenth_is_easy(scenes: DrawnScenes) -> None:
    objects = [sum(isinstance(turn, Describe) for turn in loaded.sample.turns) for loaded in scenes]

    assert max(objects[: COUNT // 10]) <= 3
    assert max(objects[COUNT // 10 :]) > 3


def test_it_is_a_sequence_of_so_many(scenes: DrawnScenes) -> None:
    assert len(scenes) == len(list(scenes)) == COUNT
    assert scenes[-1] == scenes[COUNT - 1]
    with pytest.raises(IndexError):
        scenes[COUNT]


def test_a_worker_gets_the_same(scenes: DrawnScenes) -> None:
    copied = pickle.loads(pickle.dumps(scenes))

    assert copied[7] == scenes[7]
    assert copied.fingerprint() == scenes.fingerprint()


@pytest.mark.parametrize("other", [{"count": COUNT + 1}, {"seed": 1}, {"split": "val"}])
def test_the_fingerprint_tells_other_scenes(scenes: DrawnScenes, other: dict[str, Any]) -> None:
    assert DrawnScenes(Shapes(), **{"count": COUNT, **other}).fingerprint() != scenes.fingerprint()


def test_without_the_cut_outs_a_recipe_gets_shapes_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawn, "fetch_assets", no_images)

    data = load_data(recipe(tmp_path / "none", seed=3))

    assert data.fingerprint() == DrawnScenes(Shapes(), COUNT, seed=3).fingerprint()
    assert "There is no network. The training goes on with shapes" in " ".join(capsys.readouterr().err.split())


def test_how_many_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=r"max_samples = 12000"):
        load_data(replace(recipe(tmp_path), max_samples=None))
    with pytest.raises(VPPError, match=r"1 or more scenes, but is 0"):
        DrawnScenes(Shapes(), 0)


def test_no_other_frame_than_the_images(scenes: DrawnScenes) -> None:
    assert scenes[0].sample.meta == ImageMeta((SIZE, SIZE))
