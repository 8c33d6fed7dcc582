import json
from pathlib import Path

import pytest

from vpp_plugins import VPPError
from vpp_plugins.data.hf import scenes_as_dataset
from vpp_plugins.data.scenes.folder import load_scenes, write_scenes
from vpp_plugins.data.scenes.shapes import Shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(
        tmp_path_factory.mktemp("scenes") / "val", 4, 0, "val", source=Shapes(), size=96, progress=False
    )


def test_a_row_per_expression_with_its_image(folder: Path) -> None:
    dataset = scenes_as_dataset(folder)
    rows = [(scene, expression) for scene in load_scenes(folder) for expression in scene.expressions]

    assert len(dataset) == len(rows)
    for row, (scene, expression) in zip(dataset, rows, strict=True):
        assert row["expression"] == expression.text
        assert row["box_xyxy"] == list(expression.box_xyxy)
        assert row["kind"] == expression.kind
        assert row["image"].convert("RGB").tobytes() == scene.image.tobytes()
        assert [item["box_xyxy"] for item in row["objects"]] == [list(item.box_xyxy) for item in scene.objects]
        assert (row["width"], row["height"]) == scene.image.size


def test_ids_are_those_of_the_neutral_samples(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    assert scenes_as_dataset(folder)["id"][0] == f"{records[0]['key']}-0"


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="holds no manifest"):
        scenes_as_dataset(tmp_path)
