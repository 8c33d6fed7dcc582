"""Shards: every sample found where it lies, and nothing worse than a sentence for what is damaged."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.formats.layouts import BOX, HEIGHT, WIDTH, image
from vpp_plugins import VPPError
from vpp_plugins.data.formats import Reading, Writing, read_samples
from vpp_plugins.data.formats.webdataset import read_webdataset, shard_paths, tar_samples, write_webdataset
from vpp_plugins.data.sample import Issue, Locate, Sample, Talk

ROW = {"id": "a", "width": WIDTH, "height": HEIGHT, "turns": [{"locate": "cup", "boxes": [list(BOX)]}]}
CUP = Locate("cup", (BOX,))


def shard(path: Path, *members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def row(**changes: object) -> bytes:
    return json.dumps({**ROW, **changes}).encode()


@pytest.fixture
def jpeg(tmp_path: Path) -> bytes:
    return image(tmp_path / "made.jpg").read_bytes()


def read(path: Path, **options: object) -> tuple[list[Sample], Reading]:
    reading = Reading(**options)
    return list(read_samples(path, "webdataset", reading=reading)), reading


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_image_is_where_its_record_says(form: int, tmp_path: Path, jpeg: bytes) -> None:
    long = "train/" + "x" * (130 if form != tarfile.USTAR_FORMAT else 20)
    path = shard(tmp_path / "0.tar", ("a.json", row()), ("a.jpg", jpeg), (f"{long}.jpg", jpeg),
                 (f"{long}.json", row(image=f"{long}.jpg")), form=form)  # fmt: skip
    records = list(read_webdataset(path, Reading()))
    assert [record.image for record in records] == ["a.jpg", f"{long}.jpg"]
    for record in records:
        assert record.place is not None
        file, start, length = record.place
        assert file.read_bytes()[start : start + length] == jpeg


def test_names_sizes_and_images_come_from_where_they_are(tmp_path: Path, jpeg: bytes) -> None:
    without = {name: value for name, value in ROW.items() if name == "turns"}
    shard(tmp_path / "0.tar", ("x/1.json", json.dumps(without).encode()), ("x/1.jpg", jpeg),
          ("2.json", row(image="", turns=[{"ask": "hello", "answer": "hi"}], width=0, height=0)))  # fmt: skip
    shard(tmp_path / "1.tar", ("3.JPG", jpeg), ("3.json", row(image="coco/3.jpg", id=3)))

    samples, reading = read(tmp_path, images_to=tmp_path / "out")

    assert samples == [
        Sample("x/1", "x/1.jpg", WIDTH, HEIGHT, (CUP,)),
        Sample("a", "", 0, 0, (Talk("hello", "hi"),)),
        Sample("3", "coco/3.jpg", WIDTH, HEIGHT, (CUP,)),
    ]
    assert not reading.tally.counts
    assert (tmp_path / "out/x/1.jpg").read_bytes() == jpeg
    assert (tmp_path / "out/coco/3.jpg").read_bytes() == jpeg


def test_what_is_no_sample_is_counted(tmp_path: Path, jpeg: bytes) -> None:
    shard(tmp_path / "0.tar", ("a.json", b"{"), ("a.jpg", jpeg), ("b.json", b"[1]"), ("b.jpg", jpeg), ("c.jpg", jpeg),
          ("d.json", row(image="../../etc/passwd.jpg")), ("d.jpg", jpeg), ("../e.json", row()), ("../e.jpg", jpeg),
          ("f.json", row(image="f.jpg")), ("g.json", row(width=None)), ("g.jpg", b"no image"),
          ("h.json", row(turns="x")), ("h.jpg", jpeg), (".i.json", row()), ("j.json", b"\xff"), ("k.txt", b"x"),
          ("l.json", b" " * 5000 + row()), ("l.jpg", jpeg), ("good.json", row()), ("good.jpg", jpeg))  # fmt: skip

    samples, reading = read(tmp_path / "0.tar", images_to=tmp_path / "out", largest=4000)

    assert [sample.image for sample in samples] == ["good.jpg"]
    assert reading.tally.counts == {Issue.BAD_FIELD: 7, Issue.UNSAFE_PATH: 2, Issue.NO_IMAGE: 2}
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["good.jpg"]


def test_links_and_folders_in_a_shard_are_passed_over(tmp_path: Path, jpeg: bytes) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("a.png", tarfile.LNKTYPE), ("a", tarfile.DIRTYPE)):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            tar.addfile(about)
        about = tarfile.TarInfo("a.json")
        about.size = len(row())
        tar.addfile(about, io.BytesIO(row()))
    samples, reading = read(tmp_path / "0.tar")
    assert not samples
    assert reading.tally.counts == {Issue.NO_IMAGE: 1}


def test_a_shard_cut_anywhere_says_so(tmp_path: Path, jpeg: bytes) -> None:
    path = shard(tmp_path / "0.tar", ("a.json", row()), ("a.jpg", jpeg[:700]), ("b.json", row()), ("b.jpg", jpeg[:90]))
    data = path.read_bytes()
    whole = [packed.key for packed in tar_samples(path)]
    members = [place for packed in tar_samples(path) for place in packed.members.values()]
    end = max(start + -(-length // 512) * 512 for start, length in members)
    for length in [*range(0, end, 97), *range(0, end + 1, 512)]:
        path.write_bytes(data[:length])
        with pytest.raises(VPPError, match="damaged"):
            list(tar_samples(path))
    path.write_bytes(data[: end + 512])
    assert [packed.key for packed in tar_samples(path)] == whole


def test_damage_is_a_sentence_or_another_sample(tmp_path: Path, jpeg: bytes) -> None:
    path = shard(tmp_path / "0.tar", ("a.json", row()), ("a.jpg", jpeg[:700]), ("é" * 90 + ".json", row()))
    data, rng = path.read_bytes()[:6144], random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 32, 48, 57, 128, 255))
        start = rng.randrange(0, len(data), 512)
        damaged[start : start + 155] = rng.choice((damaged[start : start + 155], bytes(155), b"9" * 155))
        path.write_bytes(damaged)
        told = ""
        try:
            read(path)
        except VPPError as error:
            told = str(error)
        assert "\n" not in told


def test_a_member_that_claims_less_than_nothing_ends(tmp_path: Path) -> None:
    """tarfile would go back and read it for ever."""
    about = tarfile.TarInfo("a.json")
    about.size = -1024
    head = about.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "0.tar").write_bytes(bytes(0) + head + bytes(1024))
    with pytest.raises(VPPError, match="damaged"):
        list(tar_samples(tmp_path / "0.tar"))


def test_a_compressed_shard_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", ("a.json", row()))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(VPPError, match="it is compressed, and samples are read from the middle: unpack it first"):
        read(path)


def test_which_shards_a_path_means(tmp_path: Path) -> None:
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b.txt"):
        shard(tmp_path / name)
    assert [path.name for path in shard_paths(tmp_path)] == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert [path.name for path in shard_paths(tmp_path / "a-{009..010}.tar")] == ["a-009.tar", "a-010.tar"]
    assert shard_paths(tmp_path / "b.txt") == [tmp_path / "b.txt"]
    with pytest.raises(VPPError, match=r"2 of 4 shards of .* are not there, .*a-011\.tar' for one"):
        shard_paths(tmp_path / "a-{009..012}.tar")
    with pytest.raises(VPPError, match="counts backwards"):
        shard_paths(tmp_path / "a-{010..008}.tar")
    with pytest.raises(VPPError, match="holds no shard"):
        shard_paths(image(tmp_path / "empty/x.png").parent)


class TestWriting:
    @pytest.fixture
    def samples(self, tmp_path: Path) -> list[Sample]:
        for number in range(3):
            image(tmp_path / f"images/{number}.png", (40, 24))
        return [Sample(f"s{n}", f"{n % 3}.png", 40, 24, (Locate(f"cup {n}", ((1, 2, 30, 20),)),)) for n in range(12)]

    def test_shards_have_about_the_size_asked_for(self, tmp_path: Path, samples: list[Sample]) -> None:
        writing = Writing(tmp_path / "out", images=tmp_path / "images", shard_bytes=6000)
        write_webdataset(samples, writing)
        assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"{n:06}.tar" for n in range(4)]
        assert read(tmp_path / "out")[0] == samples
        assert {path.stat().st_mtime > 0 for path in (tmp_path / "out").iterdir()} == {True}

    def test_the_same_samples_give_the_same_bytes(self, tmp_path: Path, samples: list[Sample]) -> None:
        for name in "ab":
            write_webdataset(samples, Writing(tmp_path / name, images=tmp_path / "images"))
        assert (tmp_path / "a/000000.tar").read_bytes() == (tmp_path / "b/000000.tar").read_bytes()

    def test_missing_images_are_counted_and_their_folder_is_needed(self, tmp_path: Path, samples: list[Sample]) -> None:
        (tmp_path / "images/1.png").unlink()
        writing = Writing(tmp_path / "out", images=tmp_path / "images")
        write_webdataset([*samples, Sample("x", "../x.png", 4, 4, (CUP,)), Sample("y", "y.exe", 4, 4, (CUP,))], writing)
        assert writing.tally.counts == {Issue.NO_IMAGE: 6}
        assert len(read(tmp_path / "out")[0]) == 8
        with pytest.raises(VPPError, match="give their folder"):
            write_webdataset(samples, Writing(tmp_path / "other"))
        assert not list(tmp_path.glob("other*"))

    def test_only_shards_are_replaced(self, tmp_path: Path, samples: list[Sample]) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("mine")
        writing = Writing(tmp_path / "out", images=tmp_path / "images")
        with pytest.raises(VPPError, match=r"more than shards \('thesis.tex'\), and is not replaced"):
            write_webdataset(samples, writing)
        (tmp_path / "out/thesis.tex").rename(tmp_path / "out/000007.tar")
        write_webdataset(samples, writing)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["000000.tar"]
        assert not list(tmp_path.glob(".out*"))

    def test_a_source_that_breaks_leaves_nothing(self, tmp_path: Path, samples: list[Sample]) -> None:
        def broken() -> Iterator[Sample]:
            yield from samples[:5]
            raise VPPError("broken")

        with pytest.raises(VPPError, match="broken"):
            write_webdataset(broken(), Writing(tmp_path / "out", images=tmp_path / "images"))
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
