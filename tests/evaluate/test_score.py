import pytest

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import score

TRUTH = (0.0, 0.0, 100.0, 100.0)


def narrow(share: float) -> tuple[float, float, float, float]:
    """A box inside TRUTH whose IoU with it is `share`."""
    return 0.0, 0.0, 100.0 * share, 100.0


def test_thresholds_count_as_correct_when_they_are_reached() -> None:
    shares = [1.0, 0.9, 0.75, 0.5, 0.25]

    scores = score([narrow(share) for share in shares], [TRUTH] * 5)

    assert (scores.acc_50, scores.acc_75, scores.acc_90) == (0.8, 0.6, 0.4)
    assert (scores.count, scores.without_box) == (5, 0)
    assert scores.mean_iou == pytest.approx(sum(shares) / 5)


def test_an_answer_without_a_box_is_wrong_and_counted() -> None:
    scores = score([TRUTH, None, None], [TRUTH] * 3)

    assert scores.without_box == 2
    assert scores.mean_iou == scores.acc_50 == scores.acc_90 == pytest.approx(1 / 3)


def test_a_box_elsewhere_and_a_box_of_zeros_are_wrong_but_boxes() -> None:
    scores = score([(200.0, 200.0, 300.0, 300.0), (0.0, 0.0, 0.0, 0.0)], [TRUTH] * 2)

    assert (scores.mean_iou, scores.acc_50, scores.without_box) == (0, 0, 0)


def test_scores_do_not_depend_on_the_order() -> None:
    predicted = [narrow(0.3), None, narrow(0.8), TRUTH]
    truth = [TRUTH, TRUTH, TRUTH, narrow(0.6)]

    assert score(predicted, truth) == score(predicted[::-1], truth[::-1])


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(VPPError, match="1 came for 0"):
        score([TRUTH], [])
    with pytest.raises(VPPError, match="no boxes to score"):
        score([], [])
