"""datasets' own `load_dataset`, from JSON and from parquet, and what it gives read as training data."""

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from vpp_plugins.data import Locate, open_data

pytestmark = pytest.mark.slow


def test_what_it_loads_and_filters_is_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = []
    for number, name in enumerate(("cup", "tin", "jug")):
        Image.new("RGB", (40, 20), (number, 0, 0)).save(tmp_path / f"{name}.png")
        turns = [{"locate": name, "boxes": [[1.0, 2.0, 11.0, 12.0 + number]]}]
        lines.append(json.dumps({"id": name, "image": str(tmp_path / f"{name}.png"), "turns": turns}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    loaded.cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")
    again = datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "rows.parquet")})["train"]
    again.filter(lambda row: row["id"] != "tin").save_to_disk(tmp_path / "kept")

    data = open_data(tmp_path / "kept", "datasets", cache=tmp_path / "run", progress=False)
    assert [one.sample.id for one in data] == ["cup", "jug"]
    assert data[1].sample.turns == (Locate("jug", ((1.0, 2.0, 11.0, 14.0),)),)
    assert data[1].image is not None
    assert data[1].image.getpixel((0, 0)) == (2, 0, 0)
