"""Slow on purpose: images are decoded up to a limit, the same for every command, which each of them can raise."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.commands import vpp
from vpp_plugins import VPPError
from vpp_plugins.config import MAX_IMAGE_PIXELS, most_image_pixels
from vpp_plugins.images import load_image


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit of 8,000 pixels, so that no large image need be made."""
    monkeypatch.setenv(MAX_IMAGE_PIXELS, "8000")
    yield
    os.environ[MAX_IMAGE_PIXELS] = "8000"  # what a command has set is taken back with it


@pytest.fixture
def large(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 90), "white").save(tmp_path / "a.png")
    row = {"image": "a.png", "sent": "the cup", "bbox": [10, 10, 40, 40], "height": 90, "width": 100}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_the_limit_is_the_environment_s(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VPPError, match=r"100 x 90 pixels, and at most 8,000 .*vpp --max-image-pixels 9000"):
        load_image(large / "a.png")
    monkeypatch.setenv(MAX_IMAGE_PIXELS, "9000")
    assert load_image(large / "a.png").size == (100, 90)
    monkeypatch.delenv(MAX_IMAGE_PIXELS)
    assert most_image_pixels() == 64_000_000


@pytest.mark.parametrize("value", ["0", "-1", "1e9", "many", "9" * 5000, "٣"])
def test_a_limit_that_is_no_number(value: str, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_IMAGE_PIXELS, value)
    with pytest.raises(VPPError, match="VPP_MAX_IMAGE_PIXELS should be a whole number from 1"):
        load_image(large / "a.png")


def test_ground_and_the_doctor_say_so_and_raise_it(large: Path) -> None:
    """The doctor decoded up to Pillow's own limit what no other command would read."""
    doctor = ["doctor", large / "rows.jsonl", "--format", "eval-jsonl", "--images", large]
    refused, allowed = vpp(*doctor), vpp("--max-image-pixels", "9000", *doctor)
    assert "unreadable images: 1 of 1" in refused.printed
    assert "Missing, damaged, or of too many pixels (vpp --max-image-pixels)" in refused.printed
    assert "unreadable" not in allowed.printed
    os.environ[MAX_IMAGE_PIXELS] = "8000"
    ended = vpp("ground", "--image", large / "a.png", "--expr", "the cup")
    assert (ended.code, "--max-image-pixels" in ended.complained) == (1, True)
    ended = vpp("--max-image-pixels", "9000", "ground", "--image", large / "a.png", "--expr", "the cup")
    assert (ended.code, ended.complained) == (0, "")


def test_scenes_that_no_memory_holds(tmp_path: Path) -> None:
    """The process was killed for the memory it took."""
    ended = vpp("data", "scenes", "--out", tmp_path / "scenes", "--count", "1", "--shapes", "--size", "100000")
    assert (ended.code, "size must be at most 4096 pixels, not 100000" in ended.complained) == (1, True)
    assert not (tmp_path / "scenes").exists()


def test_a_limit_beyond_pillow_s_is_refused() -> None:
    assert vpp("--max-image-pixels", "999999999", "plugins").code == 2
