from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub, make_rows, truthful
from vpp_plugins import VPPError
from vpp_plugins.boxes import ImageMeta, codec
from vpp_plugins.evaluate.compare import compare
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import Evaluation, load_evaluation
from vpp_plugins.evaluate.run import evaluate, read_run, write_run

Say = Callable[[str, Image.Image], str]
ROWS = [replace(row, boxes=((3.0, 2.0, 9.0, 6.0),)) for row in make_rows(40)]
"""Boxes in a corner: read in another frame they are missed."""


def evaluation(folder: Path, say: Say, family: str = "llava") -> Evaluation:
    evaluate(Stub(say, family), ROWS, protocol("default"), folder)
    return load_evaluation(folder)


def half_right(question: str, image: Image.Image) -> str:
    return truthful(ROWS)(question, image) if image.getpixel((0, 0))[0] % 2 else "[0.9, 0.9, 1.0, 1.0]"


def in_the_original_frame(question: str, image: Image.Image) -> str:
    """Coordinates 0 to 1 of the image itself, from a model that is said to pad."""
    row = next(row for row in ROWS if f"{row.expression}." in question)
    x1, y1, x2, y2 = row.box
    return f"[{x1 / image.width:.3f}, {y1 / image.height:.3f}, {x2 / image.width:.3f}, {y2 / image.height:.3f}]"


def test_the_same_twice(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", truthful(ROWS))
    found = compare(a, a)

    assert found.accuracy.difference.mean == 0
    assert found.accuracy.p_value == 1


def test_a_gap_has_a_size_and_a_test(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", half_right), evaluation(tmp_path / "b", truthful(ROWS))
    found = compare(a, b)

    assert found.accuracy.difference.mean == pytest.approx(b.accuracy - a.accuracy)
    assert b.accuracy - a.accuracy > 0.3
    assert (found.accuracy.only_a, found.accuracy.only_b) == (0, round(len(ROWS) * (b.accuracy - a.accuracy)))
    assert found.accuracy.p_value is not None
    assert found.accuracy.p_value < 0.01
    assert found.by_kind["side"][0] == 20
    assert not any("chance" in reason for reason in found.reasons)


def test_a_wrong_frame_is_named(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", truthful(ROWS)), evaluation(tmp_path / "b", in_the_original_frame)
    reasons = compare(a, b).reasons

    assert any(
        reason.startswith("B's answers fit better when they are read as 0-1 on the original image")
        for reason in reasons
    )
    assert not any(reason.startswith("A's answers fit better") for reason in reasons)


def test_answers_without_a_box_are_named(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", lambda question, image: "I cannot see it")
    b = evaluation(tmp_path / "b", truthful(ROWS))

    assert "40 of A's 40 answers hold no box that the protocol reads." in compare(a, b).reasons


def test_another_protocol_is_named(tmp_path: Path) -> None:
    evaluation(tmp_path / "a", truthful(ROWS))
    a = load_evaluation(tmp_path / "a", "lmms-eval")
    b = load_evaluation(tmp_path / "a")
    reasons = compare(a, b).reasons

    assert any(reason.startswith("The protocols differ. Under 'lmms-eval', A has") for reason in reasons)


def test_a_small_gap_may_be_chance(tmp_path: Path) -> None:
    def all_but_one(question: str, image: Image.Image) -> str:
        return "no" if "thing 7." in question else truthful(ROWS)(question, image)

    found = compare(evaluation(tmp_path / "a", truthful(ROWS)), evaluation(tmp_path / "b", all_but_one))

    assert any("may be chance" in reason for reason in found.reasons)


class TestBadInput:
    def test_other_rows(self, tmp_path: Path) -> None:
        a = evaluation(tmp_path / "a", truthful(ROWS))
        evaluate(Stub(truthful(ROWS)), ROWS[:10], protocol("default"), tmp_path / "b")

        with pytest.raises(VPPError, match=r"evaluated different rows \(40 and 10\)"):
            compare(a, load_evaluation(tmp_path / "b"))

    def test_an_unfinished_evaluation(self, tmp_path: Path) -> None:
        evaluation(tmp_path / "a", truthful(ROWS))
        (tmp_path / "a" / "answers.jsonl").unlink()

        with pytest.raises(VPPError, match="there are no answers"):
            load_evaluation(tmp_path / "a")

    def test_a_protocol_that_has_changed(self, tmp_path: Path) -> None:
        evaluation(tmp_path / "a", truthful(ROWS))
        write_run(tmp_path / "a", {**read_run(tmp_path / "a"), "protocol_sha256": "0" * 64})

        with pytest.raises(VPPError, match="under another version of the protocol 'default'"):
            load_evaluation(tmp_path / "a")
        assert load_evaluation(tmp_path / "a", "default").accuracy > 0.9


def test_the_codec_reads_what_was_written() -> None:
    assert (
        codec("llava").decode(truthful(ROWS)("thing 1.", Image.new("RGB", (4, 4))), ImageMeta(ROWS[1].size_hw)).labels
    )
