import random
from itertools import combinations

import pytest

from vpp_plugins.data.scenes.shapes import COLOURS, Shapes


@pytest.mark.parametrize("heldout", [False, True])
def test_every_shape_is_drawn_to_its_edges_in_its_colour(heldout: bool) -> None:
    for name in Shapes().names(heldout):
        for cutout in Shapes().cutouts(name):
            image = Shapes().render(cutout, 90)
            assert max(image.size) == 90
            extent = image.getchannel("A").point(lambda alpha: 255 * (alpha > 48)).getbbox()
            assert extent is not None
            assert all(abs(a - b) <= 1 for a, b in zip(extent, (0, 0, *image.size), strict=True)), cutout
            coloured = sum(pixel[:3] == COLOURS[cutout.attribute] and pixel[3] == 255 for pixel in pixels(image))
            assert 0.2 < coloured / (image.width * image.height) <= 1.0, cutout


def pixels(image):
    data = image.tobytes()
    return [tuple(data[start : start + 4]) for start in range(0, len(data), 4)]


def test_no_two_shapes_are_alike() -> None:
    names = Shapes().names(False) + Shapes().names(True)
    drawn = {name: Shapes().render(Shapes().cutouts(name)[0], 40).resize((40, 40)).getchannel("A") for name in names}
    for first, second in combinations(names, 2):
        differing = sum(
            abs(a - b) > 128 for a, b in zip(*(drawn[one].tobytes() for one in (first, second)), strict=True)
        )
        assert differing > 100, (first, second)


def test_the_split_is_fixed_and_separates_nothing_that_clashes() -> None:
    shapes = Shapes()
    assert shapes.names(heldout=True) == ("arrow", "crescent", "hexagon", "trapezoid")
    assert len(shapes.names(heldout=False)) == 8
    assert not any(shapes.clash(seen, other) for seen in shapes.names(False) for other in shapes.names(True))


@pytest.mark.parametrize("heldout", [False, True])
def test_backgrounds_are_nearly_grey_and_follow_the_random_numbers(heldout: bool) -> None:
    first = Shapes().background(random.Random(3), heldout, 120)
    assert first.size == (120, 120)
    assert first.tobytes() == Shapes().background(random.Random(3), heldout, 120).tobytes()
    assert first.tobytes() != Shapes().background(random.Random(4), heldout, 120).tobytes()
    assert max(max(pixel) - min(pixel) for pixel in zip(*[iter(first.tobytes())] * 3, strict=True)) < 100
