import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vpp_plugins import VPPError
from vpp_plugins.boxes import BOX_CODECS, BoxStatus, ImageMeta, codec
from vpp_plugins.data.dialogue import Phrases
from vpp_plugins.data.formats import Reading, Writing, data_format, read_samples
from vpp_plugins.data.record import (
    PIXELS,
    PIXELS_XYWH,
    RELATIVE,
    BoxUnit,
    ImageError,
    ImageSizes,
    PixelBudget,
    UnsafePathError,
    check_name,
    image_path,
    upright_size,
)
from vpp_plugins.data.sample import Issue, Locate, Sample, Tally

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


UNSAFE = r"/etc/passwd ../a.jpg a/../../a.jpg .. a/.. ..\a a\..\..\b C:\a c:a \\server\share".split()


@pytest.mark.parametrize("name", [*UNSAFE, "", "a\0.jpg"])
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(UnsafePathError, match="does not stay below its folder"):
        check_name(name)


@pytest.mark.parametrize("name", ["a.jpg", "vg/VG_100K/1.jpg", "a..b.jpg", "..a/b.jpg", "a/.../b.jpg", "été/ü.png"])
def test_other_names_stay_below_it(name: str) -> None:
    check_name(name)
    assert image_path(Path("root"), name) == Path("root") / name


def test_size_is_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (30, 20)).save(tmp_path / "plain.png")
    Image.new("L", (30, 20)).save(tmp_path / "turned.png", exif=exif)
    assert upright_size(tmp_path / "turned.png") == (20, 30)
    assert upright_size(tmp_path / "turned.jpg") == (20, 30)
    assert upright_size(tmp_path / "plain.png") == (30, 20)


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in ("text.jpg", "empty.png", "loop.jpg", "missing.jpg", "."):
        with pytest.raises(ImageError):
            upright_size(tmp_path / name)


def test_a_header_of_a_bomb_costs_nothing(tmp_path: Path) -> None:
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(ImageError, match="too many pixels"):
        upright_size(tmp_path / "bomb.png")


class TestImageSizes:
    def test_reads_each_header_once(self, tmp_path: Path) -> None:
        Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
        sizes = ImageSizes(tmp_path)
        assert sizes("a.png") == (30, 20)
        (tmp_path / "a.png").unlink()
        assert sizes("a.png") == (30, 20)

    def test_what_was_found_is_kept_and_found_again_without_images(self, tmp_path: Path) -> None:
        Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
        known = tmp_path / "sizes.jsonl"
        sizes = ImageSizes(tmp_path, known)
        sizes("a.png")
        sizes.save()
        assert ImageSizes(known=known)("a.png") == (30, 20)

    def test_nothing_new_writes_nothing(self, tmp_path: Path) -> None:
        sizes = ImageSizes(tmp_path, tmp_path / "sizes.jsonl")
        with pytest.raises(ImageError):
            sizes("missing.png")
        with pytest.raises(ImageError):
            sizes("missing.png")
        sizes.save()
        assert not (tmp_path / "sizes.jsonl").exists()

    def test_without_any_source_it_says_what_to_give(self) -> None:
        with pytest.raises(VPPError, match=r"give the folder of the images \(--images\)") as error:
            ImageSizes()("a.png")
        assert not isinstance(error.value, ImageError)

    @pytest.mark.parametrize("line", ['{"image": "a"}', '{"image": "a", "width": -1, "height": 2}', "[]"])
    def test_a_file_of_sizes_that_is_none(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "sizes.jsonl").write_text(line)
        with pytest.raises(VPPError, match="line 1, is not an object with image, width and height"):
            ImageSizes(known=tmp_path / "sizes.jsonl")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="does not exist"):
            ImageSizes(tmp_path / "missing")


class TestNothingIsThere:
    def test_our_lines_say_it_by_an_empty_list(self, tmp_path: Path) -> None:
        """What names no box was dropped as broken; of a region's description it still is."""
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        turns = [{"locate": "hat", "boxes": []}, {"describe": [], "text": "a hat"}]
        rows = [{"id": "1", "image": "a.png", "turns": turns}, {"id": "2", "image": "", "turns": turns[:1]}]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        reading = Reading()
        (sample,) = read_samples(path, "neutral", images=tmp_path, reading=reading)
        assert (sample.turns, sample.width) == ((Locate("hat", ()),), 40)
        assert sample.readable().endswith("locate 'hat': nothing")
        assert reading.tally.counts == {Issue.NO_BOX: 1, Issue.NO_IMAGE: 1, Issue.NO_TURNS: 1}

    @pytest.mark.parametrize("name", ["neutral", "vpp-sft", "ms-swift"])
    def test_it_is_written_and_read_back(self, name: str, tmp_path: Path) -> None:
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        turns = (Locate("hat", ()), Locate("cups", ((4.0, 2.0, 20.0, 10.0), (24.0, 2.0, 36.0, 10.0))))
        sample = Sample("1", "a.png", 40, 20, turns)
        data_format(name).write([sample], Writing(tmp_path / "rows.json"))
        (back,) = read_samples(tmp_path / "rows.json", name, images=tmp_path)
        assert [(turn.expression, len(turn.boxes)) for turn in back.located()] == [("hat", 0), ("cups", 2)]

    @pytest.mark.parametrize("name", ["odvg", "coco"])
    def test_it_is_counted_where_a_format_has_no_word_for_it(self, name: str, tmp_path: Path) -> None:
        writing = Writing(tmp_path / "rows.json")
        data_format(name).write([Sample("1", "a.png", 40, 20, (Locate("hat", ()),))], writing)
        assert writing.tally.counts == {Issue.NOT_WRITABLE: 1}
        assert writing.written.samples == 0

    @pytest.mark.parametrize("family", sorted(name for name, one in BOX_CODECS.items() if one.text is not None))
    def test_every_family_learns_to_say_it(self, family: str) -> None:
        phrases = Phrases(codec(family), PixelBudget())
        question, answer = phrases.write(Locate("hat", ()), ImageMeta((20, 40), (28, 56)))
        assert answer == "[]"
        assert phrases.read(question, answer, "1", Tally()) == Locate("hat", ())
