"""Weight files are described without being read, and each kind of damage has its own sentence."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vpp_adapters.vpp_llava.convert import StoredTensor, opened, stored_tensors
from vpp_plugins import VPPError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(1).half()}
KINDS = ["safetensors", "bin", "old bin"]


def write(folder: Path, kind: str, files: list[list[str]], *, index: bool | None = None) -> list[Path]:
    """Write the tensors named for each file, with an index where there are several."""
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    single = f"{stem}.{suffix}"
    names = [single] if len(files) == 1 else [f"{stem}-{i}-of-{len(files)}.{suffix}" for i in range(len(files))]
    for name, keys in zip(names, files, strict=True):
        tensors = {key: WEIGHTS[key] for key in keys}
        if kind == "safetensors":
            save_file(tensors, folder / name)
        else:
            torch.save(tensors, folder / name, _use_new_zipfile_serialization=kind == "bin")
    if index or (index is None and len(files) > 1):
        places = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        (folder / f"{single}.index.json").write_text(json.dumps({"weight_map": places}))
    return [folder / name for name in names]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("files", [[["a", "b", "c"]], [["b"], ["a", "c"]]], ids=["one file", "two shards"])
def test_every_tensor_is_described_and_read(kind: str, files: list[list[str]], tmp_path: Path) -> None:
    write(tmp_path, kind, files)

    found = stored_tensors(tmp_path)

    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in WEIGHTS.items()
    }
    assert list(found) == [name for names in files for name in sorted(names)]
    assert [tensor.nbytes for tensor in found.values()] == [WEIGHTS[name].nbytes for name in found]
    for name, tensor in found.items():
        with opened(tensor.file) as stored:
            value = stored.read(name)
        assert torch.equal(value, WEIGHTS[name])  # also after the file is closed


def test_whole_numbers_are_told_from_floats(tmp_path: Path) -> None:
    save_file({"packed": torch.zeros(3, dtype=torch.int32)}, tmp_path / "model.safetensors")

    assert stored_tensors(tmp_path) == {"packed": StoredTensor(tmp_path / "model.safetensors", (3,), torch.uint8)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_shard(kind: str, tmp_path: Path) -> None:
    lost = write(tmp_path, kind, [["a"], ["b", "c"]])[0]
    lost.unlink()

    with pytest.raises(VPPError, match=f"1 of 2 shards are missing in .*: {lost.name}. Download them too"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_truncated_file(kind: str, keep: float, tmp_path: Path) -> None:
    (file,) = write(tmp_path, kind, [["a", "b", "c"]])
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])

    with pytest.raises(VPPError, match=rf"'{file}' (is truncated|holds something else than tensors, or is no weight)"):
        stored_tensors(tmp_path)


def test_a_pickled_object_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    for protocol in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))):
        protocol({"a": torch.ones(1), "trap": Trap()}, tmp_path / "pytorch_model.bin")

        with pytest.raises(VPPError, match=r"holds something else than tensors \(\S+\), .*it is not opened"):
            stored_tensors(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 1.0}, {"state": {"a": torch.ones(1)}}])
def test_what_is_no_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")

    with pytest.raises(VPPError, match="holds something else than tensors by name"):
        stored_tensors(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write(tmp_path, "safetensors", [["a", "b"], ["b", "c"]])

    with pytest.raises(VPPError, match=r"'b' is in two files, 'model-0-of-2.safetensors' and 'model-1-of-2"):
        stored_tensors(tmp_path)


def test_an_index_that_promises_too_much(tmp_path: Path) -> None:
    write(tmp_path, "bin", [["a"]], index=True)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace('"a"', '"a": "pytorch_model.bin", "z"'))

    with pytest.raises(VPPError, match="promises 'z' and 0 more tensors that no file holds"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../model.bin"}}'])
def test_what_is_no_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(VPPError, match="is no index of weight files"):
        stored_tensors(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=r"no weights in .*: expected is model.safetensors or pytorch_model.bin"):
        stored_tensors(tmp_path)
