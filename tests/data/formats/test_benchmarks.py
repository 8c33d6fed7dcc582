"""Benchmarks beyond RefCOCO on small files in their public layouts."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.formats.layouts import BOX, HEIGHT, WIDTH, refer_folder, whole
from vpp_plugins import VPPError
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.sample import Issue, Locate, Sample
from vpp_plugins.images import load_image

SECOND = (1.0, 2.0, 31.0, 42.0)
REF_L4 = {
    "id": 1,
    "caption": "Within the central picture frame of the three, an antique camera is present.",
    "bbox": [64.0, 96.0, 256.0, 288.0],
    "bbox_area": 73728.0,
    "bbox_id": "o365_527361",
    "ori_category_id": "o365_64",
    "image_id": "o365_922765",
    "height": HEIGHT,
    "width": WIDTH,
    "file_name": "objects365_v2_00922765.jpg",
    "is_rewrite": True,
    "split": "val",
}
REVIEWED = {
    "images": [
        {"id": 0, "original_id": 57870, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT, "caption": "white cup"},
        {"id": 1, "original_id": 57870, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT, "caption": "cup"},
    ],
    "annotations": [
        {"id": 0, "image_id": 0, "original_id": 7, "bbox": [64.0, 96.0, 256.0, 288.0], "caption_quality": 1},
        {"id": 1, "image_id": 1, "original_id": 7, "bbox": [64.0, 96.0, 256.0, 288.0], "caption_quality": 0},
    ],
    "categories": [],
}


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(data, "JPEG")
    return data.getvalue()


REF_ADV = {
    "image": {"bytes": jpeg(), "path": None},
    "file_name": "COCO_val2014_000000000042.jpg",
    "normal_caption": "the cup without a handle",
    "solution": [64.0, 96.0, 320.0, 384.0],
    "width": WIDTH,
    "height": HEIGHT,
    "image_source": "coco",
    "human_authored": False,
    "use_negation": True,
    "distractors": "5",
}
GROUNDINGME = {
    "id": 12,
    "description": "the red cup behind the kettle",
    "image": {"bytes": jpeg(), "path": None},
    "bbox": [64, 96, 320, 384],
    "detection_type": "cup",
    "subtask_l1": "Spatial",
    "subtask_l2": "Relationship",
    "width": WIDTH,
    "height": HEIGHT,
}


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def grefcoco_folder(folder: Path) -> Path:
    """gRefCOCO's: JSON, lists of annotations, [-1] with no_target."""
    refer_folder(folder)
    (folder / "refs(unc).p").unlink()
    coco = json.loads((folder / "instances.json").read_text())
    coco["annotations"].append({"id": 80, "image_id": 57870, "category_id": 47, "bbox": [1, 2, 30, 40], "iscrowd": 0})
    (folder / "instances.json").write_text(json.dumps(coco))
    sentence = {"tokens": ["cups"], "raw": "cups", "sent": "cups"}
    refs = [
        {
            "ref_id": number,
            "image_id": 57870,
            "file_name": "COCO_train2014_000000057870.jpg",
            "split": "testA",
            "ann_id": annotations,
            "category_id": [47],
            "no_target": annotations == [-1],
            "sent_ids": [number],
            "sentences": [{**sentence, "sent_id": number}],
        }
        for number, annotations in enumerate([[7, 80], [-1], [80], [7, 99]])
    ]
    whole(folder / "grefs(unc).json", refs)
    return folder


def read(path: Path, name: str, **options: Any) -> tuple[list[Sample], Reading]:
    reading = Reading(**options)
    return list(read_samples(path, name, reading=reading)), reading


def test_ref_l4(tmp_path: Path) -> None:
    coco = {**REF_L4, "id": 2, "ori_category_id": "refcoco_1", "split": "test"}
    path = parquet(tmp_path / "ref-l4-val.parquet", REF_L4, coco, {**REF_L4, "id": 3, "bbox": [1.0, 2.0]})
    (first, second), reading = read(path, "ref-l4")
    assert first == Sample(
        "1", "objects365_v2_00922765.jpg", WIDTH, HEIGHT, (Locate(REF_L4["caption"], (BOX,)),), "val", "o365_64"
    )
    assert second.category == "o365_1", "COCO's persons are those of Objects365"
    assert reading.tally.counts == {Issue.WRONG_COUNT: 1, Issue.NO_TURNS: 1}
    samples, reading = read(path, "ref-l4", split="val")
    assert (len(samples), reading.tally.counts[Issue.OTHER_SPLIT]) == (1, 1)


def test_the_review_leaves_out_what_it_marked(tmp_path: Path) -> None:
    path = whole(tmp_path / "refcoco_val_reviewed.json", REVIEWED)
    (sample,), reading = read(path, "ref-l4-reviewed")
    assert sample == Sample("0", "a.jpg", WIDTH, HEIGHT, (Locate("white cup", (BOX,)),))
    assert reading.tally.counts == {Issue.MARKED_WRONG: 1}
    rows = {**REVIEWED, "annotations": [{**REVIEWED["annotations"][0], "caption_quality": None}]}
    samples, reading = read(whole(tmp_path / "x.json", rows), "ref-l4-reviewed")
    assert (samples, reading.tally.counts) == ([], {Issue.BAD_FIELD: 1})


def test_grefcoco_means_several_one_and_none(tmp_path: Path) -> None:
    folder = grefcoco_folder(tmp_path / "grefcoco")
    for path in (folder, folder / "grefs(unc).json"):
        samples, reading = read(path, "grefcoco", split="testA")
        assert [sample.turns for sample in samples] == [
            (Locate("cups", (BOX, SECOND)),),
            (Locate("cups", ()),),
            (Locate("cups", (SECOND,)),),
        ]
        assert reading.tally.counts == {Issue.BAD_FIELD: 1}
    assert samples[1].width == WIDTH
    with pytest.raises(VPPError, match="has no split 'val'; it has testA"):
        read(folder, "grefcoco", split="val")


def test_an_annotation_of_minus_one_is_nothing_only_where_the_file_says_so(tmp_path: Path) -> None:
    folder = grefcoco_folder(tmp_path / "grefcoco")
    refs = json.loads((folder / "grefs(unc).json").read_text())
    whole(folder / "grefs(unc).json", [{**refs[1], "no_target": False}])
    samples, reading = read(folder, "grefcoco")
    assert (samples, reading.tally.counts) == ([], {Issue.BAD_FIELD: 1})


def test_ref_adv_writes_its_images(tmp_path: Path) -> None:
    path = parquet(tmp_path / "train-00000-of-00001.parquet", REF_ADV, {**REF_ADV, "solution": None})
    (sample,), reading = read(path, "ref-adv", images_to=tmp_path / "out")
    assert sample.turns == (Locate("the cup without a handle", (BOX,)),)
    assert (sample.category, sample.kind) == ("4-6 distractors", "negation")
    assert load_image(tmp_path / "out" / sample.image).size == (WIDTH, HEIGHT)
    assert reading.tally.counts == {Issue.BAD_FIELD: 1}


@pytest.mark.parametrize(
    ("given", "bin_"),
    [
        (2, "2-3"),
        ("3", "2-3"),
        ([1, 2, 3, 4], "4-6"),
        ("[1, 2]", "2-3"),
        (7, "7 or more"),
        (None, "not"),
        ("?", "not"),
        ("[" * 5000, "not"),
        ("9" * 5000, "not"),
    ],
)
def test_distractors_are_counted_however_they_are_stored(given: object, bin_: str, tmp_path: Path) -> None:
    (sample,), _ = read(parquet(tmp_path / "a.parquet", {**REF_ADV, "distractors": given}), "ref-adv")
    assert bin_ in sample.category


def test_groundingme_has_nothing_where_it_is_to_be_rejected(tmp_path: Path) -> None:
    rejected = {**GROUNDINGME, "id": 13, "subtask_l1": "Rejection", "subtask_l2": "Text"}
    path = parquet(tmp_path / "test-00000-of-00001.parquet", GROUNDINGME, rejected, {**GROUNDINGME, "bbox": None})
    samples, reading = read(path, "groundingme", images_to=tmp_path / "out")
    assert [(one.id, one.turns[0].boxes, one.kind, one.category) for one in samples] == [
        ("12", (BOX,), "Spatial", "Spatial, Relationship"),
        ("13", (), "Rejection", "Rejection, Text"),
    ]
    assert reading.tally.counts == {Issue.BAD_FIELD: 1}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["12.jpg", "13.jpg"]
