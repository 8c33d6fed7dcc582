import random
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.evaluate.conftest import Stub, make_rows, truthful
from vpp_plugins import VPPError
from vpp_plugins.boxes import ImageMeta, codec
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import judge, summarise
from vpp_plugins.evaluate.run import evaluate

DEFAULT = protocol("default")
LLAVA = codec("llava")


def answers_of(*texts: str) -> list[Answer]:
    return [Answer.of(row, text, None) for row, text in zip(make_rows(len(texts)), texts, strict=True)]


def test_a_perfect_predictor_reaches_the_ceiling(tmp_path: Path) -> None:
    rows = make_rows(20)
    figures = summarise(judge(evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "out"), DEFAULT, LLAVA), DEFAULT)

    assert figures["acc_50"]["mean"] == 1
    assert figures["mean_iou"]["mean"] > 0.9
    assert figures["statuses"]["ok"] == 20
    assert (figures["rows"], figures["pictures"]) == (20, 10)


def test_an_accuracy_of_nothing_or_all_is_not_said_to_be_certain(tmp_path: Path) -> None:
    figures = summarise(judge(answers_of(*["no idea"] * 8), DEFAULT, LLAVA), DEFAULT)

    assert (figures["acc_50"]["low"], figures["acc_50"]["method"]) == (0, "Wilson")
    assert figures["acc_50"]["high"] == pytest.approx(0.49, abs=0.01)  # of four images
    assert figures["mean_iou"]["method"] == "bootstrap"


def test_each_kind_of_answer_is_counted() -> None:
    answers = answers_of("[0.1, 0.3, 0.2, 0.6]", "[0.5, 0.6, 0.1, 0.3]", "[0.1, 0.3, 1.4, 0.6]", "hm", "there is none")
    answers += [Answer.of(make_rows(6)[5], "", None, error="cannot be read")]
    figures = summarise(judge(answers, DEFAULT, LLAVA), DEFAULT)

    assert figures["statuses"] == {"ok": 1, "clipped": 1, "inverted": 1, "unparsable": 1, "none": 1, "unreadable": 1}


def test_groups_and_curve() -> None:
    rows = make_rows(4)
    answers = [Answer.of(row, LLAVA.encode([row.box], ImageMeta(row.size_hw)), None) for row in rows[:2]]
    answers += [Answer.of(row, "no idea", None) for row in rows[2:]]
    figures = summarise(judge(answers, DEFAULT, LLAVA), DEFAULT)

    assert figures["by_kind"]["side"] == {"rows": 2, "acc_50": 1, "mean_iou": pytest.approx(0.94, abs=0.06)}
    assert figures["by_kind"]["colour"]["acc_50"] == 0
    assert figures["by_category"]["cup"]["acc_50"] == 0.5
    shares = [share for _, share in figures["curve"]]
    assert shares == sorted(shares, reverse=True)
    assert figures["curve"][9] == [0.5, 0.5]


def test_the_order_of_answers_does_not_matter() -> None:
    answers = answers_of(*(f"[0.1, 0.3, 0.{2 + number % 7}, 0.6]" for number in range(12)))
    mixed = list(answers)
    random.Random(0).shuffle(mixed)

    assert (
        summarise(judge(mixed, DEFAULT, LLAVA), DEFAULT)["mean_iou"]["mean"]
        == (summarise(judge(answers, DEFAULT, LLAVA), DEFAULT)["mean_iou"]["mean"])
    )


def test_more_than_half_is_asked_for_where_the_protocol_says_so() -> None:
    answer = Answer.of(make_rows(5)[4], "[0.0,0.0,0.5,1.0]", None)  # a square image of 30
    half = Answer(**{**asdict(answer), "size_hw": (30, 30), "boxes": ((0.0, 0.0, 30.0, 30.0),)})
    shikra = protocol("shikra")

    assert judge([half], DEFAULT, LLAVA)[0].correct
    assert not judge([half], shikra, codec("shikra"))[0].correct
    assert summarise(judge([half], shikra, codec("shikra")), shikra)["acc_50"]["mean"] == 0


def test_nothing_to_score() -> None:
    with pytest.raises(VPPError, match="nothing to score"):
        summarise([], DEFAULT)
