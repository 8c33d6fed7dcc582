"""Rewards: right boxes earn, wrong ones do not, and zeros explain themselves."""

import warnings
from typing import Any

import pytest

from tests.tiny import tiny_processor
from vpp_plugins import VPPError
from vpp_plugins.boxes import BOX_CODECS, ImageMeta, codec
from vpp_plugins.train.rewards import NoRewardWarning, rewards

SIZE = (300, 400)
BOX = [100.0, 60.0, 300.0, 180.0]
FAR = [10.0, 200.0, 60.0, 280.0]
WRITING = [name for name, one in BOX_CODECS.items() if one.text is not None]


def answer(boxes: list[list[float]], family: str = "llava") -> str:
    return codec(family).encode(boxes, ImageMeta(SIZE, SIZE))


def columns(*truths: list[list[float]]) -> dict[str, Any]:
    return {"boxes": list(truths), "size_hw": [SIZE] * len(truths), "processed_size_hw": [SIZE] * len(truths)}


class TestEveryFamily:
    @pytest.mark.parametrize("family", WRITING)
    def test_the_right_box_earns_about_one_and_a_far_one_nothing(self, family: str) -> None:
        reward = rewards(family)
        texts = [answer([BOX], family), answer([FAR], family), "I see a cup."]
        truth = columns([BOX], [BOX], [BOX])

        right, far, none = reward.iou(texts, **truth)
        assert right > 0.8
        assert (far, none) == (0, 0)
        right, far, none = reward.giou(texts, **truth)
        assert right > 0.9
        assert right > 0.5 > far > 0 == none
        assert reward.f1(texts, **truth) == [1, 0, 0]
        assert reward.format(texts, **truth) == [1, 1, 0]

    def test_a_family_that_writes_points_is_refused(self) -> None:
        with pytest.raises(VPPError, match="writes points"):
            rewards("molmo")

    def test_the_unit_is_the_familys_however_large_the_numbers(self) -> None:
        """A box in pixels is no box in 0-1: it must not be taken for one that fits by chance."""
        assert rewards("llava").iou(["[100, 60, 300, 180]"], **columns([BOX])) == [0]


class TestCompletions:
    def test_texts_messages_and_parts_are_the_same(self) -> None:
        text = answer([BOX])
        parts = [{"type": "text", "text": text}]
        told = [text, [{"role": "assistant", "content": text}], [{"role": "assistant", "content": parts}]]
        first, *others = rewards("llava").iou(told, **columns([BOX], [BOX], [BOX]))
        assert others == [first, first]

    def test_other_columns_do_not_matter(self) -> None:
        given = rewards("llava").format([answer([BOX])], **columns([BOX]), prompts=["?"], trainer_state=None)
        assert given == [1]

    def test_with_a_tokenizer_special_tokens_are_read(self) -> None:
        """TRL's texts come without special tokens; where a family's boxes need them, no box would ever be found."""
        tokenizer = tiny_processor().tokenizer
        text = answer([BOX], "qwen-vl")
        tokenizer.add_tokens([text], special_tokens=True)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [""]

        assert rewards("qwen-vl").iou([""], completion_ids=ids, **columns([BOX])) == [0]
        (read,) = rewards("qwen-vl", tokenizer=tokenizer).iou([""], completion_ids=ids, **columns([BOX]))
        assert read > 0.9

    def test_a_single_box_may_stand_without_a_list(self) -> None:
        assert rewards("llava").format([answer([BOX])], boxes=[BOX], size_hw=[SIZE]) == [1]

    @pytest.mark.parametrize("wrong", [[1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]], [[[1.0, 2.0, 3.0, 4.0]]]])
    def test_a_column_of_something_else_is_named(self, wrong: Any) -> None:
        with pytest.raises(VPPError, match="the column 'boxes'"):
            rewards("llava").iou([""], boxes=[wrong], size_hw=[SIZE])


class TestSeveralBoxes:
    def test_order_does_not_matter_and_each_counts_once(self) -> None:
        f1 = rewards("llava").f1
        truth = columns([BOX, FAR])
        assert f1([answer([FAR, BOX])], **truth) == [1]
        assert f1([answer([BOX, BOX])], **truth) == [0.5]
        assert f1([answer([BOX])], **truth) == [pytest.approx(2 / 3)]

    def test_pairs_are_the_most_there_can_be(self) -> None:
        """A greedy choice would give the middle box to the first, and leave the second without any."""
        first, second = [0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, 150.0]
        found = [[0.0, 0.0, 100.0, 120.0], [0.0, 0.0, 100.0, 60.0]]
        assert rewards("llava").f1([answer(found)], **columns([first, second])) == [1]

    def test_nothing_is_right_where_nothing_is(self) -> None:
        assert rewards("llava").f1(["There is nothing.", answer([BOX]), "a cup"], **columns([], [], [])) == [1, 0, 0]

    def test_true_boxes_that_repeat_one_are_refused(self) -> None:
        with pytest.raises(VPPError, match=r"the column 'boxes' .* repeats a box"):
            rewards("llava").f1([answer([BOX])], **columns([BOX, BOX]))

    def test_a_hundred_boxes_earn_next_to_nothing(self) -> None:
        assert rewards("llava").f1([answer([BOX] * 100)], **columns([BOX])) == [pytest.approx(2 / 101)]

    def test_the_threshold_counts(self) -> None:
        half = [100.0, 60.0, 300.0, 125.0]
        assert rewards("llava", threshold=0.5).f1([answer([half])], **columns([BOX])) == [1]
        assert rewards("llava", threshold=0.9).f1([answer([half])], **columns([BOX])) == [0]
        with pytest.raises(VPPError, match="above 0 and at most 1"):
            rewards("llava", threshold=0)

    def test_iou_of_several_is_refused(self) -> None:
        with pytest.raises(VPPError, match="use the F1 reward"):
            rewards("llava").iou([answer([BOX])], **columns([BOX, FAR]))


class TestZeros:
    def test_answers_are_counted_by_status(self) -> None:
        iou = rewards("llava").iou
        iou([answer([BOX]), "no idea", "[0.9, 0.1, 0.2, 0.5]"], **columns([BOX], [BOX], [BOX]))
        assert {str(status): count for status, count in iou.statuses.items()} == {
            "ok": 1,
            "unparsable": 1,
            "inverted": 1,
        }
        assert (iou.answers, iou.rewarded) == (3, 2)
        assert "2 of 3" in iou.explanation()

    def test_trl_is_told_the_share_of_answers_without_a_box(self) -> None:
        told: dict[str, float] = {}
        rewards("llava").iou(["?", answer([BOX])], **columns([BOX], [BOX]), log_metric=told.__setitem__)
        assert told == {"iou_reward/unparsable": 0.5}

    def test_warns_once_and_says_what_a_box_looks_like(self) -> None:
        iou = rewards("llava").iou
        iou(["a cup"] * 32, **columns(*[[BOX]] * 32))
        with pytest.warns(NoRewardWarning, match=r"0 of 64 .*64 unparsable.*\[0\.1, 0\.2, 0\.6, 0\.8\].*'a cup'"):
            iou(["a cup"] * 32, **columns(*[[BOX]] * 32))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            iou(["a cup"], **columns([BOX]))

    def test_boxes_that_miss_are_told_from_none(self) -> None:
        iou = rewards("llava").iou
        with pytest.warns(NoRewardWarning, match="Boxes are read, but earn nothing"):
            iou([answer([FAR])] * 64, **columns(*[[BOX]] * 64))
