"""The page from a COCO file to a shared adapter, as a reader follows it in an empty folder."""

import json
import re
from pathlib import Path

import pytest

from examples.tutorial import run as tutorial
from vpp_plugins.data.scenes import SceneGenerator, Shapes, load_real_photos

PAGE = (tutorial.ROOT / "docs/coco.md").read_text()
IMAGES = 40


def write_coco(folder: Path) -> None:
    """Write 40 photographs and scenes with three expressions each as COCO has them, each one a category."""
    photographs, shapes = load_real_photos(), SceneGenerator(Shapes(), split="train", seed=0, size=320)
    scenes = [*photographs, *(shapes.scene(index) for index in range(IMAGES - len(photographs)))]
    names = list(dict.fromkeys(one.text for scene in scenes for one in scene.expressions[:3]))
    images, annotations = [], []
    (folder / "images").mkdir()
    for number, scene in enumerate(scenes, start=1):
        name = f"{number:012}.jpg"
        scene.image.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": scene.width, "height": scene.height})
        for one in scene.expressions[:3]:
            left, top, right, bottom = one.box_xyxy
            category = names.index(one.text) + 1
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category, "bbox": box})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    file = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(file))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_command_of_the_page_runs_in_an_empty_folder(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (recipe,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.toml").write_text(recipe)

    ran = tutorial.run_page(PAGE, tmp_path)

    assert re.search(r"^step 20/20  loss \d", ran, re.MULTILINE)
    assert re.search(r"B minus A: [+-]\d", ran)
    assert "<Grounding 'the dog'" in ran
    card = (tmp_path / "out/vpp/final/README.md").read_text()
    assert "## Scores" in card
    assert (tmp_path / "boxed.png").is_file()
    assert len((tmp_path / "boxes.jsonl").read_text().splitlines()) == IMAGES
