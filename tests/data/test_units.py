import json
from pathlib import Path

import pytest

from tests.data.formats.layouts import BOX, COCO, human, image, lines, whole
from vpp_plugins import VPPError
from vpp_plugins.boxes import ImageMeta, codec
from vpp_plugins.data.convert import convert
from vpp_plugins.data.dataset import open_data
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.record import BoxUnit, LongSide, PixelBudget
from vpp_plugins.data.units import stated_unit, words_of

META = ImageMeta((480, 640))


@pytest.mark.parametrize(
    ("stated", "unit"),
    [
        ("pixels", BoxUnit()),
        ("resized", BoxUnit(resized=PixelBudget())),
        ("0-1", BoxUnit(full=1)),
        ("0-1000", BoxUnit(full=1000)),
        ("0-1,padded", BoxUnit("square", 1)),
        ("0-336", BoxUnit(full=336)),
        ("long-320", BoxUnit(resized=LongSide(320))),
        ("pixels,xywh", BoxUnit(order="xywh")),
    ],
)
def test_words_state_a_unit_and_come_back(stated: str, unit: BoxUnit) -> None:
    assert stated_unit(stated, BoxUnit(full=7)) == unit
    assert words_of(unit) == stated


def test_an_order_that_is_not_stated_is_the_formats_own() -> None:
    assert stated_unit("0-1", BoxUnit(order="xywh")).order == "xywh"
    assert stated_unit("0-1", codec("paligemma")).order == "yxyx"
    with pytest.raises(VPPError, match="writes cells, not coordinates"):
        stated_unit("0-1", codec("kosmos-2"))


@pytest.mark.parametrize(
    "stated", ["", "pixel", "0-0", "0-", "0-nan", "0-1,0-1000", "xyxy", "pixels,xyxy,xywh", "resized,padded", "long-0"]
)
def test_other_words_end_in_one_sentence(tmp_path: Path, stated: str) -> None:
    with pytest.raises(VPPError, match="is stated as pixels, resized, 0-1, 0-1000"):
        stated_unit(stated, BoxUnit())


def test_a_long_side_is_brought_to_pixels() -> None:
    box, _ = BoxUnit(resized=LongSide(320)).to_pixels([number / 2 for number in BOX], META)
    assert box == pytest.approx(BOX)


@pytest.mark.parametrize(
    ("stated", "numbers"),
    [
        ("pixels", [64, 96, 320, 384]),
        ("resized", [64.4, 95.2, 322, 380.8]),
        ("0-1", [0.1, 0.2, 0.5, 0.8]),
        ("0-1000", [100, 200, 500, 800]),
    ],
)
def test_dialogues_are_read_converted_and_trained_as_stated(tmp_path: Path, stated: str, numbers: list) -> None:
    image(tmp_path / "a.jpg")
    asked = human("<image>\nWhere is the cup?")
    rows = [{"id": "1", "image": "a.jpg", "conversations": [asked, {"from": "gpt", "value": str(numbers)}]}]
    path, reading = whole(tmp_path / "in.json", rows), Reading(boxes=stated)
    (sample,) = read_samples(path, "vpp-sft", images=tmp_path, reading=reading)
    assert sample.turns[0].boxes == (pytest.approx(BOX),)

    (stored,) = open_data(path, "vpp-sft", cache=tmp_path / "cache", reading=reading, progress=False)
    assert stored.sample == sample
    convert(path, tmp_path / "out.json", source_format="vpp-sft", target_format="vpp-sft", images=tmp_path,
            reading=reading, progress=False)  # fmt: skip
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["conversations"][1]["value"] == "[0.10, 0.28, 0.50, 0.72]".replace("0.10", "0.1").replace("0.50", "0.5")


def test_what_is_stated_is_part_of_what_a_converted_file_was_made_with(tmp_path: Path) -> None:
    """Else a run that states another unit would go on with the boxes of the first."""
    path = lines(tmp_path / "in.json", COCO)
    boxes = [
        open_data(path, "coco", cache=tmp_path / "cache", images=image(tmp_path / "a.jpg").parent, progress=False,
                  reading=Reading(boxes=stated))[0].sample.turns[0].boxes[0]
        for stated in ("", "0-1000")
    ]  # fmt: skip
    assert boxes[0] == (64, 96, 320, 384)
    assert boxes[1] == pytest.approx((40.96, 46.08, 204.8, 184.32))
