"""The scene benchmark as a Hugging Face dataset."""

from pathlib import Path
from typing import Any

from vpp_plugins.data.scenes.folder import load_scenes
from vpp_plugins.errors import VPPError


def scenes_as_dataset(folder: str | Path) -> Any:
    """Return a `datasets.Dataset` of a folder that `vpp data scenes` wrote: one row per expression.

    Columns: `id`, `image` (decoded when asked for), `width`, `height`, `expression`, `kind`, `box_xyxy` (pixels) and
    `objects`, the other things in the image with their boxes. Nothing is copied but the table: the images stay in
    the folder. Raises VPPError for a folder that is no finished scene folder, or where datasets is not installed.
    """
    try:
        from datasets import Dataset, Features, Image, List, Value
    except ModuleNotFoundError:
        raise VPPError("A Hugging Face dataset needs datasets: pip install 'vpp-plugins[eval]'.") from None
    scenes = load_scenes(folder)
    rows = [
        {
            "id": f"{record['key']}-{number}",
            "image": str(scenes.folder / record["image"]),
            "width": record["width"],
            "height": record["height"],
            "expression": expression["text"],
            "kind": expression["kind"],
            "box_xyxy": expression["box_xyxy"],
            "objects": [{"name": item["name"], "box_xyxy": item["box_xyxy"]} for item in record["objects"]],
        }
        for record in scenes.records
        for number, expression in enumerate(record["expressions"])
    ]
    box = List(Value("float64"), length=4)
    features = Features(
        {
            "id": Value("string"),
            "image": Image(),
            "width": Value("int32"),
            "height": Value("int32"),
            "expression": Value("string"),
            "kind": Value("string"),
            "box_xyxy": box,
            "objects": List({"name": Value("string"), "box_xyxy": box}),
        }
    )
    return Dataset.from_list(rows, features=features)
