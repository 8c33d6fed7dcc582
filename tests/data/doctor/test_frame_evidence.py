import numpy as np
import pytest

from vpp_plugins.boxes import BOX_CODECS, codec
from vpp_plugins.data.doctor.frame_evidence import (
    Candidate,
    agreement,
    all_candidates,
    declared_candidate,
    judge,
)
from vpp_plugins.data.record import BoxUnit, LongSide, PixelBudget

SIZES = np.array([(640, 480), (480, 640), (500, 375), (427, 640), (1024, 683)], float)
LLAVA = Candidate(BoxUnit("square", 1.0))
PIXELS = Candidate(BoxUnit())
DECIMALS = {1.0: 2, 100.0: 0, 1000.0: 0}  # others are pixels: 1


def boxes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes anywhere in images of several shapes: xyxy pixels, and (width, height)."""
    rng = np.random.default_rng(seed)
    sizes = SIZES[rng.integers(0, len(SIZES), count)]
    lengths = sizes * rng.uniform(0.08, 0.6, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (sizes - lengths)
    return np.concatenate([corners, corners + lengths], axis=1), sizes


def written(candidate: Candidate, pixels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers of boxes as a file of that convention holds them."""
    region = candidate.region(sizes)
    numbers = pixels * np.tile(region[:, 2:] / sizes, 2) + np.tile(region[:, :2], 2)
    if candidate.unit.order == "xywh":
        numbers = np.concatenate([numbers[:, :2], numbers[:, 2:] - numbers[:, :2]], axis=1)
    if candidate.unit.order == "cxcywh":
        numbers = np.concatenate([(numbers[:, :2] + numbers[:, 2:]) / 2, numbers[:, 2:] - numbers[:, :2]], axis=1)
    if candidate.unit.order == "yxyx":
        numbers = numbers[:, [1, 0, 3, 2]]
    return np.round(numbers, DECIMALS.get(candidate.unit.full, 1))


TRUTHS = [candidate for candidate in all_candidates() if candidate.unit.order != "yxyx" and not candidate.resized]
TRUTHS += [Candidate(BoxUnit(order="yxyx")), Candidate(BoxUnit("square", 1.0, "yxyx"))]
TRUTHS += [Candidate(BoxUnit(full=336.0)), Candidate(BoxUnit(resized=LongSide(336)))]
TRUTHS += [Candidate(BoxUnit(resized=PixelBudget(most=256 * 28**2)))]


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_the_truth_is_found_whatever_is_declared(truth: Candidate, count: int) -> None:
    for seed in range(3):
        pixels, sizes = boxes(count, seed)
        numbers = written(truth, pixels, sizes)
        for declared in (truth, LLAVA, PIXELS):
            verdict = judge(numbers, sizes, declared)
            assert verdict.decided
            assert verdict.best == truth
            assert verdict.contradicts == (declared != truth)


@pytest.mark.parametrize("truth", all_candidates(), ids=str)
def test_pixels_of_what_was_written_are_the_boxes(truth: Candidate) -> None:
    pixels, sizes = boxes(50, 0)
    step = 10.0 ** -DECIMALS.get(truth.unit.full, 1) * (sizes / truth.region(sizes)[:, 2:]).max()
    assert np.abs(truth.pixels(written(truth, pixels, sizes), sizes) - pixels).max() <= step


def test_a_few_broken_boxes_do_not_turn_the_verdict() -> None:
    pixels, sizes = boxes(200, 0)
    numbers = written(LLAVA, pixels, sizes)
    numbers[:10] += 0.9
    numbers[10:20] = numbers[10:20][:, [2, 3, 0, 1]]
    verdict = judge(numbers, sizes, LLAVA)
    assert (verdict.best, verdict.contradicts) == (LLAVA, False)


def test_pixels_of_small_images_are_not_certainly_those_of_resized_ones() -> None:
    """64 x 96 becomes 56 x 84, which holds boxes that leave the edges free more tightly: --fix moved all of them."""
    rng = np.random.default_rng(0)
    sizes = np.tile([(64.0, 96.0), (96.0, 64.0)], (20, 1))
    corners = rng.uniform(0.1, 0.4, (40, 2)) * sizes
    numbers = np.round(np.concatenate([corners, corners + rng.uniform(0.1, 0.35, (40, 2)) * sizes], axis=1))

    verdict = judge(numbers, sizes, LLAVA)

    assert verdict.contradicts
    assert not verdict.decided
    assert verdict.best == PIXELS
    assert {type(rival.unit.resized) for rival in verdict.rivals} == {PixelBudget}
    assert judge(numbers, sizes, PIXELS).best == PIXELS


def test_square_images_do_not_tell_padded_from_whole() -> None:
    pixels, _ = boxes(100, 0)
    sizes = np.full((100, 2), 1024.0)
    whole = Candidate(BoxUnit("image", 1.0))
    numbers = written(whole, pixels, sizes)
    for declared in (LLAVA, whole):
        verdict = judge(numbers, sizes, declared)
        assert verdict.decided
        assert not verdict.contradicts


def test_things_in_the_middle_are_no_evidence_of_a_smaller_frame() -> None:
    """A healthy set in pixels was taken for one in pixels of images resized to 512, as its boxes fit these too."""
    rng = np.random.default_rng(0)
    for sizes in (SIZES[rng.integers(0, 5, 300)], np.full((300, 2), (640.0, 480.0)), np.full((300, 2), 448.0)):
        lengths = sizes * rng.uniform(0.1, 0.4, (300, 2))
        corners = sizes * rng.normal(0.5, 0.05, (300, 2)) - lengths / 2
        verdict = judge(np.concatenate([corners, corners + lengths], axis=1).round(1), sizes, PIXELS)
        assert verdict.best == PIXELS
        assert not verdict.contradicts


def test_where_only_the_frame_is_open_the_unit_still_is_wrong() -> None:
    pixels, _ = boxes(12, 5)
    sizes = np.full((12, 2), (640.0, 600.0))  # hardly padded
    numbers = written(Candidate(BoxUnit("square", 1000.0)), pixels * sizes[0].min() / 1024, sizes)
    verdict = judge(numbers, sizes, LLAVA)

    assert not verdict.decided
    assert verdict.contradicts
    assert "do not decide" in str(verdict)


def test_one_box_decides_little() -> None:
    pixels, sizes = boxes(1, 3)
    verdict = judge(written(LLAVA, pixels, sizes), sizes, Candidate(BoxUnit("image", 1.0)))
    assert not verdict.contradicts
    assert "do not decide" in str(verdict) or "most likely are what the file says" in str(verdict)


def test_nothing_to_judge() -> None:
    assert judge(np.zeros((0, 4)), np.zeros((0, 2)), LLAVA) is None
    assert judge(np.zeros((3, 4)), np.full((3, 2), np.nan), LLAVA) is None


def test_agreement_allows_for_the_rounding() -> None:
    sizes = np.array([[640.0, 480.0]])
    for numbers, inside in (
        ([0.0, 0.12, 1.0, 0.88], True),
        ([0.0, 0.11, 1.0, 0.88], False),
        ([0.0, 0.12, 1.01, 0.5], False),
    ):
        assert agreement(np.array([numbers]), sizes, LLAVA)[1].tolist() == [inside]
    assert agreement(np.array([[0.5, 0.5, 0.4, 0.6]]), sizes, LLAVA)[0].tolist() == [False]


def test_every_family_of_four_numbers_has_a_candidate() -> None:
    for name in BOX_CODECS:
        declared = declared_candidate(codec(name))
        assert (declared is None) == (name == "kosmos-2")
    assert declared_candidate(codec("llava")) == LLAVA
    assert declared_candidate(codec("paligemma")).unit.order == "yxyx"
