import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.formats.layouts import EVALUATION, gpt, human, lines, whole
from vpp_plugins import VPPError
from vpp_plugins.data.convert import Conversion, convert
from vpp_plugins.data.doctor.doctor import examine
from vpp_plugins.data.formats import read_samples
from vpp_plugins.data.sample import Issue
from vpp_plugins.data.split import Split, head, split_data

SHARES = {"val": 0.2, "test": 0.1}


def rows(count: int = 40, images: int = 20) -> list[dict[str, Any]]:
    return [{**EVALUATION, "image": f"{number % images}.png", "sent": f"thing {number}"} for number in range(count)]


def split(source: Path, out: Path, **options: Any) -> Split:
    options = {"source_format": "eval-jsonl", "shares": SHARES, "progress": False, **options}
    return split_data(source, out, **options)


def images_of(file: Path) -> set[str]:
    return {json.loads(line)["image"] for line in file.read_text().splitlines()}


def test_whole_images_go_to_each_side_in_its_share(tmp_path: Path) -> None:
    done = split(lines(tmp_path / "all.jsonl", *rows()), tmp_path / "parts")
    sides = {name: images_of(tmp_path / "parts" / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert {name: len(found) for name, found in sides.items()} == {"train": 14, "val": 4, "test": 2} == done.images
    assert set.union(*sides.values()) == {f"{number}.png" for number in range(20)}
    assert {name: side.samples for name, side in done.sides.items()} == {"train": 28, "val": 8, "test": 4}
    assert done.compared == 0


def test_the_seed_decides_and_the_order_of_the_rows_does_not(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(rows(), 40)
    split(lines(tmp_path / "a.jsonl", *rows()), tmp_path / "a")
    split(lines(tmp_path / "b.jsonl", *shuffled), tmp_path / "b")
    split(tmp_path / "a.jsonl", tmp_path / "c", seed=1)
    a, b, c = (images_of(tmp_path / name / "val.jsonl") for name in "abc")
    assert a == b != c


def test_identical_images_under_other_names_stay_on_one_side(tmp_path: Path) -> None:
    """Ten photographs, each under two names: without their bytes half of them would leak."""
    for number in range(20):
        Image.new("RGB", (64, 48), (number % 10 * 20, 0, 0)).save(tmp_path / f"{number}.png")
    sized = [row | {"width": 64, "height": 48, "bbox": [1, 1, 9, 9]} for row in rows()]
    source = lines(tmp_path / "all.jsonl", *sized)
    for seed in range(5):
        done = split(source, tmp_path / f"parts{seed}", seed=seed, images=tmp_path)
        sides = [{int(name[:-4]) % 10 for name in images_of(file)} for file in done.files.values()]
        assert sorted(number for side in sides for number in side) == list(range(10))
        assert done.compared == 20


def test_coco_goes_by_its_numbers(tmp_path: Path) -> None:
    names = ["train2017/000000000009.jpg", "COCO_train2014_000000000009.jpg", "a.jpg"]
    source = lines(tmp_path / "all.jsonl", *({**EVALUATION, "image": name} for name in names))
    for seed in range(5):
        done = split(source, tmp_path / f"parts{seed}", seed=seed, shares={"val": 0.5})
        assert sorted(map(len, map(images_of, done.files.values()))) == [1, 2]


def test_dialogues_without_an_image_are_split_too(tmp_path: Path) -> None:
    said = [{"id": number, "conversations": [human("hello"), gpt(f"hi {number}")]} for number in range(10)]
    done = split(whole(tmp_path / "all.json", said), tmp_path / "parts", source_format="vpp-sft", shares={"val": 0.3})
    assert [side.samples for side in done.sides.values()] == [7, 3]
    assert done.files["val"].name == "val.json"
    assert done.images == {"train": 0, "val": 0}


@pytest.mark.parametrize("shares", [{}, {"val": 1.0}, {"val": 0.5, "test": 0.5}, {"val": -0.1}, {"val": float("nan")}])
def test_shares_that_leave_nothing_are_refused(tmp_path: Path, shares: dict[str, float]) -> None:
    with pytest.raises(VPPError, match="together below 1"):
        split(lines(tmp_path / "all.jsonl", *rows()), tmp_path / "parts", shares=shares)


@pytest.mark.parametrize("images", [1, 2])
def test_fewer_images_than_sides_are_refused_and_nothing_is_written(tmp_path: Path, images: int) -> None:
    source = lines(tmp_path / "all.jsonl", *rows(images=images))
    with pytest.raises(VPPError, match=f"needs as many different images, and there are {images}"):
        split(source, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_each_side_gets_one_image_at_least(tmp_path: Path) -> None:
    source = lines(tmp_path / "all.jsonl", *rows(images=3))
    for shares in ({"val": 0.01, "test": 0.01}, {"val": 0.9, "test": 0.09}):
        done = split(source, tmp_path / str(shares["val"]), shares=shares)
        assert done.images == {"train": 1, "val": 1, "test": 1}


def test_no_usable_row_and_a_target_that_exists_end_in_one_sentence(tmp_path: Path) -> None:
    bad = lines(tmp_path / "bad.jsonl", {**EVALUATION, "bbox": [1, 2]})
    said = r"holds no row that can be used: .*wrong count.* vpp doctor .*bad.jsonl --format eval-jsonl"
    with pytest.raises(VPPError, match=said):
        split(bad, tmp_path / "parts")
    with pytest.raises(VPPError, match=said):
        list(head(bad, "eval-jsonl", 3))
    source = lines(tmp_path / "all.jsonl", *rows())
    split(source, tmp_path / "parts")
    with pytest.raises(VPPError, match="exists: name another file"):
        split(source, tmp_path / "parts")


def test_head_gives_the_first_samples(tmp_path: Path) -> None:
    source = lines(tmp_path / "all.jsonl", *rows())
    found = list(head(source, "eval-jsonl", 3))
    assert found == list(read_samples(source, "eval-jsonl"))[:3]
    assert found[1].readable() == f"{found[1].id}: 1.png, 640 x 480\n    locate 'thing 1': [64, 96, 320, 384]"


@pytest.mark.parametrize("names", [["train"], ["TRAIN"], ["val", "Val"], ["../val"], ["a/b"], [""]])
def test_two_sides_never_have_one_file(names: list[str], tmp_path: Path) -> None:
    """A side called train took the place of what was left to train on."""
    rows = [{"image": f"{number}.png", "turns": [{"ask": "What?", "answer": "That."}]} for number in range(9)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(VPPError, match="need names of their own"):
        split_data(tmp_path / "in.jsonl", tmp_path / "out", source_format="neutral", shares=dict.fromkeys(names, 0.3))
    with pytest.raises(VPPError, match="is a file, and the sides go into a folder"):
        split_data(tmp_path / "in.jsonl", tmp_path / "in.jsonl", source_format="neutral", shares={"val": 0.3})
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def shards(folder: Path) -> Path:
    """Four samples of four images, and the first again, as shards."""
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48), (number * 20, 0, 0)).save(folder / f"{number}.png")
    sized = [row | {"width": 64, "height": 48, "bbox": [1, 1, 9, 9]} for row in rows(4, 4)]
    source = lines(folder / "all.jsonl", *sized, sized[0])
    options: dict[str, Any] = {"target_format": "webdataset", "images": folder, "progress": False}
    convert(source, folder / "in", source_format="eval-jsonl", **options)
    return folder / "in"


def test_shards_are_split_into_shards_and_fixed_as_shards(tmp_path: Path) -> None:
    """They asked for the folder of images that lie in them."""
    source = shards(tmp_path / "shards")
    done = split(source, tmp_path / "parts", source_format="webdataset", shares={"val": 0.25})
    assert (done.images, done.folder) == ({"train": 3, "val": 1}, None)
    read = {name: [one.image for one in read_samples(file, "webdataset")] for name, file in done.files.items()}
    assert sorted(read["train"] + read["val"]) == ["0.png", "0.png", "1.png", "2.png", "3.png"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["train", "val"]

    found = examine(source, "webdataset", progress=False)
    assert [finding.fix for finding in found.findings] == [f"vpp doctor {source} --format webdataset --fix in-fixed"]
    assert found.cure.write(tmp_path / "in-fixed", progress=False).samples == 4
    assert examine(tmp_path / "in-fixed", "webdataset", progress=False).healthy


def test_images_that_lie_in_the_data_are_written_where_the_sides_hold_none(tmp_path: Path) -> None:
    source = shards(tmp_path / "shards")
    options: dict[str, Any] = {"source_format": "webdataset", "target_format": "neutral", "shares": {"val": 0.25}}
    done = split(source, tmp_path / "parts", **options)
    assert done.folder == tmp_path / "parts/images"
    assert all((done.folder / name).is_file() for file in done.files.values() for name in images_of(file))


def test_an_image_folder_that_holds_others_of_the_same_names_costs_no_sample(tmp_path: Path) -> None:
    """Images got new names there after their sides were chosen by the old ones: 44 of 66 samples were written."""
    source = shards(tmp_path / "shards")
    (tmp_path / "parts/images").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "parts/images" / name)
    options: dict[str, Any] = {"source_format": "webdataset", "target_format": "neutral", "shares": {"val": 0.25}}
    done = split(source, tmp_path / "parts", **options)
    assert sum(side.samples for side in done.sides.values()) == 5
    assert set.union(*map(images_of, done.files.values())) == {"0-2.png", "1-2.png", "2.png", "3.png"}
    assert done.tally.counts[Issue.IMAGE_RENAMED] == 3


def test_a_source_that_changes_between_its_readings_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lines(tmp_path / "all.jsonl", *rows())

    def cut(*given: Any, **options: Any) -> Conversion:
        lines(source, *rows(19))
        return convert(*given, **options)

    monkeypatch.setattr("vpp_plugins.data.split.convert", cut)
    with pytest.raises(VPPError, match=r"1 images of .* are on no side, '19.png' for one"):
        split(source, tmp_path / "parts")


def test_an_earlier_side_that_would_stay_is_refused(tmp_path: Path) -> None:
    """Its images were on the other sides then."""
    source = lines(tmp_path / "all.jsonl", *rows())
    split(source, tmp_path / "parts")
    before = {file: file.read_bytes() for file in (tmp_path / "parts").iterdir()}
    with pytest.raises(VPPError, match=r"test.jsonl' is a side of an earlier split .*write it too \(--test\)"):
        split(source, tmp_path / "parts", shares={"val": 0.4}, seed=3, overwrite=True)
    assert {file: file.read_bytes() for file in (tmp_path / "parts").iterdir()} == before
    split(source, tmp_path / "parts", seed=3, overwrite=True)


@pytest.mark.parametrize("inside", ["000000.tar", "{000000..000000}.tar", ""])
def test_shards_in_a_folder_that_would_be_written_are_kept(tmp_path: Path, inside: str) -> None:
    """With overwriting they were gone before the second side was read."""
    (tmp_path / "parts").mkdir()
    folder = shards(tmp_path / "shards").rename(tmp_path / "parts/val")
    before = (folder / "000000.tar").read_bytes()
    options: dict[str, Any] = {"source_format": "webdataset", "shares": {"val": 0.25}, "overwrite": True}
    with pytest.raises(VPPError, match="val' is read and cannot be written at the same time"):
        split(folder / inside, tmp_path / "parts", **options)
    assert [path.read_bytes() for path in folder.iterdir()] == [before]
