import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_plugins.boxes import BoxStatus, ImageMeta, codec
from vpp_plugins.data.record import PIXELS, PIXELS_XYWH, RELATIVE, BoxUnit

META = ImageMeta((480, 640))


@pytest.mark.parametrize(
    ("unit", "numbers"),
    [
        (PIXELS, (64, 96, 320, 384)),
        (PIXELS_XYWH, (64, 96, 256, 288)),
        (BoxUnit(order="yxyx"), (96, 64, 384, 320)),
        (BoxUnit(order="cxcywh"), (192, 240, 256, 288)),
        (RELATIVE, (0.1, 0.2, 0.5, 0.8)),
        (BoxUnit("square"), (64, 176, 320, 464)),
        (BoxUnit("square", 100.0), (10, 27.5, 50, 72.5)),
    ],
    ids=str,
)
def test_one_box_in_every_unit(unit: BoxUnit, numbers: tuple[float, ...]) -> None:
    assert unit.to_pixels(numbers, META) == (pytest.approx((64, 96, 320, 384)), BoxStatus.OK)


@given(numbers=st.tuples(*[st.floats(-0.5, 1.5)] * 4))
def test_the_padded_square_is_the_codecs(numbers: tuple[float, ...]) -> None:
    ours, theirs = BoxUnit("square", 1.0).to_pixels(numbers, META), codec("llava").to_pixels(numbers, META)
    if BoxStatus.OK not in (ours[1], theirs[1]):  # how far beyond the edge is still rounding differs
        assert ours == (pytest.approx(theirs[0]), theirs[1])


def test_what_exceeds_the_edge_by_rounding_is_kept_as_it_is() -> None:
    assert PIXELS.to_pixels((-0.4, 0, 640.3, 480), META) == ((-0.4, 0, 640.3, 480), BoxStatus.OK)
    assert PIXELS.to_pixels((-0.6, 0, 640.3, 480), META) == ((0, 0, 640, 480), BoxStatus.CLIPPED)
    assert PIXELS.to_pixels((30, 0, 10, 480), META)[1] is BoxStatus.INVERTED
