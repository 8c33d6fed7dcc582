"""Samples that stay on disk: the same as read at once, found by an index that is made anew when something changes."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.formats.layouts import image
from vpp_plugins import VPPError
from vpp_plugins.data import stored
from vpp_plugins.data.formats import Reading, Writing, data_format, read_samples
from vpp_plugins.data.formats.neutral import neutral_row
from vpp_plugins.data.sample import Locate, Sample, Talk
from vpp_plugins.data.sample_index import PLACE, SampleIndex, Source
from vpp_plugins.data.shards import INDEX
from vpp_plugins.data.stored import StoredSamples, stored_samples
from vpp_plugins.data.tally import Issue

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
        image(tmp_path / f"data/{number}.png", (40, 24))
    return tmp_path / "data"


def write(folder: Path, name: str, samples: Iterator[Sample] | None = None) -> Path:
    path = folder / {"neutral": "data.jsonl", "webdataset": "shards"}[name]
    data_format(name).write(samples or made(), Writing(path, images=folder, shard_bytes=20_000))
    return path


def found(path: Path, name: str, **options: object) -> StoredSamples:
    root = path.parent if path.suffix else path
    return stored_samples(path, name, **{"root": root, "progress": False, **options})


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are kept for data of any size."""
    monkeypatch.setattr(stored, "LARGE", 0)


def indexes(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{INDEX}*"))


BOTH = pytest.mark.parametrize("name", ["neutral", "webdataset"])


@BOTH
@pytest.mark.usefixtures("kept")
def test_they_are_what_reading_all_gives(name: str, folder: Path) -> None:
    path = write(folder, name)
    at_once = list(read_samples(path, name))
    for _ in range(2):  # read through, then by the index
        samples = found(path, name)
        assert list(samples) == at_once
        assert samples[7] == at_once[7]
        assert samples[-1] == at_once[-1]
        assert samples[2:9:3] == at_once[2:9:3]
        assert len(samples) == COUNT
        with pytest.raises(IndexError):
            samples[COUNT]
    assert len(indexes(folder)) == 1


@BOTH
def test_images_are_their_own(name: str, folder: Path) -> None:
    samples = found(write(folder, name), name)
    for number in (3, 1, 4, 39, 38, 1):
        source = samples.image(number)
        image = samples[number].image
        data = source.read_bytes() if isinstance(source, Path) else source
        assert data == ((folder / image).read_bytes() if image else None)


@BOTH
@pytest.mark.usefixtures("kept")
def test_what_is_counted_and_the_digest_are_kept_with_the_index(name: str, folder: Path) -> None:
    beyond = Sample("wide", "0.png", 40, 24, (Locate("cup", ((1, 2, 300, 20),)),))
    path = write(folder, name, iter([*made(3), beyond]))
    first, second = found(path, name), found(path, name)
    assert first.found.tally.counts == {Issue.CLIPPED: 1}
    assert second.found.tally == first.found.tally
    assert second.found.digest == first.found.digest != found(path, name, limit=3).found.digest
    assert second.found.places.dtype == PLACE
    assert PLACE.itemsize == 16


@BOTH
@pytest.mark.usefixtures("kept")
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
@pytest.mark.usefixtures("kept")
def test_the_index_is_of_its_choices(name: str, folder: Path) -> None:
    path = write(folder, name)
    assert len(found(path, name)) == COUNT
    assert len(found(path, name, limit=5)) == 5
    only = found(path, name, reading=Reading(split="train"))
    assert {sample.split for sample in only} == {"train"}
    assert only.found.tally.counts == {Issue.OTHER_SPLIT: 8}
    assert len(found(path, name)) == COUNT
    assert len(indexes(folder)) == 3


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("damage", [b"", b"{}\n", b'{"stamp": 1}\n', b"\xff\n", b"[]"])
def test_a_damaged_index_is_made_anew(damage: bytes, folder: Path) -> None:
    path = write(folder, "neutral")
    found(path, "neutral")
    (index,) = indexes(folder)
    whole = index.read_bytes()
    for broken in (damage, whole[: len(whole) // 2], whole[:-1]):
        index.write_bytes(broken)
        assert list(found(path, "neutral")) == list(made())
    assert index.read_bytes() == whole


@pytest.mark.usefixtures("kept")
def test_a_folder_that_cannot_be_written_gives_its_place_to_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, "neutral")
    spare = tmp_path / "run"
    spare.mkdir()
    real = stored.keep_index

    def read_only(index: SampleIndex, source: Source, folders: list[Path]) -> Path | None:
        return real(index, source, [Path("/proc/none"), *folders[1:]])

    monkeypatch.setattr(stored, "keep_index", read_only)
    found(path, "neutral", spare=spare)
    assert not indexes(folder)
    assert len(indexes(spare)) == 1
    monkeypatch.setattr(stored, "_indexed", None)  # it is found there
    assert len(found(path, "neutral", spare=spare)) == COUNT


@pytest.mark.usefixtures("kept")
def test_missing_images_are_looked_for_again(folder: Path) -> None:
    path = write(folder, "neutral")
    (folder / "1.png").rename(folder / "away")
    samples = found(path, "neutral")
    assert samples.found.tally.counts == {Issue.NO_IMAGE: 10}
    assert len(samples) == COUNT - 10
    assert not indexes(folder)
    (folder / "away").rename(folder / "1.png")
    assert len(found(path, "neutral")) == COUNT


@pytest.mark.usefixtures("kept")
def test_images_that_a_shard_lacks_will_not_come_and_the_index_is_kept(folder: Path) -> None:
    """One sample without its image had every run read all shards anew."""
    shards = write(folder, "webdataset")
    row = json.dumps(neutral_row(next(made()))).encode()
    with tarfile.open(shards / "more.tar", "w") as tar:
        member = tarfile.TarInfo("alone.json")
        member.size = len(row)
        tar.addfile(member, io.BytesIO(row))
    assert found(shards, "webdataset").found.tally.counts == {Issue.NO_IMAGE: 1}
    assert len(indexes(folder)) == 1


@BOTH
def test_a_file_that_changes_under_a_run_is_a_sentence(name: str, folder: Path) -> None:
    path = write(folder, name)
    samples = found(path, name)
    for file in [path] if path.is_file() else path.glob("*.tar"):
        size = file.stat().st_size
        file.write_bytes(b"x" * (size // 2))
    for number in range(COUNT):
        with pytest.raises(VPPError, match=r"not valid JSON|damaged|changed after its index"):
            samples[number]
    for file in [path] if path.is_file() else path.glob("*.tar"):
        file.unlink()
    with pytest.raises(VPPError, match="cannot be read"):
        samples[3]


def test_a_small_set_leaves_no_index(folder: Path) -> None:
    found(write(folder, "neutral"), "neutral")
    found(write(folder, "webdataset"), "webdataset")
    assert not indexes(folder)


@pytest.mark.usefixtures("kept")
def test_workers_can_have_them(folder: Path) -> None:
    path = write(folder, "webdataset")
    found(path, "webdataset")
    samples = pickle.loads(pickle.dumps(found(path, "webdataset")))
    assert list(samples) == list(made())


def test_a_pattern_names_shards(folder: Path) -> None:
    shards = write(folder, "webdataset")
    last = len(list(shards.glob("*.tar"))) - 1
    assert last > 0
    assert list(stored_samples(shards / f"{{000000..{last:06}}}.tar", "webdataset", root=shards / "x")) == list(made())


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="is no file: the format neutral is JSON lines"):
        found(tmp_path, "neutral")
    with pytest.raises(VPPError, match="1 of 1 shards"):
        found(tmp_path / "x.tar", "webdataset")


MEMORY = """
import resource, sys
from pathlib import Path
from vpp_plugins.data.stored import stored_samples

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def used(path):
    for _ in range(2):  # read through, then by the index
        samples = stored_samples(path, "neutral", root=path.parent, progress=False)
        for number in range(0, len(samples), 100):
            assert samples[number].id == "s0"
    return len(samples)

little, much = map(Path, sys.argv[1:])
used(little)
before = peak()
print(used(much), peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Two hundred thousand samples need their index; as objects they would take more than 150 MB."""
    row = {"id": "s0", "turns": [{"ask": "where is the cup that stands on the left of the table", "answer": "here"}]}
    line = json.dumps({**row, "note": "x" * 300}) + "\n"  # enough that the index is kept
    (tmp_path / "little.jsonl").write_text(line * 2000)
    (tmp_path / "much.jsonl").write_text(line * 200_000)
    files = [str(tmp_path / name) for name in ("little.jsonl", "much.jsonl")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True)
    count, growth = map(int, done.stdout.split())
    (index,) = indexes(tmp_path)
    assert count == 200_000
    assert index.stat().st_size < 16 * count + 1000
    assert growth < 4 * 16 * count
