"""Every format on a small file in its public layout, there and back, and on noise."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.formats import layouts
from tests.data.formats.layouts import BOX, HEIGHT, WIDTH, image, lines, lmms_parquet, refer_folder, whole
from vpp_plugins import VPPError
from vpp_plugins.data.formats import FORMATS, Reading, Writing, data_format, read_samples
from vpp_plugins.data.sample import Describe, Issue, Locate, Sample, Talk
from vpp_plugins.data.scenes.folder import write_scenes
from vpp_plugins.data.scenes.shapes import Shapes

CUP = Locate("the white cup", (BOX,))


def read(path: Path, name: str, **options: Any) -> tuple[list[Sample], Reading]:
    reading = Reading(**options)
    return list(read_samples(path, name, images=path.parent, reading=reading)), reading


class TestLayouts:
    def test_cb_grd(self, tmp_path: Path) -> None:
        image(tmp_path / "VG_100K" / "2368107.jpg")
        image(tmp_path / "VG_100K" / "2.jpg")
        (sample,), reading = read(whole(tmp_path / "g.json", layouts.CB_GRD), "cb-grd")
        assert sample.turns == (Locate("the white cup on the left", (BOX,)), Locate("the sign of St. Mary", (BOX,)))
        assert reading.tally.counts == {
            Issue.SKIPPED_SOURCE: 1, Issue.AMBIGUOUS: 1, Issue.NO_BOX: 1, Issue.NO_TURNS: 1,
        }  # fmt: skip

    def test_cb_grd_like_the_reference(self, tmp_path: Path) -> None:
        image(tmp_path / "VG_100K" / "2368107.jpg")
        image(tmp_path / "VG_100K" / "2.jpg")
        (first, second), _ = read(whole(tmp_path / "g.json", layouts.CB_GRD), "cb-grd-like-reference")
        asked, answer = (message["value"] for message in layouts.CB_GRD["data"][0]["conversation"][2:])
        assert first.turns == (Locate("the white cup on the left", (BOX,)), Talk(asked, answer))
        assert second.turns == (Locate("Here", ((1, 2, 3, 4),)),)

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("unit", [" ", "<", "[", "[1", "."])
    def test_a_million_characters_of_chatterbox_take_no_time(self, tmp_path: Path, unit: str) -> None:
        image(tmp_path / "a.png")
        turns = [layouts.human(unit * 1_000_000), layouts.gpt(unit * 1_000_000 + "[1, 2, 3, 4]")]
        path = whole(tmp_path / "g.json", {"data": [{"id": 1, "image": "a.png", "conversation": turns}]})
        for name in ("cb-grd", "cb-grd-like-reference", "cb-ref"):
            read(path, name)

    def test_cb_ref(self, tmp_path: Path) -> None:
        image(tmp_path / "VG_100K" / "2368107.jpg")
        (sample,), reading = read(whole(tmp_path / "r.json", layouts.CB_REF), "cb-ref")
        assert sample.turns == (Describe((BOX,), "A white cup of coffee."),)
        assert reading.tally.counts == {Issue.WRONG_COUNT: 1}

    def test_genixer(self, tmp_path: Path) -> None:
        (sample,), _ = read(lines(tmp_path / "x.jsonl", layouts.GENIXER), "genixer", image_prefix="LLaVA-Pretrain/")
        assert (sample.image, sample.turns) == ("LLaVA-Pretrain/00453/004539375.jpg", (CUP,))

    def test_absolute_paths_are_refused_until_their_beginning_is_cut(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "x.jsonl", {**layouts.GENIXER, "img_path": "/home/me/LLaVA-Pretrain/1.jpg"})
        assert read(path, "genixer")[1].tally.counts == {Issue.UNSAFE_PATH: 1}
        (sample,), _ = read(path, "genixer", strip_prefix="/home/me/")
        assert sample.image == "LLaVA-Pretrain/1.jpg"

    def test_evaluation_lines(self, tmp_path: Path) -> None:
        (sample,), _ = read(lines(tmp_path / "x.jsonl", layouts.EVALUATION), "eval-jsonl")
        assert sample == Sample("#0", layouts.EVALUATION["image"], WIDTH, HEIGHT, (Locate("white cup", (BOX,)),))

    def test_gseval(self, tmp_path: Path) -> None:
        image(tmp_path / "unlabeled2017" / "000000000008.jpg")
        (sample,), _ = read(lines(tmp_path / "x.jsonl", layouts.GSEVAL), "gseval")
        assert (sample.id, sample.category, sample.width) == ("12", "3", WIDTH)
        assert sample.turns == (Locate("The white cup on the left.", (BOX,)),)

    def test_ms_swift(self, tmp_path: Path) -> None:
        image(tmp_path / "cup.jpg")
        samples, _ = read(lines(tmp_path / "x.jsonl", *layouts.SWIFT), "ms-swift", strip_prefix="/data/")
        assert samples[0].turns == (CUP,)
        assert samples[1].turns == (Talk("Is it at <bbox>?", "Yes, <bbox>.", ((64, 96, 320, 384), (0, 0, 640, 480))),)

    def test_coco(self, tmp_path: Path) -> None:
        (sample,), reading = read(whole(tmp_path / "instances.json", layouts.COCO), "coco")
        assert sample == Sample("57870", "a.jpg", WIDTH, HEIGHT, (Locate("cup", (BOX,)),))
        assert reading.tally.counts == {Issue.CROWD: 1, Issue.BAD_FIELD: 1}

    def test_odvg(self, tmp_path: Path) -> None:
        samples, _ = read(lines(tmp_path / "x.jsonl", *layouts.ODVG), "odvg")
        spoons = Locate("two spoons", ((1, 2, 30, 40), (5, 6, 70, 80)))
        assert samples[0].turns == (Locate("a white cup", (BOX,)), spoons)
        assert samples[1].turns == (Locate("cup", (BOX,)),)

    def test_scenes(self, tmp_path: Path) -> None:
        folder = write_scenes(tmp_path / "scenes", 3, 0, "val", source=Shapes(), size=96, progress=False)
        samples, _ = read(folder, "scenes")
        rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
        assert [sample.turns[0].expression for sample in samples] == [
            expression["text"] for row in rows for expression in row["expressions"]
        ]
        assert {sample.split for sample in samples} == {"val"}


class TestRefer:
    def test_a_sentence_a_sample(self, tmp_path: Path) -> None:
        folder = refer_folder(tmp_path / "refcoco")
        for path in (folder, folder / "refs(unc).p"):
            samples, reading = read(path, "refer")
            assert [(sample.id, sample.image, sample.split) for sample in samples] == [
                ("49-0", "a.jpg", "testA"),
                ("49-1", "a.jpg", "testA"),
            ]
            assert samples[0].turns == (Locate("white cup", (BOX,)),)
            assert reading.tally.counts == {Issue.BAD_FIELD: 1}

    def test_counts_that_are_not_the_published_ones_are_named(self, tmp_path: Path) -> None:
        samples, reading = read(refer_folder(tmp_path / "refcoco"), "refer", split="testA")
        assert len(samples) == 2
        assert reading.tally.examples[Issue.COUNT_DIFFERS] == ["testA: 2 sentences, published 5,657"]

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="has no split 'val'; it has testA, train"):
            read(refer_folder(tmp_path / "refcoco"), "refer", split="val")

    def test_refcocog_means_umd(self, tmp_path: Path) -> None:
        folder = refer_folder(tmp_path / "refcocog")
        (folder / "refs(unc).p").rename(folder / "refs(umd).p")
        (folder / "refs(google).p").write_bytes(b"never read")
        assert len(read(folder, "refer")[0]) == 2
        (folder / "refs(umd).p").rename(folder / "refs(unc).p")
        with pytest.raises(VPPError, match=r"holds refs\(google\).p, refs\(unc\).p: name the file itself"):
            read(folder, "refer")


class TestLmms:
    def test_a_sentence_a_sample_with_the_image_kept(self, tmp_path: Path) -> None:
        path = lmms_parquet(tmp_path / "val-00000-of-00001.parquet")
        samples, _ = read(path, "lmms-parquet", images_to=tmp_path / "out")
        assert [(sample.id, sample.turns) for sample in samples] == [
            ("469306-0", (Locate("white cup", (BOX,)),)),
            ("469306-1", (Locate("cup", (BOX,)),)),
        ]
        assert samples[0].image == "COCO_train2014_000000057870.jpg"
        assert (tmp_path / "out" / samples[0].image).is_file()

    def test_a_folder_stands_for_its_files_of_a_split(self, tmp_path: Path) -> None:
        lmms_parquet(tmp_path / "val-00000-of-00001.parquet")
        assert len(read(tmp_path, "lmms-parquet")[0]) == 2
        assert read(tmp_path, "lmms-parquet", split="testA")[0] == []

    def test_what_is_no_parquet_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_text("none")
        with pytest.raises(VPPError, match="is not a parquet file"):
            read(tmp_path / "x.parquet", "lmms-parquet")
        with pytest.raises(VPPError, match="holds no parquet files"):
            read(image(tmp_path / "empty" / "a.png").parent, "lmms-parquet")


LOCATED = [
    Sample("1", "a/1.png", WIDTH, HEIGHT, (Locate("the white cup", (BOX,)),)),
    Sample("2", "a/2.png", 100, 200, (Locate("\"Größe\" 1", ((1, 2, 30.5, 40.25),)), Locate("cup", ((5, 6, 17, 18),)))),
]  # fmt: skip
MORE = [
    *LOCATED,
    Sample("3", "a/1.png", WIDTH, HEIGHT, (Locate("two", (BOX, BOX)), Describe((BOX,), "a cup"))),
    Sample("4", "a/2.png", 100, 200, (Talk("what <bbox>?", "that <bbox>.", ((1, 2, 3, 4), (5, 6, 7, 8))),)),
    Sample("5", "", 0, 0, (Talk("hello", "hi"),)),
]
ANY_TURN = ("neutral", "ms-swift", "webdataset")


@pytest.mark.parametrize("name", [name for name, found in FORMATS.items() if found.write])
def test_what_is_written_reads_back(name: str, tmp_path: Path) -> None:
    for sample in MORE[:4]:
        image(tmp_path / sample.image, (sample.width, sample.height))
    path = tmp_path / "data"
    given_, writing = MORE if name in ANY_TURN else LOCATED, Writing(path, images=tmp_path)
    data_format(name).write(given_, writing)
    samples, reading = read(path, name)

    wanted = sorted((given.image, type(turn).__name__, *_words(turn)) for given in given_ for turn in given.turns)
    found = sorted((sample.image, type(turn).__name__, *_words(turn)) for sample in samples for turn in sample.turns)
    tolerance = 3.3 if name in ("vpp-sft", "llava-665k") else 1e-9
    assert [row[:4] for row in found] == [row[:4] for row in wanted]
    for here, there in zip(found, wanted, strict=True):
        assert here[4] == pytest.approx(there[4], abs=tolerance)
    assert not writing.tally.counts
    assert not reading.tally.counts


@pytest.mark.parametrize("name", [name for name, found in FORMATS.items() if found.write and name not in ANY_TURN])
def test_turns_that_a_format_cannot_hold_are_counted(name: str, tmp_path: Path) -> None:
    if name in ("vpp-sft", "llava-665k"):
        pytest.skip("holds every turn")
    image(tmp_path / "a" / "2.png", (100, 200))
    writing = Writing(tmp_path / "data", images=tmp_path)
    data_format(name).write([MORE[3]], writing)
    assert writing.tally.counts == {Issue.NOT_WRITABLE: 1}


@pytest.mark.parametrize("name", [name for name, found in FORMATS.items() if found.write])
def test_an_empty_stream_writes_an_empty_file(name: str, tmp_path: Path) -> None:
    data_format(name).write([], Writing(tmp_path / "data", images=tmp_path))
    assert (tmp_path / "data").exists()


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(VPPError, match=r"no data format is called 'coco2'. Did you mean 'coco'\? Known: neutral"):
        data_format("coco2")


# Noise: rows with the right names and any values, and files that are no rows at all.

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.sampled_from("a.png|../a.png|<image>|<bbox>|human|gpt|[0.1, 0.2, 0.3, 0.4]|real".split("|")),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from("from value role content bbox phrase ref x".split()), inner, max_size=4)
    ),
    max_leaves=10,
)
NAMES = (
    "id image conversations width height img_path expression bbox sent image_path caption box idx class_id turns "
    "messages images objects filename grounding detection conversation image_wh image_id category_id iscrowd file_name"
).split()
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=7) | VALUES, max_size=4)
OF_ROWS = ["neutral", "vpp-sft", "llava-665k", "genixer", "eval-jsonl", "gseval", "ms-swift", "odvg"]


def _drain(samples: Iterator[Sample]) -> None:
    """Whatever is read must be writable and plain; whatever is not must say so in one sentence."""
    told = ""
    try:
        for sample in samples:
            json.dumps(sample.to_row(), allow_nan=False)
            assert sample.turns
            assert not sample.image.startswith("/")
            for turn in sample.turns:
                for x1, y1, x2, y2 in turn.boxes:
                    assert -0.5 <= x1 <= x2 <= sample.width + 0.5
                    assert -0.5 <= y1 <= y2 <= sample.height + 0.5
    except VPPError as error:
        told = str(error)
    assert "\n" not in told


@pytest.mark.parametrize("name", OF_ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(rows=ROWS)
def test_rows_of_noise_are_counted(name: str, tmp_path: Path, rows: list[Any]) -> None:
    if not (tmp_path / "a.png").exists():
        image(tmp_path / "a.png", (20, 10))
    _drain(read_samples(lines(tmp_path / "x", *rows), name, images=tmp_path))


@pytest.mark.parametrize("name", ["cb-grd", "cb-grd-like-reference", "cb-ref", "coco"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(rows=ROWS)
def test_arrays_of_noise_are_counted(name: str, tmp_path: Path, rows: list[Any]) -> None:
    if not (tmp_path / "a.png").exists():
        image(tmp_path / "a.png", (20, 10))
    path = whole(tmp_path / "x", {"data": rows, "images": rows, "annotations": rows, "categories": rows})
    _drain(read_samples(path, name, images=tmp_path))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("scenes", "lmms-parquet")])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(data=st.binary(max_size=60) | st.text(alphabet='[]{}",:0123456789.eE-+ntaf \n\\', max_size=60).map(str.encode))
def test_files_of_noise_are_refused_with_a_sentence(name: str, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    _drain(read_samples(tmp_path / "x", name, images=tmp_path))


@pytest.mark.parametrize("name", [*OF_ROWS, "cb-grd", "cb-ref", "coco"])
def test_public_rows_with_something_broken_are_counted(name: str, tmp_path: Path) -> None:
    """Take a good file and put something wrong into each place in turn."""
    good = {
        "neutral": [LOCATED[0].to_row()], "vpp-sft": layouts.LLAVA_665K[:1], "llava-665k": layouts.LLAVA_665K[:1],
        "genixer": [layouts.GENIXER], "eval-jsonl": [layouts.EVALUATION], "gseval": [layouts.GSEVAL],
        "ms-swift": layouts.SWIFT, "odvg": layouts.ODVG, "cb-grd": layouts.CB_GRD, "cb-ref": layouts.CB_REF,
        "coco": layouts.COCO,
    }[name]  # fmt: skip
    rng = random.Random(0)
    wrong = [
        None,
        -1,
        1e999,
        float("nan"),
        "",
        "<bbox>",
        [],
        {},
        [1, 2, 3],
        [5, 5, 1, 1],
        "../x",
        10**400,
        "\ud800",
        True,
    ]
    for broken in _variants(good, wrong, rng):
        path = tmp_path / "x"
        path.write_text(json.dumps(broken) if isinstance(broken, dict) else "\n".join(map(json.dumps, broken)))
        _drain(read_samples(path, name, images=tmp_path))


def _variants(value: Any, wrong: list[Any], rng: random.Random) -> Iterator[Any]:
    """Yield the value with one inner value replaced, for every place in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            for variant in [*_variants(inner, wrong, rng), rng.choice(wrong), rng.choice(wrong)]:
                yield {**value, key: variant}
            yield {name: kept for name, kept in value.items() if name != key}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for variant in [*_variants(inner, wrong, rng), rng.choice(wrong)]:
                yield [*value[:index], variant, *value[index + 1 :]]


def _words(turn: Any) -> tuple[str, str, list[float]]:
    numbers = [number for box in turn.boxes for number in box]
    match turn:
        case Locate(expression):
            return expression, "", numbers
        case Describe(_, description):
            return description, "", numbers
        case Talk(question, answer):
            return question, answer, numbers
    raise AssertionError(turn)
