"""Whole files and folders, the hub's folders, and weights that are read without running code that came with them."""

import errno
import os
import pickle
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vpp_plugins.errors import VPPError, few

if TYPE_CHECKING:
    import torch  # in functions only: converting data must not wait for it

Shape = tuple[int, ...]

# What transformers names the files of a checkpoint, whole or in shards; the safe format first.
_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt"}


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when the block ends well; until then its `name` is another.

    Raises VPPError where its folder does not exist or `path` is a folder.
    """
    if path.is_dir():
        raise VPPError(f"'{path}' is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise VPPError(f"the folder '{path.parent}' does not exist: make it first.")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # several processes may write the same file
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text, the whole file or none."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def whole_folder(target: Path, *, renames: bool = True) -> Iterator[Path]:
    """Give a folder to fill that becomes `target` when the block ends well, in place of what was there.

    Until then it is `.NAME.part/NAME` beside it, which an error or the next call for `target` removes. Where several
    processes fill one folder, `renames` is True for one of them, and the others are done when its block ends.
    Raises VPPError where the disk is full.
    """
    part = target.with_name(f".{target.name}.part")
    written = part / target.name
    if renames:
        shutil.rmtree(part, ignore_errors=True)
        written.mkdir(parents=True)
    try:
        yield written
        if renames:
            _to_disk(written)
            if target.exists():
                target.replace(part / "replaced")
            written.replace(target)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError where the disk is full
        if not _disk_is_full(target.parent, error):
            raise
        raise VPPError(
            f"the disk of '{target.parent}' is full, so {target.name} was not saved; what was saved before is whole. "
            "Make room, and go on or begin again."
        ) from error
    finally:
        if renames:
            shutil.rmtree(part, ignore_errors=True)


def local_folder(source: str | os.PathLike[str], *, files: Sequence[str], expected: str) -> Path:
    """Return the local folder of a path or a hub id; only a hub id touches the network.

    `files` are the names or patterns that are fetched; raises VPPError, naming what is `expected`, for neither.
    """
    path, name = Path(source), str(source)
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith(("/", ".")) or path.suffix in _SUFFIXES:
        raise VPPError(f"there is no '{source}': give {expected}, or a hub id 'owner/name'.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*files]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise VPPError(
            f"'{source}' is not here and could not be fetched from the hub ({type(error).__name__}): check the name "
            "and the network."
        ) from error


def read_weights(source: str | os.PathLike[str], *, prefix: str = "") -> dict[str, "torch.Tensor"]:
    """Return the tensors of a weight file, a folder in transformers' naming, or a hub id, on the CPU.

    Where names with the prefix occur in a safetensors checkpoint, only those are read. A pickled file must hold a state
    dict and nothing but tensors, alone or under "model". Raises VPPError for whatever is not there or not so.
    """
    path = Path(source)
    files = [path] if path.is_file() else _weight_files(source)
    if files[0].suffix == ".safetensors":
        return read_safetensors(files, prefix=prefix)
    return {name: tensor for file in files for name, tensor in _read_state(file).items()}


def read_safetensors(files: Sequence[Path], *, prefix: str = "") -> dict[str, "torch.Tensor"]:
    """Return the tensors of all files; where names with the prefix occur, only those are read."""
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        holders: dict[str, Any] = {}
        for file in files:
            try:
                opened = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise VPPError(f"'{file}' is damaged or truncated ({error}): save or download it again.") from error
            holders |= dict.fromkeys(opened.keys(), opened)
        wanted = [name for name in holders if name.startswith(prefix)] or list(holders)
        return {name: holders[name].get_tensor(name) for name in wanted}


def read_pickled(file: Path) -> Any:
    """Return what `torch.save` wrote, if it is tensors in plain containers; raises VPPError for anything else.

    Tensors of a file in torch's zip format are only read from the disk when they are used.
    """
    import torch

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


def check_tensors(
    found: Mapping[str, "torch.Tensor"], expected: Mapping[str, "torch.Tensor"], source: str, *, advice: str = ""
) -> None:
    """Raise VPPError unless `found` can be loaded into a module of state `expected`, and is finite.

    `source` begins the message, and `advice`, a sentence, comes before its last.
    """
    shapes = ({name: tuple(value.shape) for name, value in state.items()} for state in (found, expected))
    endless = [name for name, value in sorted(found.items()) if not value.isfinite().all()]
    problems = [*misfits(*shapes), *_counted("NaN or infinite", endless)]
    if problems:
        raise VPPError(f"{source} does not fit: {'; '.join(problems)}. {advice and f'{advice} '}Nothing was loaded.")


def misfits(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> list[str]:
    """Return what keeps tensors of these shapes from fitting, as parts of a sentence; nothing where they fit."""
    both = sorted(expected.keys() & found.keys())
    shapes = [f"{name} {found[name]} instead of {expected[name]}" for name in both if found[name] != expected[name]]
    return [
        *_counted("missing", sorted(expected.keys() - found.keys())),
        *_counted("not expected", sorted(found.keys() - expected.keys())),
        *_counted("of another shape", shapes),
    ]


def _counted(problem: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {problem}: {few(names)}"] if names else []


def _weight_files(source: str | os.PathLike[str]) -> list[Path]:
    for pattern in _PATTERNS:  # most repositories hold both, and one is enough
        folder = local_folder(source, files=[pattern], expected="a weight file, a folder of weights")
        if files := sorted(folder.glob(pattern)):
            return files
    raise VPPError(f"'{source}' holds no {' and no '.join(_PATTERNS)}: name the weight file itself.")


def _read_state(file: Path) -> dict[str, "torch.Tensor"]:
    import torch

    content = read_pickled(file)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise VPPError(f"'{file}' holds no state dict, neither as a whole nor under 'model'.")
    return state


def _to_disk(folder: Path) -> None:
    """Bring every file to the disk before the folder takes its name: a power cut may not leave empty ones."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _disk_is_full(folder: Path, error: OSError | RuntimeError) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return shutil.disk_usage(folder).free < 1 << 20
