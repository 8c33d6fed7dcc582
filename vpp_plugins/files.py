"""Whole files and folders, the hub's folders, and weights that are read without running code that came with them."""

import errno
import glob
import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vpp_plugins.errors import VPPError, few

if TYPE_CHECKING:
    import torch  # in functions only: converting data must not wait for it

Shape = tuple[int, ...]

# What transformers names the files of a checkpoint, whole or in shards; the safe format first.
_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt"}
MANIFEST = "manifest.json"
_FILES = "the files of a folder"
LOCK = ".lock"
HOLDS = "holds"
"""Key under which a JSON file says what it is, so that none is read as another."""
_SEAL = "values_sha256"
_JUST_MADE = 2.0
"""Seconds in which a part may still be without its lock."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when the block ends well; until then its `name` is another.

    What a killed process left of it is removed. Raises VPPError where its folder does not exist, `path` is a folder, or
    the disk is full.
    """
    if path.is_dir():
        raise VPPError(f"'{path}' is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise VPPError(f"the folder '{path.parent}' does not exist: make it first.")
    _remove_left(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # several processes may write the same file
    try:
        with _full_disk_named(path), part.open("xb") as file:
            _locked(file)
            yield file
            file.flush()
            with part.open("rb") as written:  # safetensors puts another file in its place
                _locked(written)
                os.fsync(written.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove_left(path: Path) -> None:
    """Remove the parts of a file whose writers were killed: a living one holds a lock on its own, or just made it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with suppress(OSError), part.open("rb") as file:
            if time.time() - part.stat().st_mtime > _JUST_MADE and _locked(file):
                part.unlink()


def _locked(file: IO[bytes]) -> bool:
    """Whether this process has the lock of a file now; it keeps it until the file is closed."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows has none, some file systems neither
        return False
    return True


@contextmanager
def _full_disk_named(target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch.save raises RuntimeError where the disk is full, safetensors an error of its own
        if not _disk_is_full(target.parent, error):
            raise
        raise VPPError(
            f"the disk of '{target.parent}' is full, so {target.name} was not saved; what was saved before is whole. "
            "Make room, and go on or begin again."
        ) from error


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
        with _full_disk_named(target):
            yield written
            if renames:
                _to_disk(written)
                if target.exists():
                    target.replace(part / "replaced")
                written.replace(target)
    finally:
        if renames:
            shutil.rmtree(part, ignore_errors=True)


def why_unwritable(folder: Path) -> str:
    """Make the folder if need be, and return why it cannot be written, or ""."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """Return the SHA-256 of tensors, their names, shapes and dtypes, whatever their order and device."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sealed(values: Mapping[str, Any], holds: str) -> dict[str, Any]:
    """Return JSON values that say what they are, with a digest, by which `unsealed` finds that they were changed."""
    said = {HOLDS: holds, **values}
    return {**said, _SEAL: _digest(said)}


def unsealed(values: Any, holds: str) -> dict[str, Any]:
    """Return the values that were sealed; those of 0.1.0 were not.

    Raises ValueError where they were changed, and where they say that they are something else than what is expected.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__} instead of an object")
    said = {key: value for key, value in values.items() if key != _SEAL}
    if _SEAL in values and values[_SEAL] != _digest(said):
        raise ValueError("its values were changed since they were written")
    if said.get(HOLDS, holds) != holds:
        raise ValueError(f"it holds {said[HOLDS]} instead of {holds}")
    if HOLDS in said and _SEAL not in values:  # 0.1.0 wrote neither
        raise ValueError("its digest is missing")
    return {key: value for key, value in said.items() if key != HOLDS}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dictionary; raises ValueError where a key stands twice, as JSON allows.

    It is an `object_pairs_hook` of `json`, which would take the last without a word.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return values


def write_manifest(folder: Path) -> None:
    """Write the names, sizes and SHA-256 of all files of a folder beside them; it is to be the last one written."""
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_of(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_whole(folder / MANIFEST, json.dumps(sealed({"files": files}, _FILES), indent=1) + "\n")


def check_manifest(folder: Path) -> bool:
    """Return whether the folder has a manifest; raises VPPError that names the first file which is not as it says.

    Files that are not named there are left alone, unless they look like weights.
    """
    files = _listed(folder)
    if files is None:
        return False
    _check_listed(folder, files)
    for found in sorted(folder.rglob("*")):
        name = found.relative_to(folder).as_posix()
        if found.suffix in _SUFFIXES and name not in files and found.is_file():
            raise VPPError(f"'{found}' was not saved with '{folder}': take it out, or it might be loaded in its place.")
    return True


def check_weights_listed(folder: Path, *names: str) -> None:
    """Raise VPPError where weights (those of these names, or all) are not as the folder's manifest says, if it has one.

    Settings may have been edited, and files added.
    """
    files = _listed(folder) or {}
    chosen = names or [name for name in files if Path(name).suffix in _SUFFIXES]
    _check_listed(folder, {name: files[name] for name in chosen if name in files})


def _listed(folder: Path) -> dict[str, tuple[int, str]] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        listed = unsealed(json.loads(path.read_bytes()), _FILES)["files"]
        return {name: (int(size), str(digest)) for name, (size, digest) in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise VPPError(
            f"'{path}' is damaged ({error!r}): take another copy of '{folder}', or an earlier one."
        ) from None


def _check_listed(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    for name, (size, digest) in files.items():
        if problem := _changed(folder / name, size, digest):
            raise VPPError(f"'{folder / name}' {problem}: take another copy of '{folder}', or an earlier one.")


def _changed(path: Path, size: int, digest: str) -> str:
    if not path.is_file():
        return "is missing"
    held = path.stat().st_size
    if held != size:
        return f"has {held:,} bytes instead of {size:,}"
    return "" if sha256_of(path) == digest else "was changed since it was saved (its SHA-256 is another)"


@contextmanager
def only_one(folder: Path, what: str, *, advice: str) -> Iterator[None]:
    """Hold the folder, made if need be, for one process; whatever ends the process lets it go.

    One process of a launch holds it for all. The lock is the operating system's, on a hidden file: it also keeps off
    other machines where the file system says so to all of them, as NFS does unless mounted with `nolock`. Where there
    are no locks at all, a warning says that nothing is kept off. `what` holds it and `advice` is what else to do.

    Raises VPPError where another process holds the folder, and where it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise VPPError(f"the folder '{folder}' cannot be written ({error}): {advice}.") from None
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise VPPError(f"another {what} is writing '{folder}': wait for its end, or {advice}.") from None
    except OSError as error:
        warnings.warn(
            f"the folder '{folder}' has no locks ({error}): start no second {what} in it before this one ends.",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def is_hub_id(source: str) -> bool:
    """Return whether a name is the hub's, owner/name, and no place on this machine."""
    outside = source.startswith(("/", ".", "~")) or Path(source).suffix in _SUFFIXES
    return source.count("/") == 1 and not outside and not Path(source).exists()


def local_folder(source: str | os.PathLike[str], *, files: Sequence[str], expected: str) -> Path:
    """Return the local folder of a path or a hub id; only a hub id touches the network.

    `files` are the names or patterns that are fetched; raises VPPError, naming what is `expected`, for neither.
    """
    name = str(source)
    if Path(source).is_dir():
        return Path(source)
    if not is_hub_id(name):
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
    with ExitStack() as stack:
        holders: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(_safetensors(file))
            holders |= dict.fromkeys(opened.keys(), opened)
        wanted = [name for name in holders if name.startswith(prefix)] or list(holders)
        return {name: holders[name].get_tensor(name) for name in wanted}


def safetensors_shapes(file: Path) -> dict[str, Shape]:
    """Return the shapes of a file's tensors, of which none is read."""
    with _safetensors(file) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no mapping


def _safetensors(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise VPPError(f"'{file}' is damaged or truncated ({error}): save or download it again.") from error


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
    kinds = [
        f"{name} {str(value.dtype).removeprefix('torch.')}"
        for name, value in sorted(found.items())
        if name in expected and _kind(value) != _kind(expected[name])
    ]
    endless = [name for name, value in sorted(found.items()) if value.itemsize > 1 and not value.isfinite().all()]
    problems = [*misfits(*shapes), *_counted("of another type", kinds), *_counted("NaN or infinite", endless)]
    if problems:
        raise VPPError(f"{source} does not fit: {'; '.join(problems)}. {advice and f'{advice} '}Nothing was loaded.")


def _kind(value: "torch.Tensor") -> str:
    """Return what may be loaded as one another: floats of 16 bits or more, and of other types each for itself."""
    return "float" if value.is_floating_point() and value.itemsize > 1 else str(value.dtype)


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


def _disk_is_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, VPPError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if said := re.search(r"os error (\d+)", str(error)):  # how Rust names what C calls errno
        return int(said[1]) in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 1 << 20
