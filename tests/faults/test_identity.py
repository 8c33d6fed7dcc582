"""Ids, names and keys that repeat: the second thing never gets the first's image or boxes."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vpp_plugins.data import Issue, convert
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.record import ImageSizes
from vpp_plugins.data.same_images import groups_of_images, shared_images
from vpp_plugins.errors import VPPError


def png(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def coco(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> Path:
    rows = {
        "images": [{"id": i, "file_name": name, "width": w, "height": h} for i, name, w, h in images],
        "annotations": [
            {"id": i, "image_id": image, "category_id": c, "bbox": box} for i, image, c, box in annotations
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
    path.write_text(json.dumps(rows))
    return path


def found(path: Path, name: str = "coco") -> tuple[list[tuple[str, str]], Reading]:
    reading = Reading()
    read = read_samples(path, name, reading=reading)
    return [(sample.image, turn.expression) for sample in read for turn in sample.located()], reading


BOXES = [(1, 1, 1, [1, 2, 3, 4]), (2, 2, 1, [5, 6, 7, 8])]


def test_two_images_of_one_id_mean_neither(tmp_path: Path) -> None:
    images = [(1, "a.png", 40, 30), (1, "b.png", 40, 30), (2, "c.png", 40, 30)]
    samples, reading = found(coco(tmp_path / "a.json", images, BOXES, [(1, "cup")]))
    assert samples == [("c.png", "cup")]
    assert reading.tally.counts == {Issue.REPEATED_ID: 1, Issue.BAD_FIELD: 1}


def test_an_image_that_is_listed_twice_alike_is_one(tmp_path: Path) -> None:
    images = [(1, "a.png", 40, 30), (1, "a.png", 40, 30), (2, "a.png", 40, 30)]
    samples, reading = found(coco(tmp_path / "a.json", images, BOXES, [(1, "cup")]))
    assert samples == [("a.png", "cup")] * 2
    assert not reading.tally.counts


def test_one_file_name_of_two_sizes_means_neither(tmp_path: Path) -> None:
    images = [(1, "a.png", 40, 30), (2, "a.png", 400, 300)]
    samples, reading = found(coco(tmp_path / "a.json", images, BOXES, [(1, "cup")]))
    assert samples == []
    assert reading.tally.counts[Issue.REPEATED_ID] == 1


def test_two_categories_of_one_id_mean_neither(tmp_path: Path) -> None:
    images, boxes = [(1, "a.png", 40, 30)], [(1, 1, 1, [1, 2, 3, 4]), (2, 1, 2, [1, 2, 3, 4])]
    samples, reading = found(coco(tmp_path / "a.json", images, boxes, [(1, "cup"), (1, "dog"), (2, "cat")]))
    assert samples == [("a.png", "cat")]
    assert reading.tally.counts[Issue.REPEATED_ID] == 1


def test_two_ids_of_one_category_are_one(tmp_path: Path) -> None:
    """Of merged sets: else one expression is asked twice, with other boxes each time."""
    images, boxes = [(1, "a.png", 40, 30)], [(1, 1, 1, [1, 2, 3, 4]), (2, 1, 2, [5, 6, 7, 8])]
    path = coco(tmp_path / "a.json", images, boxes, [(1, "cup"), (2, "cup")])
    ((turn,),) = [list(sample.located()) for sample in read_samples(path, "coco")]
    assert turn.boxes == ((1, 2, 4, 6), (5, 6, 12, 14))


SPELLED = [("a.png", "./a.png"), ("s/a.png", "s//a.png"), ("s/a.png", r"s\a.png"), ("A.png", "a.png"),
           ("\u00e9.png", "e\u0301.png")]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SPELLED, ids=ascii)
def test_two_spellings_of_one_file_stay_on_one_side(tmp_path: Path, one: str, other: str) -> None:
    """`./a.png` was trained on and `a.png` validated on; where files are at hand their bytes decide."""
    assert groups_of_images([one, other, "b.png"], {}) == [[one, other], ["b.png"]]
    assert groups_of_images([one, other], {one: b"1", other: b"2"}) == [[one], [other]]
    assert shared_images([one, "b.png"], [other, "c.png"], None, None) == [one]


def test_refer_never_takes_the_box_of_another_image(tmp_path: Path) -> None:
    """Annotation 1 stands twice in the merged file, and annotation 2 is of another image than its ref says."""
    images = [(1, "a.png", 40, 30), (2, "b.png", 40, 30)]
    boxes = [(1, 1, 1, [1, 2, 3, 4]), (1, 1, 1, [9, 9, 9, 9]), (2, 1, 1, [5, 6, 7, 8]), (3, 2, 1, [5, 6, 7, 8])]
    coco(tmp_path / "instances.json", images, boxes, [(1, "cup")])
    refs = [
        {"ref_id": 7, "image_id": i, "ann_id": a, "sentences": [{"sent_id": a, "sent": f"s{a}"}], "split": "val"}
        for i, a in ((1, 1), (2, 2), (2, 3))
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    samples, reading = found(tmp_path, "refer")
    assert samples == [("b.png", "s3")]
    assert reading.tally.counts == {Issue.REPEATED_ID: 1, Issue.BAD_FIELD: 2}


def test_what_has_no_expression_is_counted(tmp_path: Path) -> None:
    coco(tmp_path / "instances.json", [(1, "a.png", 40, 30)], [(1, 1, 1, [1, 2, 3, 4])], [(1, "cup")])
    refs = [{"ref_id": 7, "image_id": 1, "ann_id": 1, "sentences": said, "split": "val"} for said in ([], None)]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    samples, reading = found(tmp_path, "refer")
    assert (samples, reading.tally.counts) == ([], {Issue.NO_TURNS: 2})

    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    image = {"bytes": png("red"), "path": None}
    row = {"question_id": "0", "file_name": "0.png", "answer": [], "bbox": [1.0, 2.0, 8.0, 7.0], "image": image}
    writer.write_table(pa.Table.from_pylist([row, row | {"answer": ["cup"]}]), tmp_path / "val.parquet")
    samples, reading = found(tmp_path / "val.parquet", "lmms-parquet")
    assert (samples, reading.tally.counts) == ([("0.png", "cup")], {Issue.NO_TURNS: 1})


def shards(folder: Path) -> None:
    """Two shards that both number from 0; the third sample is of the first's image."""
    folder.mkdir()
    for name, colours in (("a", ["red"]), ("b", ["blue", "red"])):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number, colour in enumerate(colours):
                row = {"image": "0.png", "turns": [{"locate": colour, "boxes": [[1, 2, 9, 9]]}]}
                for extension, data in (("json", json.dumps(row).encode()), ("png", png(colour))):
                    member = tarfile.TarInfo(f"{number}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def members(path: Path, *names: str) -> list[tuple[str, str]]:
    """Read a shard whose every row is a cup in the image beside it."""
    row = json.dumps({"turns": [{"locate": "cup", "boxes": [[1, 2, 9, 9]]}]}).encode()
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = row if name.casefold().endswith("json") else png("red")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    samples, reading = found(path, "webdataset")
    assert reading.tally.counts == ({Issue.REPEATED_ID: 1} if "twice" in path.name else {})
    return samples


@pytest.mark.parametrize("twice", ["1.json 1.json 1.png", "1.json 1.png 1.json", "1.png 1.JSON 1.json",
                                   "1.json 1.png 1.png", "1.json 1.png 1.json 1.png"])  # fmt: skip
def test_two_rows_or_two_images_of_one_key_mean_neither(tmp_path: Path, twice: str) -> None:
    """The first row lost its image to the second, and was read as text alone."""
    around = ("0.json", "0.png"), ("2.json", "2.png")
    samples = members(tmp_path / "twice.tar", *around[0], *twice.split(), *around[1])
    assert samples == [("0.png", "cup"), ("2.png", "cup")]
    assert len(members(tmp_path / "once.tar", *around[0], "1.json", "1.png", *around[1])) == 3


def parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    path.mkdir()
    for name, colours in (("val-0", ["red"]), ("val-1", ["blue", "red"])):
        rows = [
            {"question_id": "0", "file_name": "0.png", "answer": [colour], "bbox": [1.0, 2.0, 8.0, 7.0],
             "image": {"bytes": png(colour), "path": None}}
            for colour in colours
        ]  # fmt: skip
        writer.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")


@pytest.mark.parametrize(("name", "make"), [("webdataset", shards), ("lmms-parquet", parquet)])
@pytest.mark.parametrize("written", [True, False])
def test_names_across_shards_are_numbered(tmp_path: Path, name: str, make: Any, written: bool) -> None:
    make(tmp_path / "data")
    for _ in range(2):  # a second run finds the same images where the first put them
        reading = Reading(images_to=tmp_path / "images" if written else None)
        convert(tmp_path / "data", tmp_path / "out.jsonl", source_format=name, target_format="neutral",
                reading=reading, overwrite=True, progress=False)  # fmt: skip
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        images = [(row["turns"][0]["locate"], row["image"]) for row in rows]
        assert images == [("red", "0.png"), ("blue", "0-2.png"), ("red", "0.png")]
        assert reading.tally.counts == {Issue.IMAGE_RENAMED: 1}
        assert len({row["id"] for row in rows}) == (3 if name == "lmms-parquet" else len({row["id"] for row in rows}))
        for colour, image in images if written else ():
            with Image.open(tmp_path / "images" / image) as file:
                assert file.tobytes() == Image.new("RGB", (40, 30), colour).tobytes()


def test_images_are_not_written_behind_a_link(tmp_path: Path) -> None:
    shards(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/sub").symlink_to(tmp_path / "elsewhere")
    reading = Reading(images_to=tmp_path / "images", image_prefix="sub/")
    with pytest.raises(VPPError, match="behind a link"):
        list(read_samples(tmp_path / "data", "webdataset", reading=reading))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("where", ["file", "file/images", "link"])
def test_a_place_of_images_where_no_folder_can_be_is_named(tmp_path: Path, where: str) -> None:
    """Every row was refused for the name of its image."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(VPPError, match=rf"{where.split('/')[0]}' is no folder, and images are to be written to"):
        Reading(images_to=tmp_path / where)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "0.png/1.png", "sub", "\ud800.png"], ids=ascii)
def test_a_name_that_no_file_can_have_costs_its_row_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "images/sub").mkdir(parents=True)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, image in enumerate(("0.png", name, "2.png")):
            row = {"image": image, "turns": [{"locate": "a", "boxes": [[1, 2, 9, 9]]}]}
            for extension, data in (("json", json.dumps(row).encode()), ("png", png(("red", "blue", "lime")[number]))):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    reading = Reading(images_to=tmp_path / "images")
    images = [sample.image for sample in read_samples(tmp_path / "a.tar", "webdataset", reading=reading)]
    assert images == (["0.png", "sub-2", "2.png"] if name == "sub" else ["0.png", "2.png"])
    assert reading.tally.counts == {Issue.IMAGE_RENAMED if name == "sub" else Issue.NO_IMAGE: 1}


def test_two_sizes_of_one_image_are_refused(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "width": 4, "height": 3}, {"image": "a.png", "width": 40, "height": 30}]
    (tmp_path / "sizes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(VPPError, match=r"line 2, gives 'a\.png' another size"):
        ImageSizes(known=tmp_path / "sizes.jsonl")
