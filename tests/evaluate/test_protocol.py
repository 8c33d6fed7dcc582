import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.conftest import make_rows
from tests.reference import reference
from vpp_plugins import VPPError
from vpp_plugins.boxes import BOX_CODECS, BoxStatus, ImageMeta, codec
from vpp_plugins.evaluate.protocol import Protocol, protocol, protocols
from vpp_plugins.evaluate.readers import _INTERNVL as INTERNVL
from vpp_plugins.evaluate.readers import ParsedBox

FROZEN = {
    "default": "56bd311093cf8af9",
    "grefcoco": "905e5724af2882f3",
    "groundingme": "1eb4bd4fe9b154c6",
    "internvl": "89f9ba5e9c076a9b",
    "lmms-eval": "8e931fd84fc2eb14",
    "minigpt-v2": "cf50b2e645cbb527",
    "qwen-vl": "c0fea31a066276f3",
    "ref-adv": "754a87da9943e6df",
    "ref-l4": "53b3315b4777cf6e",
    "region-caption": "81c410eb17723443",
    "sets": "62fc6e264d9bf7fc",
    "shikra": "83b611e4367f6973",
    "vpp-llava": "28c553f3d2b0ee0d",
}
"""SHA-256 of each protocol's file, first 16 digits: a protocol that changes needs a new name."""

UNPAD = reference("unpad")["rows"]


def read_by(name: str, answer: str, size_hw: tuple[int, int] = (100, 200)) -> ParsedBox:
    rules = protocol(name)
    return rules.read(answer, ImageMeta(size_hw), codec(rules.family or "llava"))


class TestFiles:
    def test_they_are_frozen(self) -> None:
        assert {name: one.sha256[:16] for name, one in protocols().items()} == FROZEN

    def test_every_file_is_a_protocol_of_its_own_name(self) -> None:
        folder = Path(__file__).parents[2] / "vpp_plugins" / "evaluate" / "protocols"

        assert sorted(path.stem for path in folder.glob("*.toml")) == sorted(protocols())

    def test_unknown_name(self) -> None:
        with pytest.raises(VPPError, match=re.escape("no protocol is called 'shikr'. Did you mean 'shikra'?")):
            protocol("shikr")


class TestAsking:
    def test_in_the_family_s_words_or_in_the_protocol_s(self) -> None:
        row = make_rows(1)[0]

        assert protocol("default").ask(row, codec("qwen2.5-vl")) == codec("qwen2.5-vl").prompt("thing 0")
        assert protocol("lmms-eval").ask(row, codec("llava")).endswith("describes: thing 0")

    def test_a_caption_is_asked_for_a_box(self) -> None:
        row = make_rows(1)[0]

        assert protocol("region-caption").ask(row, codec("llava")) == (
            "Please provide a short description for this region: [0.05, 0.35, 0.3, 0.65]."
        )

    def test_a_caption_s_box_in_pixels_of_the_resized_image(self) -> None:
        """It refused: the size was not known when the question was written."""
        row, family = make_rows(1)[0], codec("qwen2.5-vl")
        asked = protocol("region-caption").ask(row, family, ImageMeta(row.size_hw, (40, 80)))

        assert asked == 'Please provide a short description for this region: [{"bbox_2d": [4, 8, 24, 32]}].'
        with pytest.raises(VPPError, match="processed_size_hw is missing"):
            protocol("region-caption").ask(row, family)

    def test_vpp_llava_asks_as_its_codec_does(self) -> None:
        row = make_rows(1)[0]

        assert protocol("vpp-llava").ask(row, codec("vpp-llava")) == codec("vpp-llava").prompt("thing 0")


@pytest.mark.parametrize("row", UNPAD, ids=lambda row: row["text"][:40])
def test_vpp_llava_equals_the_recorded_table(row: dict) -> None:
    """Rows of the reference's own evaluation script, malformed answers among them."""
    rules, family, meta = protocol("vpp-llava"), codec("vpp-llava"), ImageMeta(tuple(row["hw"]))
    reading = rules.read(row["text"], meta, family)
    iou = rules.iou(reading, tuple(row["gt_bbox"]), meta, family)

    assert reading.box is None or list(reading.box) == row["unpadded"]
    assert iou == pytest.approx(row["iou"], abs=1e-7)
    assert rules.is_correct(iou) == row["correct"]


def test_vpp_llava_s_quirks_are_not_the_default_s() -> None:
    tight = "[0.1,0.2,0.5,0.6]"  # no blanks: the published script gives up

    assert read_by("vpp-llava", tight).status is BoxStatus.UNPARSABLE
    assert read_by("default", tight).box is not None


class TestReading:
    def test_shikra_takes_one_box_on_the_padded_square(self) -> None:
        assert read_by("shikra", "Answer: [0.250,0.500,0.500,0.750] .").box == (50, 50, 100, 100)
        assert read_by("shikra", "[0.1,0.2,0.3,0.4] or [0.1,0.2,0.3,0.4]").box is None

    def test_minigpt_takes_four_integers_with_or_without_braces(self) -> None:
        assert read_by("minigpt-v2", "{<10><20><50><100>}").box == (20, 20, 100, 100)
        assert read_by("minigpt-v2", "10 20 50 100").box is None  # blanks are taken out first
        assert read_by("minigpt-v2", "<10><20><50><100>").box == (20, 20, 100, 100)
        assert read_by("minigpt-v2", "{<10><20><50>}").box is None

    def test_qwen_divides_by_999(self) -> None:
        box = read_by("qwen-vl", "<box>(0,0),(999,500)</box>").box

        assert box is not None
        assert box == pytest.approx((0, 0, 200, 100 * 500 / 999))

    def test_internvl_guesses_the_unit_from_the_sum(self) -> None:
        assert read_by("internvl", "[[100, 200, 500, 600]]").box == (20, 20, 100, 60)
        assert read_by("internvl", "[[0.1, 0.2, 0.5, 0.6]]").box == pytest.approx((20, 20, 100, 60))

    def test_lmms_eval_ignores_the_padding(self) -> None:
        assert read_by("lmms-eval", "it is [0.1, 0.2, 0.5, 0.6]").box == (20, 20, 100, 60)

    @pytest.mark.parametrize("name", sorted(protocols()))
    @pytest.mark.parametrize("answer", ["", "no", "[nan, 1, 1, 1]", "[1e400, 0, 0, 0]", "(" * 50_000, "[1" * 50_000])
    def test_what_is_no_box_is_none(self, name: str, answer: str) -> None:
        assert read_by(name, answer).box is None

    def test_a_box_beyond_the_image_and_an_inverted_one_say_so(self) -> None:
        assert read_by("qwen-vl", "(0,0),(1500,500)").status is BoxStatus.CLIPPED
        assert read_by("qwen-vl", "(500,0),(100,500)").status is BoxStatus.INVERTED


@pytest.mark.parametrize("name", ["vpp-llava", "internvl", "qwen-vl"])
@pytest.mark.parametrize("number", ["1e38", "1e300", "-1e300"])
def test_a_number_too_large_for_single_precision_is_no_accident(name: str, number: str) -> None:
    rules, meta = protocol(name), ImageMeta((100, 200))
    for written in (f"[{number}, {number}, 1, 1]", f"[0, 0, {number}, {number}]", f"(0,0),({number},{number})"):
        reading = rules.read(written, meta, codec(rules.family))

        assert 0 <= rules.iou(reading, (10, 10, 50, 50), meta, codec(rules.family)) < 0.1


class TestCounting:
    def test_at_least_or_more_than_half(self) -> None:
        assert protocol("vpp-llava").is_correct(0.5)
        assert not protocol("shikra").is_correct(0.5)

    def test_minigpt_counts_a_pixel_more(self) -> None:
        rules = protocol("minigpt-v2")
        reading = ParsedBox((0.0, 0.0, 0.0, 0.0), BoxStatus.OK)

        assert rules.iou(reading, (0, 0, 0, 0), ImageMeta((10, 10)), codec("minigpt-v2")) == 1

    def test_shikra_s_truth_is_rounded_as_it_would_be_written(self) -> None:
        rules, family, meta = protocol("shikra"), codec("shikra"), ImageMeta((100, 200))
        truth = (10.03, 20.01, 50.02, 60.04)
        reading = rules.read(family.encode([truth], meta), meta, family)

        assert rules.iou(reading, truth, meta, family) == 1


@pytest.mark.parametrize("family", sorted(name for name, one in BOX_CODECS.items() if one.text is not None))
def test_a_perfect_predictor_loses_only_what_rounding_takes(family: str) -> None:
    """Under every family's own protocol: the overlap is at least that of a box moved by half a step on each side."""
    rules = next((one for one in protocols().values() if one.family == family), protocol("default"))
    one, meta = codec(family), ImageMeta((480, 640), (476, 644))
    truth = (100.0, 120.0, 420.0, 400.0)
    step_x, step_y = one.step_px(meta)
    width, height = truth[2] - truth[0], truth[3] - truth[1]
    least = (width - step_x) * (height - step_y) / ((width + step_x) * (height + step_y))
    if family == "kosmos-2":  # corners are read in the middle of their cells
        least = (width - 2 * step_x) * (height - 2 * step_y) / (width * height)

    reading = rules.read(one.encode([truth], meta), meta, one)

    assert rules.iou(reading, truth, meta, one) >= least - 1e-6


def test_protocols_are_data() -> None:
    assert Protocol(name="mine", source="here").is_correct(0.5)


@given(answer=st.lists(st.sampled_from(["[", "]", ",", "1", "20", " ", "\n", "x"]), max_size=30).map("".join))
def test_internvl_s_pattern_reads_what_the_script_s_own_reads(answer: str) -> None:
    """Ours cannot backtrack: on a long answer the script's takes for ever."""
    theirs = re.findall(re.compile(r"\[*\[(.*?),(.*?),(.*?),(.*?)\]\]*"), answer)
    ours = INTERNVL.search(answer)

    assert (ours.groups() if ours else None) == (theirs[0] if theirs else None)
