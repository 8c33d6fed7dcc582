import numpy as np
import pytest
import torch
from PIL import Image

from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD, letterbox, letterboxes

# (width, height) -> (top, left, height, width) at 640; rows of the table recorded from VPP-LLaVA's test transforms
# (commit facddeb), the odd paddings and the half-way roundings among them
LETTERBOXED = {
    (640, 640): (0, 0, 640, 640),
    (640, 480): (80, 0, 480, 640),
    (480, 640): (0, 80, 640, 480),
    (641, 640): (0, 0, 639, 640),
    (333, 500): (0, 107, 640, 426),
    (1280, 853): (107, 0, 426, 640),
    (37, 500): (0, 296, 640, 47),
    (1000, 3): (319, 0, 2, 640),
    (483, 593): (0, 59, 640, 521),
    (664, 648): (7, 0, 625, 640),
    (112, 571): (0, 257, 640, 126),
    (84, 80): (15, 0, 610, 640),
    (551, 259): (169, 0, 301, 640),
}


def noise(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "place"), LETTERBOXED.items())
def test_letterbox_places_images_as_the_reference_does(size: tuple[int, int], place: tuple[int, int, int, int]) -> None:
    inside = (letterbox(noise(*size), 640) != 0).any(0)

    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    assert (rows[0], columns[0], len(rows), len(columns)) == place
    assert inside.sum() == place[2] * place[3]


def test_letterbox_normalises_an_unresized_image_exactly() -> None:
    image = noise(64, 32)

    boxed = letterbox(image, 64)

    expected = torch.from_numpy(np.array(image)).float().div(255).sub(torch.tensor(IMAGENET_MEAN))
    expected = expected.div(torch.tensor(IMAGENET_STD)).permute(2, 0, 1)
    assert torch.equal(boxed[:, 16:48], expected)
    assert not boxed[:, :16].any()
    assert not boxed[:, 48:].any()


def test_letterbox_equals_torchvisions_resize_of_the_8_bit_image() -> None:
    from torchvision.transforms import functional

    image = noise(90, 50)

    boxed = letterbox(image, 64)

    resized = functional.to_tensor(functional.resize(image, [36, 64]))
    assert torch.equal(boxed[:, 14:50], functional.normalize(resized, IMAGENET_MEAN, IMAGENET_STD))


def test_no_8_bit_value_normalises_to_the_padding_s_zero() -> None:
    """What tells padding from image, also in the half precisions that hosts run in."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)

    boxed = letterbox(Image.fromarray(values), 16)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert (boxed.to(dtype) != 0).all()


def test_images_that_come_several_times_are_letterboxed_as_ever() -> None:
    red, blue = Image.new("RGB", (20, 30), "red"), Image.new("RGB", (30, 20), "blue")

    boxed = letterboxes([red, blue, red], 64)

    assert torch.equal(boxed, torch.stack([letterbox(image, 64) for image in (red, blue, red)]))
