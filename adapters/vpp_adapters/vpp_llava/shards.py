"""Read a checkpoint in one or many weight files, a tensor at a time, without ever running code that came with it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpp_plugins import VPPError
from vpp_plugins.files import read_pickled

_NAMES = ("model.safetensors", "pytorch_model.bin")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and how large it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Whole numbers of any kind count as uint8."""

    @property
    def nbytes(self) -> int:
        """Return its size in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder's checkpoint, in the files' order, without reading one.

    Reads model.safetensors or pytorch_model.bin, whole or in the shards that the index beside it names. Raises VPPError
    where a shard is missing, truncated, holds anything but tensors, or a tensor is in two of them.
    """
    found: dict[str, StoredTensor] = {}
    files, indexed = _files(folder)
    for file in files:
        with opened(file) as tensors:
            for name in tensors.names:
                if name in found:
                    raise VPPError(
                        f"'{name}' is in two files, '{found[name].file.name}' and '{file.name}': keep one of them."
                    )
                found[name] = StoredTensor(file, *tensors.describe(name))
    if absent := sorted(indexed - found.keys()):
        raise VPPError(
            f"the index in '{folder}' promises '{absent[0]}' and {len(absent) - 1} more tensors that no file holds: "
            "download the checkpoint again."
        )
    return found


@dataclass(frozen=True)
class Tensors:
    """The tensors of an open file."""

    names: list[str]
    describe: Callable[[str], tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[str], Tensor]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Tensors]:
    """Open a weight file without reading its tensors; those that were read stay valid afterwards."""
    if file.suffix != ".safetensors":
        state = _unpickle(file)
        yield Tensors(list(state), lambda name: (tuple(state[name].shape), state[name].dtype), state.__getitem__)
        return
    from safetensors import SafetensorError, safe_open

    try:
        opening = safe_open(file, framework="pt")
    except SafetensorError as error:
        raise VPPError(f"'{file}' is truncated or no safetensors file ({error}): download it again.") from error
    with opening as content:

        def describe(name: str) -> tuple[tuple[int, ...], torch.dtype]:
            part = content.get_slice(name)
            return tuple(part.get_shape()), _FLOATS.get(part.get_dtype(), torch.uint8)

        yield Tensors(list(content.keys()), describe, content.get_tensor)


def _unpickle(file: Path) -> dict[str, Tensor]:
    content = read_pickled(file)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise VPPError(f"'{file}' holds something else than tensors by name: a state dict is expected.")
    return content


def _files(folder: Path) -> tuple[list[Path], set[str]]:
    """Return the checkpoint's files, and the names of the tensors that its index, if any, promises."""
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = _read_index(index)
            files = [folder / file for file in sorted(set(places.values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise VPPError(
                    f"{len(missing)} of {len(files)} shards are missing in '{folder}': {', '.join(missing[:3])}. "
                    "Download them too."
                )
            return files, set(places)
        if (folder / name).is_file():
            return [folder / name], set()
    raise VPPError(f"no weights in '{folder}': expected is {' or '.join(_NAMES)}, or shards with their index.")


def _read_index(index: Path) -> dict[str, str]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        whole = all(isinstance(file, str) and Path(file).name == file for file in places.values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise VPPError(f"'{index}' is no index of weight files: download it again.")
    return dict(places)
