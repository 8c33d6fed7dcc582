import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.tiny import image
from vpp_plugins import VPPError
from vpp_plugins.images import draw_boxes
from vpp_plugins.images.draw import COLOURS

WHITE = Image.new("RGB", (200, 100), "white")
BOXES = [(20.0, 10.0, 80.0, 60.0), (100.0, 30.0, 190.0, 90.0)]


def changed(drawn: Image.Image, before: Image.Image) -> np.ndarray:
    return (np.asarray(drawn) != np.asarray(before)).any(2)


def test_boxes_are_outlined_on_a_copy_in_one_colour_each() -> None:
    drawn = draw_boxes(WHITE, BOXES)

    for (left, top, right, bottom), colour in zip(BOXES, COLOURS, strict=False):
        x, y = (left + right) / 2, (top + bottom) / 2
        for place in ((left, y), (right, y), (x, top), (x, bottom)):
            assert drawn.getpixel((int(place[0]), int(place[1]))) == ImageColor.getrgb(colour)
        assert drawn.getpixel((int(x), int(y))) == (255, 255, 255)
    assert WHITE.getcolors() == [(200 * 100, (255, 255, 255))]


def test_without_boxes_the_image_is_the_same() -> None:
    assert draw_boxes(image(), []).tobytes() == image().tobytes()


def test_more_boxes_than_colours_go_round() -> None:
    boxes = [(10.0 * i, 10.0, 10.0 * i + 5, 20.0) for i in range(8)]

    drawn = draw_boxes(WHITE, boxes, colours=("#ff0000", "#0000ff"))

    assert [drawn.getpixel((10 * i, 15)) for i in range(8)] == [(255, 0, 0), (0, 0, 255)] * 4


@pytest.mark.parametrize("box", [*BOXES, (0.0, 0.0, 200.0, 100.0), (150.0, 95.0, 200.0, 100.0), (0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("text", ["cup", "an expression much longer than its image is wide " * 2, "çé 日本\nx"])
def test_labels_stand_on_the_image(box: tuple[float, float, float, float], text: str) -> None:
    with_label, without = draw_boxes(WHITE, [box], labels=[text]), draw_boxes(WHITE, [box])

    assert changed(with_label, without).sum() > 50
    assert draw_boxes(WHITE, [box], labels=[""]).tobytes() == without.tobytes()


def test_labels_and_boxes_must_be_as_many() -> None:
    with pytest.raises(VPPError, match="1 came for 2 boxes"):
        draw_boxes(WHITE, BOXES, labels=["cup"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_are_drawn_on_too(mode: str) -> None:
    assert draw_boxes(WHITE.convert(mode), BOXES).mode == "RGB"
