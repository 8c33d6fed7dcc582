"""Read a state dict from a file, a folder or the hub, without ever running code that came with it."""

import contextlib
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpp_plugins.errors import VPPError

# What transformers names the files of a checkpoint, whole or in shards; the safe format first.
_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt"}


def read_weights(source: str | os.PathLike[str], *, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a weight file, a folder in transformers' naming, or a hub id, on the CPU.

    Where names with the prefix occur in a safetensors checkpoint, only those are read. A pickled file must hold a state
    dict and nothing but tensors, alone or under "model". Raises VPPError for whatever is not there or not so.
    """
    path = Path(source)
    if not path.exists():
        path = _download(str(source))
    files = [path] if path.is_file() else _files_in(path)
    if not files:
        raise VPPError(f"'{source}' holds no {' and no '.join(_PATTERNS)}: name the weight file itself.")
    if files[0].suffix == ".safetensors":
        return _read_safetensors(files, prefix)
    return {name: tensor for file in files for name, tensor in _read_pickle(file).items()}


def _files_in(folder: Path) -> list[Path]:
    for pattern in _PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def _read_safetensors(files: list[Path], prefix: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
            holders = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not a mapping
            wanted = [name for name in holders if name.startswith(prefix)] or list(holders)
            return {name: holders[name].get_tensor(name) for name in wanted}
    except SafetensorError as error:
        raise VPPError(f"no whole safetensors file: {', '.join(map(str, files))} ({error}). Fetch it again.") from error


def read_pickled(file: Path) -> Any:
    """Return what `torch.save` wrote, if it is tensors in plain containers; raises VPPError for anything else.

    Tensors of a file in torch's zip format are only read from the disk when they are used.
    """
    with file.open("rb") as start:
        zipped = start.read(2) == b"PK"
    if zipped and not zipfile.is_zipfile(file):  # its table of contents comes last
        raise VPPError(f"'{file}' is truncated: download it again.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # the rest of torch's message tells how to run it all the same
        named = f" ({found[1]})" if found else ""
        raise VPPError(
            f"'{file}' holds something else than tensors{named}, or is no weight file; it is not opened, because it "
            "could run code: if you trust it, save its state dict by itself."
        ) from error
    except Exception as error:  # garbage makes unpickling raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VPPError(f"'{file}' is truncated or no weight file ({reason}): download it again.") from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    content = read_pickled(file)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise VPPError(f"'{file}' holds no state dict, neither as a whole nor under 'model'.")
    return state


def _download(source: str) -> Path:
    if source.count("/") != 1 or source.startswith(("/", ".")) or Path(source).suffix in _SUFFIXES:
        raise VPPError(f"there is no '{source}': give a weight file, a folder of weights, or a hub id 'owner/name'.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for pattern in _PATTERNS:  # most repositories hold both, and one is enough
            folder = Path(snapshot_download(source, allow_patterns=[pattern]))
            if _files_in(folder):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise VPPError(
            f"'{source}' is no file here and could not be fetched from the hub ({type(error).__name__}): check the "
            "name and the network."
        ) from error
    return folder
