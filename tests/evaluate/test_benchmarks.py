"""The table of benchmarks, and the files that are found by it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.formats.layouts import BOX, image, lines, refer_folder, whole
from tests.data.formats.test_benchmarks import (
    GROUNDINGME,
    REF_ADV,
    REF_L4,
    REVIEWED,
    SECOND,
    grefcoco_folder,
    parquet,
)
from vpp_plugins import VPPError
from vpp_plugins.boxes import ImageMeta, codec
from vpp_plugins.data import Tally
from vpp_plugins.data.formats import FORMATS
from vpp_plugins.evaluate import BENCHMARKS, benchmarks, load_rows
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.benchmarks import Benchmark, find_benchmark, full_split
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import judge, summarise
from vpp_plugins.evaluate.rows import Row

PUBLISHED = {
    "refcoco": 10834 + 5657 + 5095,
    "refcoco+": 10758 + 5726 + 4889,
    "refcocog": 4896 + 9602,
    "referit": 0,  # its layout could not be verified
    "gseval": 3715,
    "ref-l4": 45341,  # the data set's card
    "refcoco-reviewed": 21586,  # the three of the card, before the review
    "refcoco+-reviewed": 21373,
    "refcocog-reviewed": 14498,
    "grefcoco": 14229 + 19200 + 16063,
    "ref-adv-s": 1142,
    "groundingme": 1005,
}


def small(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """Pretend that so many expressions are published of each split, and no hashes."""
    monkeypatch.setattr(Benchmark, "splits", lambda one, of: {"testA": count, "val": count, "test": count})
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {**BENCHMARKS, name: replace(BENCHMARKS[name], sha256={})})


def test_the_published_numbers() -> None:
    assert {name: sum(one.splits(name).values()) for name, one in BENCHMARKS.items()} == PUBLISHED


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_of_the_table_is_whole(name: str) -> None:
    one = BENCHMARKS[name]
    assert {layout.data_format for layout in one.layouts} <= set(FORMATS)
    assert all([one.asks, one.licence, one.source])
    assert protocol(one.protocol).task in ("box", "set")


def test_unknown_names_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="no benchmark is called 'grefcocos'"):
        find_benchmark("grefcocos", tmp_path, "val")
    with pytest.raises(VPPError, match="grefcoco has no split 'test': give one of val, testA, testB"):
        find_benchmark("grefcoco", tmp_path, "test")
    with pytest.raises(VPPError, match="refcoco has several splits: give one of"):
        find_benchmark("refcoco", tmp_path, None)
    with pytest.raises(VPPError, match="is a benchmark: name the folder of its files"):
        load_rows("grefcoco")
    assert full_split("groundingme", None) == "groundingme/test"
    assert full_split("refcoco", "refcoco/val") == full_split("refcoco", "val") == "refcoco/val"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_without_the_files_says_which_and_from_where(name: str, tmp_path: Path) -> None:
    split = next(iter(BENCHMARKS[name].splits(name)), "test")
    with pytest.raises(VPPError, match=rf"lacks .*: {name.replace('+', '.')} comes from .+"):
        find_benchmark(name, tmp_path, split)
    with pytest.raises(VPPError, match="does not exist: give the one of"):
        find_benchmark(name, tmp_path / "none", split)


def test_a_file_without_the_one_beside_it_is_not_enough(tmp_path: Path) -> None:
    folder = grefcoco_folder(tmp_path / "grefcoco")
    (folder / "instances.json").unlink()
    (folder / "instances.json").mkdir()
    with pytest.raises(VPPError, match=r"grefcoco' lacks instances\.json: grefcoco comes from"):
        find_benchmark("grefcoco", tmp_path / "grefcoco", "testA")
    with pytest.raises(VPPError, match=r"refs\(unc\).p and instances.json, or refcoco_val.jsonl, or val-\*.parquet"):
        find_benchmark("refcoco", tmp_path / "grefcoco" / "..", "val")


def test_files_of_another_version_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "ref-l4-val.parquet", REF_L4)
    with pytest.raises(VPPError, match=r"not the published file of ref-l4 .*--format ref-l4"):
        find_benchmark("ref-l4", tmp_path, "val")


def test_refcoco_finds_its_files_in_each_publisher_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refer_folder(tmp_path / "a" / "refcoco")
    (tmp_path / "a" / "train2014").mkdir()
    found = find_benchmark("refcoco", tmp_path / "a", "refcoco/testA")
    assert (found.path.name, found.data_format, found.split) == ("refs(unc).p", "refer", "testA")
    assert found.images == tmp_path / "a" / "train2014"
    with pytest.raises(VPPError, match=r"refcoco/testA has 5,657 published expressions, and '.*refs\(unc\).p' has 2"):
        load_rows("refcoco", folder=str(tmp_path / "a"), split="testA")
    small(monkeypatch, "refcoco", 2)
    rows = load_rows("refcoco", folder=str(tmp_path / "a"), split="testA")
    assert [(row.expression, row.box) for row in rows] == [("white cup", BOX), ("cup", BOX)]

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "refcoco_val.jsonl").write_text("{}")
    (tmp_path / "b" / "data").mkdir()
    (tmp_path / "b" / "data" / "testA-00000-of-00001.parquet").touch()
    found = find_benchmark("refcoco", tmp_path / "b", "val")
    assert (found.data_format, found.images) == ("eval-jsonl", tmp_path / "b" / ".")
    assert find_benchmark("refcoco", tmp_path / "b", "testA").data_format == "lmms-parquet"


def test_lines_that_name_images_from_elsewhere_find_them(tmp_path: Path) -> None:
    """Qwen-VL's lie in data/refcoco, and name data/coco/train2014/..."""
    line = {"image": "data/coco/train2014/a.jpg", "sent": "cup", "bbox": [1, 2, 30, 40], "width": 640, "height": 480}
    (tmp_path / "data" / "refcoco").mkdir(parents=True)
    lines(tmp_path / "data" / "refcoco" / "refcoco_val.jsonl", line)
    assert find_benchmark("refcoco", tmp_path / "data" / "refcoco", "val").images is None
    image(tmp_path / line["image"])
    found = find_benchmark("refcoco", tmp_path / "data" / "refcoco", "val")
    assert found.images is not None
    assert (found.images / line["image"]).is_file()


def test_grefcoco_from_its_folder_to_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, "grefcoco", 4)  # with the one that is broken: it is in the file
    folder, tally = grefcoco_folder(tmp_path / "grefcoco"), Tally()
    rows = load_rows("grefcoco", folder=str(folder), split="testA", task="set", tally=tally)
    assert [(row.kind, row.boxes) for row in rows] == [("several", (BOX, SECOND)), ("none", ()), ("one", (SECOND,))]
    figures = figures_of(rows, "grefcoco")
    assert (figures["acc_50"]["mean"], figures["n_acc"]["mean"]) == (1, 1)


def test_the_review_counts_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refcocos_annotation_reviewed").mkdir()
    whole(tmp_path / "refcocos_annotation_reviewed" / "refcoco_val_reviewed.json", REVIEWED)
    small(monkeypatch, "refcoco-reviewed", 2)
    assert len(load_rows("refcoco-reviewed", folder=str(tmp_path), split="val")) == 1


def test_ref_l4_by_scale_and_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**REF_L4, "id": 2, "bbox": [1.0, 2.0, 30.0, 40.0], "ori_category_id": "refcoco_1"}
    parquet(tmp_path / "ref-l4-val.parquet", REF_L4, other, {**other, "id": 3})
    small(monkeypatch, "ref-l4", 3)
    rows = load_rows("ref-l4", folder=str(tmp_path), split="val")
    figures = figures_of(rows, "ref-l4", wrong={1})
    assert {name: group["acc_50"] for name, group in figures["by_scale"].items()} == {"large": 1, "small": 0.5}
    assert figures["by_class"]["2 categories"]["acc_50"] == 0.75
    assert 0.5 < figures["macc"]["mean"] < 0.7
    assert json.dumps(figures)


@pytest.mark.parametrize(
    ("name", "row", "file"),
    [("ref-adv-s", REF_ADV, "data/train-00000-of-00001.parquet"), ("groundingme", GROUNDINGME, "data/test-0.parquet")],
)
def test_images_that_lie_inside_are_written(
    name: str, row: dict, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Path(file).name.partition("-")[0]
    parquet(tmp_path / file, row)
    task = protocol(BENCHMARKS[name].protocol).task
    with pytest.raises(VPPError, match="holds its images inside: name a folder"):
        load_rows(name, folder=str(tmp_path), split=split, task=task)
    with pytest.raises(VPPError, match=r"published expressions, and '.*' has 1"):
        load_rows(name, folder=str(tmp_path), images=str(tmp_path / "out"), task=task)
    monkeypatch.setattr(Benchmark, "splits", lambda one, of: {split: 1})
    (found,) = load_rows(name, folder=str(tmp_path), images=str(tmp_path / "out"), task=task)
    assert found.load_image().size == (640, 480)
    assert figures_of([found], BENCHMARKS[name].protocol)["acc_50"]["mean"] == 1


def test_a_layout_that_is_not_verified_claims_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"refcoco": replace(BENCHMARKS["refcoco"], read_in="")})
    refer_folder(tmp_path / "refcoco")
    assert find_benchmark("refcoco", tmp_path, "testA").expected is None


def test_groundingme_rejects_by_null_or_by_no_box() -> None:
    rules, meta = protocol("groundingme"), ImageMeta((480, 640), (480, 640))
    question = rules.ask(
        Row(id="a", image=Path("a"), size_hw=(480, 640), expression="a cup", boxes=()), codec("qwen3-vl"), meta
    )
    assert 'in the format {"bbox_2d": [x1, y1, x2, y2]}' in question
    for said, right in (('{"bbox_2d": null}', 1), ("I see no such cup.", 1), ('{"bbox_2d": [1, 2, 30, 40]}', 0)):
        assert rules.score(rules.read(said, meta, codec("qwen3-vl")), (), meta, codec("qwen3-vl"))[0] == right
    assert rules.read('{"bbox_2d": null}', meta, codec("qwen3-vl")).status == "none"


def figures_of(rows: list[Row], name: str, wrong: frozenset[int] | set[int] = frozenset()) -> dict:
    """The figures of a predictor that says the truth, but for some rows."""
    one, rules = codec("qwen3-vl"), protocol(name)
    answers = [
        Answer.of(row, "hm" if number in wrong else one.encode(row.boxes, ImageMeta(row.size_hw)), None)
        for number, row in enumerate(rows)
    ]
    return summarise(judge(answers, rules, one), rules)
