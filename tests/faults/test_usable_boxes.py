"""One definition of a usable box: what nothing can hit, or what hits nothing, is no box, and is counted."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.evaluate.conftest import Stub
from vpp_plugins import VPPError
from vpp_plugins.boxes import BOX_CODECS, Box, BoxFault, BoxStatus, ImageMeta, box_fault, box_iou, codec
from vpp_plugins.data import Issue, Sample, convert
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.record import PIXELS, PIXELS_XYWH
from vpp_plugins.evaluate.metrics import score
from vpp_plugins.evaluate.protocol import protocols
from vpp_plugins.evaluate.rows import Row, check_rows
from vpp_plugins.evaluate.run import evaluate
from vpp_plugins.train.rewards import rewards

SIZE = (480, 640)
META = ImageMeta(SIZE, (476, 644))
TWINS = ("vpp-llava", "llava-next", "qwen3.5")  # which write as others do
FAMILIES = sorted(name for name, row in BOX_CODECS.items() if row.text is not None and name not in TWINS)
seeded = settings(derandomize=True, deadline=None, max_examples=60, database=None)
numbers = st.floats(-2000, 2000) | st.sampled_from([0.0, -0.0, 480.0, 640.0, math.nan, math.inf, 1e300])
UNUSABLE: dict[BoxFault, tuple[float, ...]] = {
    BoxFault.WRONG_COUNT: (1, 2, 3),
    BoxFault.NOT_FINITE: (1, math.nan, 3, 4),
    BoxFault.INVERTED: (30, 2, 10, 4),
    BoxFault.OUTSIDE: (700, 10, 800, 20),
    BoxFault.FLAT: (10, 20, 10, 40),
}


class TestDefinition:
    @pytest.mark.parametrize(("fault", "box"), UNUSABLE.items())
    def test_what_is_wrong_with_a_box(self, fault: BoxFault, box: tuple[float, ...]) -> None:
        assert box_fault(box, SIZE) is fault

    @pytest.mark.parametrize(
        ("box", "fault"),
        [
            ((0, 0, 640, 480), None),
            ((-5, -5, 700, 500), None),
            ((640, 0, 700, 480), BoxFault.OUTSIDE),
            ((-9, 0, 0, 480), BoxFault.OUTSIDE),
            ((640, 0, 640, 480), BoxFault.FLAT),
            ((641, 0, 641, 480), BoxFault.OUTSIDE),
            ((5, 5, 5, 5), BoxFault.FLAT),
            ((math.inf, 0, 640, 480), BoxFault.NOT_FINITE),
            ((10**5000, 0, 10**5001, 480), BoxFault.NOT_FINITE),
            ((1, 2, 3, "x"), BoxFault.WRONG_COUNT),
            ((), BoxFault.WRONG_COUNT),
        ],
    )
    def test_the_edges(self, box: tuple[float, ...], fault: BoxFault | None, unchecked: None) -> None:
        assert box_fault(box, SIZE) is fault

    @seeded
    @given(st.tuples(numbers, numbers, numbers, numbers))
    def test_a_usable_box_overlaps_itself_wholly(self, box: Box) -> None:
        """The reason for all of it: as a truth, nothing else can be hit."""
        if box_fault(box) is None and all(abs(number) < 1e100 for number in box):
            assert box_iou(box, box) == pytest.approx(1) or min(box[2] - box[0], box[3] - box[1]) < 1e-100
        elif box_fault(box) is not None:
            assert not box_iou(box, box) > 0


class TestAnswers:
    OUTSIDE = {
        "llava": "[25, 23, 73, 79]",
        "shikra": "[1.100,0.300,1.400,0.500]",
        "ferret": "[1100, 100, 1200, 300]",
        "minigpt-v2": "{<101><10><160><20>}",
        "qwen-vl": "<box>(1100,100),(1200,300)</box>",
        "qwen2.5-vl": '[{"bbox_2d": [700, 10, 800, 20]}]',
        "internvl": "<box>[[-300, 300, -10, 500]]</box>",
        "cogvlm": "[[000,1000,999,1100]]",
        "paligemma": "<loc0000><loc1100><loc1000><loc1200> cup",
    }

    @pytest.mark.parametrize(("family", "text"), OUTSIDE.items())
    def test_a_box_wholly_outside_is_none(self, family: str, text: str) -> None:
        decoded = codec(family).decode(text, META)
        assert (decoded.boxes_xyxy_px, decoded.statuses, decoded.outside) == ((), (BoxStatus.UNPARSABLE,), 1)

    def test_the_others_of_the_answer_stay(self) -> None:
        decoded = codec("ferret").decode("[1100, 100, 1200, 300] [100, 100, 200, 300]", META)
        assert (decoded.boxes_xyxy_px, decoded.statuses, decoded.outside) == (((64, 48, 128, 144),), (BoxStatus.OK,), 1)

    @pytest.mark.parametrize("family", FAMILIES)
    @seeded
    @given(st.lists(st.floats(-2.0, 3.0), min_size=4, max_size=4))
    def test_what_is_cut_has_an_area(self, family: str, shares: list[float]) -> None:
        row = codec(family)
        full = row.scale.full or 640
        if row.scale.per_box == 2:
            written = [int(abs(share) * 1500) for share in shares[:2]]
        else:
            written = [round(share * full, 2 if full == 1 else 0) for share in shares]
        box, status = row.to_pixels(written, META)
        assert (box is None) is (status is BoxStatus.UNPARSABLE)
        if box is not None:
            assert 0 <= box[0] <= box[2] <= 640
            assert 0 <= box[1] <= box[3] <= 480
        if status is BoxStatus.CLIPPED:
            assert box_fault(box or (), SIZE) is None

    @pytest.mark.parametrize("written", [(math.nan, 0, 1, 1), (0, 0, math.inf, 1)])
    def test_numbers_that_are_not_finite_are_no_box(self, written: Box) -> None:
        assert codec("llava").to_pixels(written, META) == (None, BoxStatus.UNPARSABLE)
        assert PIXELS.to_pixels(written, META) == (None, BoxStatus.UNPARSABLE)

    @pytest.mark.parametrize("name", sorted(name for name, one in protocols().items() if one.task == "box"))
    def test_every_published_script_reads_an_outside_box_as_none(self, name: str) -> None:
        row = codec(protocols()[name].family or "llava")
        texts = {
            "qwen-vl": "(1500,10),(1600,20)",
            "internvl": "[[1500, 10, 1600, 20]]",
            "minigpt-v2": "{<150><10><160><20>}",
        }
        texts["shikra"] = "[1.500,0.100,1.600,0.200]"
        parsed = protocols()[name].read(texts.get(name, "[1.5, 0.1, 1.6, 0.2]"), META, row)
        assert (parsed.box, parsed.status) == (None, BoxStatus.UNPARSABLE)

    def test_vpp_llava_s_cut_at_zero_leaves_no_line(self) -> None:
        """Its script cuts below 0 only; a box in the padding above the image became a line on its edge, "ok"."""
        row = codec("vpp-llava")
        parsed = protocols()["vpp-llava"].read("[0.1, 0.01, 0.5, 0.05]", META, row)
        assert (parsed.box, parsed.status) == (None, BoxStatus.UNPARSABLE)


class TestTrueBoxes:
    @pytest.mark.parametrize(
        "box", [(1, 2, 3), (0, math.nan, 9, 9), (9, 0, 1, 9), (10**5000, 0, 1, 2), (None, 1, 2, 3), "abcd"]
    )
    @pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
    def test_none_is_written_that_is_no_box(self, family: str, box: object, unchecked: None) -> None:
        with pytest.raises(VPPError, match="must be four finite numbers"):
            codec(family).encode([box], META)  # type: ignore[list-item]

    @pytest.mark.parametrize("box", [(640, 0, 700, 480), (-5, 5, 0, 10), (700, 0, 800, 10)])
    def test_none_is_written_that_lies_outside(self, box: Box) -> None:
        with pytest.raises(VPPError, match="wholly outside its image of width 640 and height 480"):
            codec("llava").encode([box], META)

    @pytest.mark.parametrize(("fault", "box"), UNUSABLE.items())
    def test_a_row_of_an_evaluation_is_refused_before_anything_is_asked(
        self, fault: BoxFault, box: Box, tmp_path: Path, unchecked: None
    ) -> None:
        image = Image.new("RGB", (640, 480))
        rows = [Row(id="a/0", image=image, size_hw=SIZE, expression="cup", boxes=(box,))]
        stub = Stub(lambda question, image: "[0.1, 0.2, 0.3, 0.4]")
        with pytest.raises(VPPError, match=rf"true box of row 'a/0', .* {fault}.*leave the row out"):
            check_rows(rows)
        with pytest.raises(VPPError, match="true box of row"):
            evaluate(stub, rows, protocols()["default"], tmp_path / "out")
        assert stub.batches == []

    @pytest.mark.parametrize("box", [(0, math.nan, 9, 9), (9, 0, 1, 9), (5, 5, 5, 9)])
    def test_a_score_is_refused(self, box: Box) -> None:
        with pytest.raises(VPPError, match="no answer could be right"):
            score([(0, 0, 1, 1)], [box])

    @pytest.mark.parametrize("box", [box for box in UNUSABLE.values() if len(box) == 4])
    def test_a_reward_is_refused(self, box: tuple[float, ...]) -> None:
        with pytest.raises(VPPError, match="no answer can be right about the true box"):
            rewards("llava").iou(["[0.1, 0.2, 0.3, 0.4]"], boxes=[[box]], size_hw=[SIZE])

    @pytest.mark.parametrize("column", [["x"], [[1, 2, 3, None]], [[[1, 2], [3]]], [[10**5000, 1, 2, 3]], [{"a": 1}]])
    def test_a_column_of_something_else_is_named(self, column: list[object]) -> None:
        with pytest.raises(VPPError, match=r"the column 'boxes' holds|no answer can be right"):
            rewards("llava").iou(["a"], boxes=column, size_hw=[SIZE])

    @pytest.mark.parametrize("answer", ["[]", "hm", "[0.1, 0.2, 0.3, 0.4]"])
    @pytest.mark.parametrize("boxes", [[], [(1, 2, 30, 40), (5, 6, 70, 80)]])
    def test_iou_of_another_count_than_one_is_refused_whatever_was_answered(
        self, boxes: list[Box], answer: str
    ) -> None:
        """Where nothing is there, "nothing" earned 0, and a box was an error."""
        for reward in (rewards("llava").iou, rewards("llava").giou):
            with pytest.raises(VPPError, match=f"IoU is of one box, but a sample has {len(boxes)} true boxes"):
                reward([answer], boxes=[boxes], size_hw=[SIZE])

    def test_columns_of_another_length_and_completions_of_bytes_are_sentences(self) -> None:
        truth = {"boxes": [[(1, 2, 30, 40)]], "size_hw": [SIZE]}
        with pytest.raises(VPPError, match="each of 2 completions needs its row of every column, but boxes has 1"):
            rewards("llava").iou(["a", "b"], **truth)
        with pytest.raises(VPPError, match="a completion should be a text or the messages of a chat, but is b'a'"):
            rewards("llava").iou([b"a"], **truth)

    def test_format_is_not_earned_with_boxes_outside(self) -> None:
        reward = rewards("ferret")
        truth = {"boxes": [[(64, 48, 128, 144)]], "size_hw": [SIZE]}
        assert reward.format(["[1100, 100, 1200, 300] [100, 100, 200, 300]"], **truth) == [0]
        assert reward.iou(["[1100, 100, 1200, 300]"], **truth) == [0]
        assert "1 boxes lie wholly outside" in reward.iou.explanation()


def read(
    folder: Path, name: str, content: str, data_format: str, family: str = "llava"
) -> tuple[list[Sample], Reading]:
    (folder / name).write_text(content)
    Image.new("RGB", (200, 100)).save(folder / "a.png")
    reading = Reading(family=family)
    return list(read_samples(folder / name, data_format, images=folder, reading=reading)), reading


class TestData:
    @pytest.mark.parametrize("unit", [PIXELS, PIXELS_XYWH], ids=str)
    @pytest.mark.parametrize("box", [[10, 10, 0, 0], [200, 10, 200, 40], [10, 10, 10, 40], [10, 40, 30, 40]])
    def test_no_sample_has_a_box_that_nothing_can_hit(self, unit: object, box: list[float], tmp_path: Path) -> None:
        line = json.dumps({"image": "a.png", "sent": "the cup", "bbox": box, "height": 100, "width": 200})
        samples, reading = read(tmp_path, "rows.jsonl", line, "eval-jsonl")
        assert samples == [] or all(
            box_fault(one) is None for sample in samples for turn in sample.turns for one in turn.boxes
        )
        assert samples or reading.tally.counts.total() == 2

    def test_a_dialogue_s_flat_box_costs_its_turn(self, tmp_path: Path) -> None:
        ask = "Please provide the bounding box coordinate of the region this sentence describes: "
        turns = [
            {"from": "human", "value": f"<image>\n{ask}the cup."},
            {"from": "gpt", "value": "[0.10, 0.30, 0.10, 0.40]"},
            {"from": "human", "value": f"{ask}the tin."},
            {"from": "gpt", "value": "[0.10, 0.30, 0.20, 0.40]"},
        ]
        content = json.dumps([{"id": "1", "image": "a.png", "conversations": turns}])
        samples, reading = read(tmp_path, "train.json", content, "vpp-sft")
        assert reading.tally.counts == {Issue.FLAT: 1}
        assert [turn.expression for turn in samples[0].located()] == ["the tin"]

    @pytest.mark.parametrize("flat", [0, 1, 2])
    def test_one_flat_box_of_several_does_not_cost_the_others(self, flat: int, tmp_path: Path) -> None:
        """A COCO image with twenty people lost all of them where one had no height."""
        boxes = [[10 * number, 10, 8, 0 if number == flat else 8] for number in range(3)]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
            "categories": [{"id": 1, "name": "mouse"}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "bbox": box} for number, box in enumerate(boxes)
            ],
        }
        samples, reading = read(tmp_path, "coco.json", json.dumps(content), "coco")
        assert [len(turn.boxes) for turn in samples[0].located()] == [2]
        assert reading.tally.counts == {Issue.FLAT: 1}

    @pytest.mark.parametrize("broken", [[10, 10, 8, math.nan], [900, 10, 8, 8], [10, 10, -8, 8]])
    def test_a_broken_box_of_several_costs_the_turn(self, broken: list[float], tmp_path: Path) -> None:
        """What it should have been nobody knows, and the answer would lack it."""
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
            "categories": [{"id": 1, "name": "mouse"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "bbox": b} for n, b in enumerate([[1, 1, 8, 8], broken])
            ],
        }
        samples, reading = read(tmp_path, "coco.json", json.dumps(content), "coco")
        assert samples == []
        assert reading.tally.counts.total() == 2

    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_a_unit_writes_without_an_area_is_not_written(self, family: str, tmp_path: Path) -> None:
        """A kite's string one pixel wide became "[0.33, 0.20, 0.33, 0.40]", which a reader counts as no box."""
        thin, wide = [100.25, 60, 100.254, 80], [50, 10, 150, 90]
        turns = [{"locate": "string", "boxes": [thin]}, {"locate": "kite", "boxes": [wide]}]
        row = {"id": "1", "image": "a.png", "width": 200, "height": 100, "turns": turns}
        (tmp_path / "in.jsonl").write_text(json.dumps(row))
        named = {"source_format": "neutral", "target_format": "vpp-sft", "family": family}
        reading = Reading()
        done = convert(tmp_path / "in.jsonl", tmp_path / "out.json", reading=reading, **named)  # type: ignore[arg-type]
        again, told = read(tmp_path, "out.json", (tmp_path / "out.json").read_text(), "vpp-sft", family)
        keeps = family == "kosmos-2"  # which writes cells: a box has one at least
        assert [turn.expression for turn in again[0].located()] == (["string"] if keeps else []) + ["kite"]
        assert (done.turns, reading.tally.counts[Issue.NOT_WRITABLE]) == ((2, 0) if keeps else (1, 1))
        assert not told.tally.counts

    def test_a_detector_is_trained_on_none(self, tmp_path: Path) -> None:
        from vpp_plugins.train.detector.boxed_images import gather

        annotations = [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [29.6, 38.3, 1.1, 0.0], "iscrowd": 0},
        ]
        content = json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
                "categories": [{"id": 1, "name": "mouse"}, {"id": 2, "name": "cable"}],
                "annotations": annotations,
            }
        )
        samples, reading = read(tmp_path, "coco.json", content, "coco")
        assert [image.boxes for image in gather(samples, one_class=True)] == [((10.0, 10.0, 30.0, 30.0),)]
        assert reading.tally.counts == {Issue.FLAT: 1}
