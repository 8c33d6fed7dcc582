"""Stand-ins for the images, which are too large and not free enough to be committed."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vpp_plugins.data.scenes.assets import Assets, find_assets, keep_images, wanted_images


@pytest.fixture(scope="session")
def unpacked_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dpkg-deb -x` leaves, with a blot for every stamp and a plain colour for every photograph."""
    root = tmp_path_factory.mktemp("unpacked")
    for number, origin in enumerate(wanted_images().values()):
        path = root / origin
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
        if path.suffix == ".png":
            stamp = Image.new("RGBA", (90, 70))
            ImageDraw.Draw(stamp).ellipse((10, 5, 40 + number % 40, 60), fill=(*colour, 255))
            stamp.save(path)
        else:
            Image.new("RGB", (160, 120), colour).save(path)
    return root


@pytest.fixture(scope="session")
def assets(unpacked_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Assets:
    folder = tmp_path_factory.mktemp("assets") / "assets"
    keep_images(unpacked_packages, folder)
    return find_assets(folder)
