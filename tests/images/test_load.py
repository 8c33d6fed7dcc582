import base64
import contextlib
import functools
import http.server
import io
import random
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vpp_plugins.errors import VPPError
from vpp_plugins.images.load import (
    flatten_images,
    load_image,
    load_images,
)


def noise(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int = 1, y: int = 1) -> tuple[int, ...]:
    colour = image.getpixel((x, y))
    assert isinstance(colour, tuple)
    return colour


def test_a_path_its_text_its_bytes_and_the_image_give_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    noise().save(path)

    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert loaded.tobytes() == noise().tobytes()


def test_the_image_given_stays_as_it_was() -> None:
    given = noise().convert("RGBA")

    load_image(given).paste("red", (0, 0, 5, 5))

    assert given.tobytes() == noise().convert("RGBA").tobytes()


@pytest.mark.parametrize("colour", [(200, 30, 60), (0, 0, 0), (255, 255, 255)])
def test_cmyk_jpegs_keep_their_colour(colour: tuple[int, int, int]) -> None:
    cmyk = Image.new("RGB", (16, 16), colour).convert("CMYK")

    loaded = load_image(encoded(cmyk, "JPEG", quality=95))

    assert np.abs(np.subtract(pixel(loaded), colour)).max() <= 6


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_16_bit_greys_keep_their_shades(mode: str) -> None:
    """Pillow's own conversion clips every value above 255 to white."""
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    image = Image.fromarray(ramp)

    loaded = np.asarray(load_image(encoded(image) if mode == "I;16" else image.convert("I")), dtype=float)

    np.testing.assert_allclose(loaded, np.repeat(ramp[..., None] / 257, 3, axis=2), atol=0.5)


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    palette = Image.new("P", (16, 16), 3)
    palette.putpalette([10, 20, 30] * 256)
    grey = Image.new("LA", (16, 16), (0, 0))

    assert np.abs(np.subtract(pixel(load_image(encoded(half))), (255, 127, 127))).max() <= 1
    assert pixel(load_image(encoded(palette))) == (10, 20, 30)
    assert pixel(load_image(encoded(palette, transparency=3))) == (255, 255, 255)
    assert pixel(load_image(encoded(grey))) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]

    for kind in ("GIF", "WEBP"):
        loaded = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50))
        assert np.abs(np.subtract(pixel(loaded), (255, 0, 0))).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    """Viewers turn the stored image as the tag says; the numbers are those of the EXIF standard."""
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    loaded = load_image(encoded(noise(), exif=exif))

    upright = noise() if turn is None else noise().transpose(turn)
    assert loaded.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert loaded.tobytes() == upright.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7), (20_000, 10), (10, 20_000)])
def test_sides_beyond_the_limits_are_refused_by_name(size: tuple[int, int]) -> None:
    with pytest.raises(VPPError, match=f"is {size[0]} x {size[1]} pixels.*8 to 16384"):
        load_image(encoded(Image.new("L", size)))


@pytest.mark.parametrize("size", [(8, 8), (8, 16_384)])
def test_sides_at_the_limits_are_read(size: tuple[int, int]) -> None:
    assert load_image(encoded(Image.new("L", size))).size == size


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    """A PNG header that promises 400 million pixels, and no pixels at all."""
    small = encoded(Image.new("L", (10, 10)))
    end_of_header = 8 + 4 + 4 + 13 + 4
    header = bytearray(encoded(Image.new("L", (20_000, 1)))[:end_of_header])
    header[20:24] = (20_000).to_bytes(4, "big")
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")

    with pytest.raises(VPPError, match="too many pixels"):
        load_image(bytes(header) + small[end_of_header:])


def test_every_unreadable_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "short.jpg").write_bytes(encoded(noise(), "JPEG")[:-200])
    (tmp_path / "short.png").write_bytes(encoded(noise())[:-200])
    (tmp_path / "header.png").write_bytes(encoded(noise())[:20])

    for name, message in {
        "missing.jpg": "missing.jpg' does not exist: give the path",
        "text.png/below.jpg": "does not exist",
        "": "is a folder: give the path of one image",
        "empty.jpg": "empty.jpg' is empty",
        "text.png": "text.png' is not an image that can be read",
        "short.jpg": "short.jpg' is damaged or truncated",
        "short.png": "short.png' is damaged or truncated",
        "header.png": "header.png' is (damaged|not an image)",
    }.items():
        with pytest.raises(VPPError, match=message) as raised:
            load_image(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_file_without_permission_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(VPPError, match="may not be read"):
        load_image("photo.jpg")


def test_bytes_that_are_no_image_are_refused() -> None:
    for source, message in ((b"", "empty"), (b"GIF89a", "the image is"), (b"\x00" * 100, "not an image")):
        with pytest.raises(VPPError, match=message):
            load_image(source)


def test_floating_point_images_have_no_known_range() -> None:
    with pytest.raises(VPPError, match="floating-point"):
        load_image(Image.new("F", (16, 16)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"])
def test_damaged_files_raise_nothing_but_vpp_errors(kind: str) -> None:
    """AVIF's decoder raises RuntimeError, which once came through."""
    rng = random.Random(0)
    whole = encoded(noise(), kind)
    for _ in range(60):
        damaged = bytearray(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])
        for _ in range(min(4, len(damaged))):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        with contextlib.suppress(VPPError):
            load_image(bytes(damaged))


class TestAddresses:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[str]:
        """A web server of one folder, on this machine."""
        Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
        handler = functools.partial(QuietHandler, directory=tmp_path)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    def test_are_fetched(self, site: str) -> None:
        found = load_image(f"{site}/red.png")

        assert (found.size, found.getpixel((3, 3))) == ((20, 30), (255, 0, 0))

    def test_may_hold_the_image(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (20, 30), "red").save(buffer, "PNG")

        found = load_image(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")

        assert (found.size, found.getpixel((3, 3))) == ((20, 30), (255, 0, 0))

    def test_that_do_not_answer_are_named(self, site: str) -> None:
        with pytest.raises(VPPError, match=r"/blue\.png' could not be fetched \(HTTP Error 404: .*check the address"):
            load_image(f"{site}/blue.png")
        with pytest.raises(VPPError, match="could not be fetched"):
            load_image("http://127.0.0.1:9/red.png")

    def test_that_hold_nonsense_are_named(self) -> None:
        with pytest.raises(VPPError, match="the image is "):
            load_image("data:image/png;base64,AAAA")
        with pytest.raises(VPPError, match="the image is damaged"):
            load_image("data:image/png;base64,A")


class TestImagesThatComeSeveralTimes:
    def test_are_read_once(self, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        Image.new("RGB", (20, 30), "red").save(path)
        other = Image.new("RGB", (20, 30), "blue")
        again = str(path)

        read = load_images([path, other, again, other, path])

        assert read[0] is read[2] is read[4]
        assert read[1] is read[3]
        assert [image.getpixel((3, 3)) for image in read[:2]] == [(255, 0, 0), (0, 0, 255)]

    def test_images_that_a_sequence_makes_anew_at_every_look_stay_apart(self) -> None:
        """What is told by its id must live on: Python gives the id of what is gone to the next."""

        class Column(Sequence[bytes]):
            def __len__(self) -> int:
                return 6

            def __getitem__(self, number: Any) -> Any:
                if number >= len(self):
                    raise IndexError
                return encoded(Image.new("RGB", (20, 30), (40 * number, 0, 0)), "PNG")

        assert [image.getpixel((3, 3)) for image in load_images(Column())] == [(40 * n, 0, 0) for n in range(6)]

    def test_are_one_object_in_any_nesting(self) -> None:
        red, blue = Image.new("RGB", (20, 30), "red"), Image.new("RGB", (20, 30), "blue")

        flat = flatten_images([[red], [blue, red], red])

        assert flat[0] is flat[2] is flat[3]
        assert flat[1].getpixel((3, 3)) == (0, 0, 255)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
