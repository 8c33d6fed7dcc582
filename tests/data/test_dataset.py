"""Data converted once: the samples that reading gives, kept until something changes, never trusted when damaged."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats.layouts import image
from vpp_plugins import VPPError
from vpp_plugins.data import StoredData, dataset, open_data
from vpp_plugins.data.formats import Reading, Writing, data_format, read_samples
from vpp_plugins.data.formats.webdataset import CONVERTED
from vpp_plugins.data.sample import Issue, Locate, Sample, Talk

COUNT = 40


def made(count: int = COUNT) -> Iterator[Sample]:
    for n in range(count):
        if n % 5 == 4:
            yield Sample(f"s{n}", "", 0, 0, (Talk(f"häufig {n}", "hi"),))
        else:
            yield Sample(f"s{n}", f"{n % 3}.png", 40, 24, (Locate(f"cup {n}", ((1, 2, 30, 20.5),)),), split="train")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        image(tmp_path / f"data/{number}.png", (40, 24 + number))
    return tmp_path / "data"


def write(folder: Path, name: str, samples: Iterator[Sample] | None = None) -> Path:
    path = folder / {"neutral": "data.jsonl", "webdataset": "shards"}[name]
    data_format(name).write(samples or made(), Writing(path, images=folder, shard_bytes=20_000))
    return path


def found(path: Path, name: str, **options: Any) -> StoredData:
    return open_data(path, name, **{"cache": path.parent / "run", "progress": False, **options})


def said(data: StoredData) -> list[Sample]:
    return [loaded.sample for loaded in data]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is converted is kept beside data of any size."""
    monkeypatch.setattr(dataset, "LARGE", 0)


def kept(folder: Path) -> list[Path]:
    return [path for made in folder.rglob(CONVERTED) for path in made.glob("*.json")]


BOTH = pytest.mark.parametrize("name", ["neutral", "webdataset"])


@BOTH
def test_they_are_what_reading_all_gives(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, name)
    at_once = list(read_samples(path, name))
    for _ in range(2):  # converted, then found again
        data = found(path, name)
        assert said(data) == at_once
        assert data[7].sample == at_once[7]
        assert data[-1].sample == at_once[-1]
        assert len(data) == COUNT
        with pytest.raises(IndexError):
            data[COUNT]
        monkeypatch.setattr(dataset, "_write", None)
    assert len(kept(folder)) == 1


@BOTH
def test_images_are_their_own(name: str, folder: Path) -> None:
    data = found(write(folder, name), name)
    for number in (3, 1, 4, 39, 38, 1):
        loaded = data[number]
        height = None if loaded.image is None else loaded.image.height
        assert height == (24 + int(loaded.sample.image[0]) if loaded.sample.image else None)
        assert not loaded.reason
        assert loaded.index == number


@BOTH
def test_an_image_that_cannot_be_read_is_a_reason(name: str, folder: Path) -> None:
    path = write(folder, name)
    data = found(path, name)
    for file in [*folder.glob("*.png"), *path.glob("*.tar")]:
        file.write_bytes(file.read_bytes()[:40])
    for loaded in data:
        assert loaded.image is None
        assert bool(loaded.reason) == bool(loaded.sample.image)


@BOTH
def test_what_is_counted_and_the_digest_are_kept(name: str, folder: Path) -> None:
    beyond = Sample("wide", "0.png", 40, 24, (Locate("cup", ((1, 2, 300, 20),)),))
    path = write(folder, name, iter([*made(3), beyond]))
    first, second = found(path, name), found(path, name)
    assert first.tally.counts == {Issue.CLIPPED: 1}
    assert second.tally == first.tally
    assert second.fingerprint() == first.fingerprint() != found(path, name, limit=3).fingerprint()
    assert second.has_images


@BOTH
def test_a_changed_file_is_read_anew(name: str, folder: Path) -> None:
    path = write(folder, name)
    assert len(found(path, name)) == COUNT
    if path.is_dir():
        for shard in path.glob("*.tar"):
            shard.unlink()
        path.rename(folder / "old")
    write(folder, name, made(7))
    assert len(found(path, name)) == 7


@BOTH
def test_each_choice_has_its_own(name: str, folder: Path) -> None:
    path = write(folder, name)
    assert len(found(path, name)) == COUNT
    assert len(found(path, name, limit=5)) == 5
    only = found(path, name, reading=Reading(split="train"))
    assert {sample.split for sample in said(only)} == {"train"}
    assert only.tally.counts == {Issue.OTHER_SPLIT: 8}
    assert len(found(path, name)) == COUNT
    assert len(kept(folder)) == 3


@pytest.mark.parametrize("damage", [b"", b"{}\n", b'{"stamp": 1}\n', b"\xff\n", b"[]"])
def test_what_is_damaged_is_made_anew(damage: bytes, folder: Path) -> None:
    path = write(folder, "neutral")
    found(path, "neutral")
    (about,) = kept(folder)
    arrow = about.with_suffix(".arrow")
    wholes = about.read_bytes(), arrow.read_bytes()
    for broken in (damage, wholes[0][: len(wholes[0]) // 2]):
        about.write_bytes(broken)
        assert said(found(path, "neutral")) == list(made())
    flipped = bytearray(wholes[1])
    flipped[len(flipped) // 2] ^= 255
    for broken in (damage, wholes[1][: len(wholes[1]) // 2], wholes[1][:-1], bytes(flipped)):
        arrow.write_bytes(broken)
        assert said(found(path, "neutral")) == list(made())
    assert (about.read_bytes(), arrow.read_bytes()) == wholes


@pytest.mark.usefixtures("beside")
def test_large_data_are_kept_beside_themselves_for_other_runs(folder: Path, tmp_path: Path) -> None:
    path = write(folder, "neutral")
    found(path, "neutral", cache=tmp_path / "run")
    assert not kept(tmp_path / "run")
    assert len(kept(folder)) == 1


@pytest.mark.usefixtures("beside")
def test_a_folder_that_cannot_be_written_gives_its_place_to_the_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, "neutral")
    monkeypatch.setattr(
        dataset, "why_unwritable", lambda place: "no" if folder in place.parents else place.mkdir(parents=True) or ""
    )
    found(path, "neutral", cache=tmp_path / "run")
    assert not kept(folder)
    assert len(kept(tmp_path / "run")) == 1
    with pytest.raises(VPPError, match="cannot be written: samples are converted there, so choose another folder"):
        found(path, "neutral", cache=folder / "run", limit=3)


def test_missing_images_are_looked_for_again(folder: Path) -> None:
    path = write(folder, "neutral")
    (folder / "1.png").rename(folder / "away")
    data = found(path, "neutral")
    assert data.tally.counts == {Issue.NO_IMAGE: 10}
    assert len(data) == COUNT - 10
    assert not kept(folder)
    (folder / "away").rename(folder / "1.png")
    assert len(found(path, "neutral")) == COUNT


def test_images_that_a_shard_lacks_will_not_come_and_what_was_converted_is_kept(folder: Path) -> None:
    """One sample without its image had every run read all shards anew."""
    shards = write(folder, "webdataset")
    row = json.dumps(next(made()).to_row()).encode()
    with tarfile.open(shards / "more.tar", "w") as tar:
        member = tarfile.TarInfo("alone.json")
        member.size = len(row)
        tar.addfile(member, io.BytesIO(row))
    assert found(shards, "webdataset").tally.counts == {Issue.NO_IMAGE: 1}
    assert len(kept(folder)) == 1


@BOTH
def test_a_small_set_leaves_nothing_beside_it(name: str, folder: Path, tmp_path: Path) -> None:
    found(write(folder, name), name, cache=tmp_path / "run")
    assert not kept(folder)


def test_workers_can_have_them(folder: Path) -> None:
    data = pickle.loads(pickle.dumps(found(write(folder, "webdataset"), "webdataset")))
    assert said(data) == list(made())


def test_a_pattern_names_shards(folder: Path) -> None:
    shards = write(folder, "webdataset")
    last = len(list(shards.glob("*.tar"))) - 1
    assert last > 0
    assert said(found(shards / f"{{000000..{last:06}}}.tar", "webdataset")) == list(made())


def test_other_formats_are_converted_too(folder: Path) -> None:
    path = folder / "refs.jsonl"
    rows = [
        {"image": f"{n}.png", "sent": f"cup {n}", "bbox": [1, 2, 30, 20], "width": 40, "height": 24} for n in (0, 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = found(path, "eval-jsonl")
    assert [loaded.sample.turns[0] for loaded in data] == [Locate(f"cup {n}", ((1, 2, 30, 20),)) for n in (0, 1)]
    assert [loaded.image is not None for loaded in data] == [True, True]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="is a folder, and a file is expected"):
        found(tmp_path, "neutral")
    with pytest.raises(VPPError, match="1 of 1 shards"):
        found(tmp_path / "x.tar", "webdataset")
    with pytest.raises(VPPError, match="cannot be read"):
        found(tmp_path / "x.jsonl", "neutral")


MEMORY = """
import resource, sys
from pathlib import Path
from vpp_plugins.data import open_data

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def used(path):
    for _ in range(2):  # converted, then found again
        data = open_data(path, "neutral", cache=path.parent / "run", progress=False)
        for number in range(0, len(data), 100):
            assert data[number].sample.id == "s0"
    return len(data)

little, much = map(Path, sys.argv[1:])
used(little)
before = peak()
print(used(much), peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Two hundred thousand samples would take more than 150 MB as objects; mapped pages can be given back."""
    row = {"id": "s0", "turns": [{"ask": "where is the cup that stands on the left of the table", "answer": "here"}]}
    line = json.dumps({**row, "note": "x" * 300}) + "\n"
    (tmp_path / "little.jsonl").write_text(line * 2000)
    (tmp_path / "much.jsonl").write_text(line * 200_000)
    files = [str(tmp_path / name) for name in ("little.jsonl", "much.jsonl")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True)
    count, growth = map(int, done.stdout.split())
    mapped = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.arrow"))
    assert count == 200_000
    assert growth < mapped + 20_000_000
