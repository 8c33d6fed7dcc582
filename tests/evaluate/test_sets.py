"""Several boxes and none, from rows to figures and pages."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub, make_rows
from vpp_plugins import VPPError
from vpp_plugins.boxes import BOX_CODECS, Box, BoxStatus, ImageMeta, codec
from vpp_plugins.data import Issue, Locate, Sample, Tally
from vpp_plugins.data.scenes import Shapes, write_scenes
from vpp_plugins.evaluate import compare, load_evaluation, load_rows, measure
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import judge, odd_sets, summarise
from vpp_plugins.evaluate.rows import Row, check_rows, fingerprint, rows_of_samples

LLAVA, META = codec("llava"), ImageMeta((100, 100))
LEFT, RIGHT, FAR = (0.0, 0.0, 40.0, 100.0), (60.0, 0.0, 100.0, 100.0), (45.0, 0.0, 55.0, 10.0)
SETS, GREFCOCO = protocol("sets"), protocol("grefcoco")


def row(number: int, *boxes: Box) -> Row:
    return Row(id=f"a/{number}", image=Image.new("RGB", (100, 100)), size_hw=(100, 100), expression="cups", boxes=boxes)


def said(boxes: Sequence[Box]) -> str:
    return LLAVA.encode(boxes, META)


@pytest.mark.parametrize(
    ("answer", "truth", "iou", "f1"),
    [
        (said([RIGHT, LEFT]), (LEFT, RIGHT), 1, 1),
        (said([LEFT]), (LEFT, RIGHT), 0, 2 / 3),
        (said([LEFT, RIGHT, FAR]), (LEFT, RIGHT), 0, 0.8),
        (said([LEFT, LEFT]), (LEFT, RIGHT), 0, 0.5),
        (said([LEFT, (60.0, 0.0, 100.0, 60.0)]), (LEFT, RIGHT), 0.6, 1),
        (said([LEFT] * 100), (LEFT,), 0, 2 / 101),
        ("[]", (LEFT, RIGHT), 0, 0),
        ("hm", (LEFT,), 0, 0),
        ("[]", (), 1, 1),
        ("There is none.", (), 1, 1),
        ("hm", (), 0, 0),
        ("", (), 0, 0),
        (said([LEFT]), (), 0, 0),
    ],
)
def test_answers_are_judged_as_sets(answer: str, truth: tuple[Box, ...], iou: float, f1: float) -> None:
    (one,) = judge([Answer.of(row(0, *truth), answer, META)], SETS, LLAVA)
    assert (one.iou, one.f1) == (pytest.approx(iou, abs=0.01), pytest.approx(f1))
    assert one.correct == (f1 == 1)


def test_grefcoco_takes_any_answer_without_a_box_for_none_and_counts_by_giou() -> None:
    apart = row(0, (0.0, 0.0, 20.0, 20.0))
    near = said([(0.0, 0.0, 20.0, 10.0)])  # IoU and GIoU 0.5
    beside = said([(6.0, 6.0, 26.0, 20.0)])
    assert GREFCOCO.score(GREFCOCO.read("hm", META, LLAVA), (), META, LLAVA) == (1, 1)
    assert GREFCOCO.score(GREFCOCO.read(near, META, LLAVA), apart.boxes, META, LLAVA)[1] == 1
    by_iou, by_giou = (
        rules.score(rules.read(beside, META, LLAVA), apart.boxes, META, LLAVA)[0] for rules in (SETS, GREFCOCO)
    )
    assert by_giou < by_iou


def test_figures_say_how_often_something_or_nothing_is_seen() -> None:
    rows = [row(0, LEFT, RIGHT), row(1, LEFT), row(2), row(3)]
    answers = [said([LEFT, RIGHT]), "[]", "[]", said([LEFT, LEFT])]
    given = [Answer.of(one, answer, META) for one, answer in zip(rows, answers, strict=True)]
    figures = summarise(judge(given, SETS, LLAVA), SETS)

    assert figures["acc_50"]["mean"] == 0.5
    assert (figures["n_acc"]["mean"], figures["t_acc"]["mean"], figures["f1"]["mean"]) == (0.5, 0.5, 0.5)
    assert odd_sets(figures) == ["1 answers repeat a box: every repetition counts as a box too many."]
    assert odd_sets({"hundred_boxes": 2})[0].startswith("2 answers hold 100 boxes or more")
    assert "n_acc" not in summarise(judge(given[:2], SETS, LLAVA), SETS)


@pytest.mark.parametrize("family", sorted(name for name, one in BOX_CODECS.items() if one.text is not None))
def test_each_family_says_several_and_none(family: str) -> None:
    one, meta = codec(family), ImageMeta((448, 448), (448, 448))
    boxes = [(0.0, 0.0, 224.0, 448.0), (224.0, 0.0, 448.0, 224.0)]
    for truth in (boxes, []):
        decoded = one.decode(one.encode(truth, meta), meta)
        assert len(decoded.boxes_xyxy_px) == len(truth)
        assert SETS.score(SETS.read(one.encode(truth, meta), meta, one), truth, meta, one)[1] == 1
    assert decoded.statuses == (BoxStatus.NONE,)


def test_rows_are_what_the_task_can_ask(tmp_path: Path) -> None:
    turns = (Locate("cup", (LEFT,)), Locate("cups", (LEFT, RIGHT)), Locate("hat", ()), Locate("tins", (LEFT, LEFT)))
    tally = Tally()
    rows = rows_of_samples([Sample("s", "a.png", 100, 100, turns)], tmp_path, tally, task="set")
    assert [(one.expression, one.boxes) for one in rows] == [("cup", (LEFT,)), ("cups", (LEFT, RIGHT)), ("hat", ())]
    assert tally.counts == {Issue.REPEATED_BOX: 1}
    with pytest.raises(VPPError, match="row 's/1' has 2 true boxes, where one is asked for"):
        _ = rows[1].box


def test_a_row_that_repeats_a_box_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(VPPError, match="row 'a/0' has the same true box twice: leave the row out, or one of the two"):
        check_rows([row(0, LEFT, LEFT)])


def test_one_box_has_the_fingerprint_that_it_always_had() -> None:
    assert fingerprint(make_rows(3))[:16] == "0d434ba6ec4e0504"
    assert len({fingerprint([row(0, *boxes)]) for boxes in ((), (LEFT,), (LEFT, RIGHT), (RIGHT, LEFT))}) == 4


def test_answers_of_0_1_0_are_read() -> None:
    answer = Answer.of(row(0, LEFT), "[0, 0, 1, 1]", META)
    old = json.loads(json.dumps({**answer.__dict__, "box": list(LEFT)}))
    del old["boxes"]
    assert Answer.from_json(old) == answer


def test_scenes_of_the_split_sets_from_folder_to_page(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 4, 0, "sets", source=Shapes(), size=128, progress=False)
    tally = Tally()
    rows = load_rows(str(folder), task="set")
    assert {one.kind for one in rows} >= {"several", "none"}
    assert len(load_rows(str(folder), tally=tally)) + tally.counts.total() == len(rows)

    def measured(name: str, say: str | None) -> dict:
        truths = iter([rows[number] for batch in plan_of(rows) for number in batch])
        stub = Stub(lambda question, image: said_of(next(truths)) if say is None else say)
        return measure(stub, rows, SETS, tmp_path / name, model=name, data="scenes")

    right, never = measured("right", None), measured("never", "[]")
    assert right["figures"]["acc_50"]["mean"] == right["figures"]["n_acc"]["mean"] == 1
    assert (never["figures"]["n_acc"]["mean"], never["figures"]["t_acc"]["mean"]) == (1, 0)
    assert "N-acc" in (tmp_path / "right" / "report.html").read_text()
    found = compare(load_evaluation(tmp_path / "right"), load_evaluation(tmp_path / "never"))
    assert found.by_kind["none"][1:] == (1, 1)


def plan_of(rows: list[Row]) -> list[list[int]]:
    from vpp_plugins.evaluate import plan

    return plan(rows, 8)


def said_of(one: Row) -> str:
    return LLAVA.encode(one.boxes, ImageMeta(one.size_hw))
