"""Hugging Face datasets of neutral rows: Arrow folders and parquet, by row and at once, images inside."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vpp_plugins import VPPError
from vpp_plugins.data import StoredData, open_data
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.sample import Issue, Locate, Sample, Talk

datasets = pytest.importorskip("datasets")

CUP = Locate("cup", ((1.0, 2.0, 30.0, 20.0),))
TURNS = [{"locate": "cup", "boxes": [[1.0, 2.0, 30.0, 20.0]]}, {"ask": "a", "answer": "b"}]
SAMPLE = Sample("s0", "0.png", 40, 24, (CUP, Talk("a", "b")))


def png(number: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 24), (number, 0, 0)).save(data, "PNG")
    return data.getvalue()


def rows(count: int = 5, **changes: Any) -> Any:
    made = [
        {"id": f"s{n}", "image": {"bytes": png(n), "path": f"{n}.png"}, "width": 40, "height": 24, "turns": TURNS}
        for n in range(count)
    ]
    features = {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "turns": datasets.List(
            {
                "locate": datasets.Value("string"),
                "boxes": datasets.List(datasets.List(datasets.Value("float64"))),
                "ask": datasets.Value("string"),
                "answer": datasets.Value("string"),
            }
        ),
    }
    made[0] |= changes
    if isinstance(changes.get("turns"), str):
        features["turns"] = datasets.Value("string")
        made = made[:1]
    return datasets.Dataset.from_list(made, features=datasets.Features(features))


def stored(path: Path) -> StoredData:
    return open_data(path, "datasets", cache=path.parent / "run", progress=False)


def colour(data: StoredData, number: int) -> Any:
    image = data[number].image
    assert image is not None
    return image.getpixel((0, 0))


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_an_arrow_folder_by_row_and_at_once(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "made", num_shards=2)
    samples, reading = stored(tmp_path / "made"), Reading(images_to=tmp_path / "out")
    assert samples[0].sample == SAMPLE
    assert [loaded.sample.id for loaded in samples] == [f"s{n}" for n in range(5)]
    assert [colour(samples, number) for number in (4, 0, 3)] == [(4, 0, 0), (0, 0, 0), (3, 0, 0)]
    assert list(read_samples(tmp_path / "made", "datasets", reading=reading)) == [loaded.sample for loaded in samples]
    assert (tmp_path / "out/3.png").read_bytes() == png(3)


def test_what_map_leaves_beside_the_data_is_no_data(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "made")
    datasets.load_from_disk(tmp_path / "made").map(lambda row: {"id": "other"})
    assert list((tmp_path / "made").glob("cache-*.arrow"))
    assert [loaded.sample.id for loaded in stored(tmp_path / "made")] == [f"s{n}" for n in range(5)]


def test_parquet(tmp_path: Path) -> None:
    rows().to_parquet(tmp_path / "made.parquet")
    samples = stored(tmp_path / "made.parquet")
    assert samples[0].sample == SAMPLE
    assert colour(samples, 2) == (2, 0, 0)


def test_turns_may_be_json_and_sizes_may_be_missing(tmp_path: Path) -> None:
    rows(turns=json.dumps(TURNS), width=None).save_to_disk(tmp_path / "made")
    assert [loaded.sample for loaded in stored(tmp_path / "made")] == [SAMPLE]


@pytest.mark.parametrize(
    ("changes", "issue"),
    [
        ({"image": None}, Issue.NO_IMAGE),
        ({"image": {"bytes": b"none", "path": "0.png"}, "width": None}, Issue.NO_IMAGE),
        ({"turns": []}, Issue.NO_TURNS),
        ({"turns": None}, Issue.BAD_FIELD),
        ({"turns": "{"}, Issue.BAD_FIELD),
    ],
)
def test_what_is_no_sample_is_counted(changes: dict[str, Any], issue: Issue, tmp_path: Path) -> None:
    rows(**changes).save_to_disk(tmp_path / "made")
    reading = Reading(images_to=tmp_path / "out")
    found = [sample.id for sample in read_samples(tmp_path / "made", "datasets", reading=reading)]
    assert reading.tally.counts == {issue: 1}
    assert "s0" not in found
    assert not (tmp_path / "0.png").exists()


def test_what_is_no_data_set_is_a_sentence(tmp_path: Path) -> None:
    rows().remove_columns("turns").save_to_disk(tmp_path / "other")
    with pytest.raises(VPPError, match="has no column 'turns', as neutral rows have; it has id, image, width, height"):
        stored(tmp_path / "other")
    datasets.DatasetDict({"train": rows(), "val": rows()}).save_to_disk(tmp_path / "splits")
    with pytest.raises(VPPError, match="it has splits, so name one of its folders: train, val"):
        stored(tmp_path / "splits")
    for name in ("a.arrow", "a.parquet"):
        (tmp_path / name).write_bytes(b"noise" * 9)
        with pytest.raises(VPPError, match="cannot be read as rows of a data set"):
            stored(tmp_path / name)


DAMAGED = """
import random, sys
from pathlib import Path
from vpp_plugins.data import open_data
from vpp_plugins.errors import VPPError
whole, folder, rng = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(0)
refused = 0
for number in range(int(sys.argv[3])):
    damaged = bytearray(whole)
    for _ in range(rng.choice((1, 4, 40))):
        at = rng.randrange(len(damaged))
        damaged[at : at + 4] = rng.choice((b"\\xff\\xff\\xff\\x7f", b"\\x00\\x00\\x00\\x00", rng.randbytes(4)))
    path = folder / f"{number}.arrow"
    path.write_bytes(damaged[: rng.choice((len(damaged), len(damaged) // 2))])
    try:
        list(open_data(path, "datasets", cache=folder, progress=False))
    except VPPError as error:
        refused += "\\n" not in str(error)
print(refused)
"""


@pytest.mark.parametrize(("files", "refused"), [(15, 4), pytest.param(60, 20, marks=pytest.mark.slow)])
def test_a_damaged_file_ends_in_a_sentence(files: int, refused: int, tmp_path: Path) -> None:
    """An offset beyond the file's end ended the process: Arrow trusts what it maps."""
    rows(50).save_to_disk(tmp_path / "made")
    (file,) = (tmp_path / "made").glob("*.arrow")
    command = [sys.executable, "-c", DAMAGED, str(file), str(tmp_path), str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > refused
