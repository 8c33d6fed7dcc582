import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vpp_plugins.errors import VPPError
from vpp_plugins.files import check_tensors, read_weights, whole_file, whole_folder

STATE = {"one": torch.arange(3.0), "two": torch.ones(2, 2, dtype=torch.float16)}


def assert_is_state(read: dict[str, Tensor]) -> None:
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)


def test_each_format_gives_the_same_tensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.pth")
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "c.pth")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    for name in ("a.safetensors", "b.pth", "c.pth", "old.pth"):
        assert_is_state(read_weights(tmp_path / name))
        assert_is_state(read_weights(str(tmp_path / name)))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_gives_the_tensors_of_all_its_shards(tmp_path: Path, suffix: str) -> None:
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for number, name in enumerate(STATE, start=1):
        shard = tmp_path / f"{stem}-0000{number}-of-00002.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save({name: STATE[name]}, shard)
    (tmp_path / "training_args.bin").write_bytes(b"not weights")

    assert_is_state(read_weights(tmp_path))


def test_only_what_has_the_prefix_is_read_where_anything_has(tmp_path: Path) -> None:
    save_file({"llm.one": STATE["one"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"detr.two": STATE["two"], "llm.two": STATE["one"]}, tmp_path / "model-00002-of-00002.safetensors")

    assert read_weights(tmp_path, prefix="detr.").keys() == {"detr.two"}
    assert read_weights(tmp_path, prefix="other.").keys() == {"llm.one", "detr.two", "llm.two"}


class Trap:
    """Unpickling it would create the file it names."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Trap(tmp_path / "ran")}, tmp_path / "trap.pth")
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "train.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Trap(tmp_path / "ran"), protocol=2))

    for name in ("trap.pth", "train.pth", "raw.pth"):
        with pytest.raises(VPPError, match=r"holds something else than tensors \(\S+\), .*it is not opened, because"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_broken_and_strange_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "cut.pth").write_bytes(b"")
    torch.save(STATE, tmp_path / "half.pth")
    whole = (tmp_path / "half.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "numbers.pth")

    with pytest.raises(VPPError, match=r"cut.safetensors' is damaged or truncated \(.*\): save or download it again"):
        read_weights(tmp_path / "cut.safetensors")
    with pytest.raises(VPPError, match=r"cut.pth' is truncated or no weight file \(\w+\): download it again"):
        read_weights(tmp_path / "cut.pth")
    with pytest.raises(VPPError, match=r"half.pth' is truncated: download it again"):
        read_weights(tmp_path / "half.pth")
    with pytest.raises(VPPError, match=r"page.pth' holds something else than tensors, or is no weight file"):
        read_weights(tmp_path / "page.pth")
    for name in ("list.pth", "numbers.pth"):
        with pytest.raises(VPPError, match="holds no state dict, neither as a whole nor under 'model'"):
            read_weights(tmp_path / name)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=r"holds no model\*.safetensors and no pytorch_model\*.bin"):
        read_weights(tmp_path)
    for missing in (tmp_path / "no.pth", "weights/detr.pth", "./folder", "detr"):
        with pytest.raises(VPPError, match=r"there is no '.*': give a weight file, a folder of weights, or a hub id"):
            read_weights(missing)


def test_a_hub_id_is_fetched_safetensors_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, *allow_patterns))
        if name == "someone/old" and allow_patterns == ["pytorch_model*.bin"]:
            torch.save(STATE, tmp_path / "pytorch_model.bin")
        if name == "someone/new":
            save_file(STATE, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    assert_is_state(read_weights("someone/old"))
    assert_is_state(read_weights("someone/new"))
    assert asked == [
        ("someone/old", "model*.safetensors"),
        ("someone/old", "pytorch_model*.bin"),
        ("someone/new", "model*.safetensors"),
    ]


def test_a_hub_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    with pytest.raises(VPPError, match=r"'someone/detr' is not here and could not be fetched .*ConnectionError"):
        read_weights("someone/detr")


class TestWholeFile:
    def test_appears_at_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "out.json"
        with whole_file(path) as file:
            file.write(b"whole")
            assert not path.exists()
        assert path.read_bytes() == b"whole"
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
    def test_an_interrupted_one_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, stop: type[BaseException]
    ) -> None:
        path = tmp_path / "out.json"
        path.write_bytes(b"old")
        with pytest.raises(stop), whole_file(path) as file:  # noqa: PT012  (the file must be half written)
            file.write(b"half")
            raise stop
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.json", b"old")]

    def test_a_place_that_cannot_be(self, tmp_path: Path) -> None:
        for path, message in ((tmp_path, "is a folder"), (tmp_path / "no" / "out", "does not exist: make it first")):
            with pytest.raises(VPPError, match=message), whole_file(path):
                pass

    def test_a_library_writes_by_the_name(self, tmp_path: Path) -> None:
        with whole_file(tmp_path / "x.safetensors") as file:
            save_file(STATE, file.name)
        assert read_weights(tmp_path / "x.safetensors").keys() == STATE.keys()


class TestWholeFolder:
    def test_appears_at_the_end_in_place_of_the_old_one(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "out"
        for text in ("first", "second"):
            with whole_folder(target) as folder:
                (folder / text).write_text(text)
                assert not (target / text).exists()
        assert [path.name for path in target.iterdir()] == ["second"]
        assert [path.name for path in target.parent.iterdir()] == ["out"]

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
    def test_an_interrupted_one_leaves_the_old_one_and_nothing_else(
        self, tmp_path: Path, stop: type[BaseException]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("old")
        with pytest.raises(stop), whole_folder(tmp_path / "out") as folder:  # noqa: PT012
            (folder / "new").write_text("half")
            raise stop
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/old"]

    def test_what_a_killed_process_left_is_removed(self, tmp_path: Path) -> None:
        left = tmp_path / ".out.part" / "out" / "half"
        left.parent.mkdir(parents=True)
        left.write_text("half")
        with whole_folder(tmp_path / "out"):
            pass
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out"]

    def test_one_of_several_processes_renames(self, tmp_path: Path) -> None:
        with whole_folder(tmp_path / "out") as ours, whole_folder(tmp_path / "out", renames=False) as theirs:
            (theirs / "shard").write_text("two")
            assert ours == theirs
        assert (tmp_path / "out" / "shard").read_text() == "two"

    def test_a_full_disk_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="is full, so out was not saved"), whole_folder(tmp_path / "out"):
            raise OSError(28, "No space left on device")
        assert list(tmp_path.iterdir()) == []


def test_tensors_that_fit() -> None:
    check_tensors(STATE, STATE, "it")


def test_each_misfit_is_counted_and_named() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(3)}
    found = {"a": torch.zeros(3), "c": torch.full((3,), torch.inf), "d": torch.zeros(1)}
    with pytest.raises(VPPError) as error:
        check_tensors(found, expected, "'x'", advice="Save it again.")
    assert str(error.value) == (
        "'x' does not fit: 1 missing: b; 1 not expected: d; 1 of another shape: a (3,) instead of (2,); "
        "1 NaN or infinite: c. Save it again. Nothing was loaded."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
