"""The folders of a run: where its checkpoints are, and what must be in one to go on from it."""

import re
import shutil
import tempfile
from pathlib import Path

from vpp_plugins.attach import CONFIG_FILE, WEIGHTS_FILE
from vpp_plugins.errors import VPPError

FINAL = "final"
_NAME = re.compile(r"checkpoint-(\d+)")


def open_run(output_dir: str | Path, resume: str | None) -> Path | None:
    """Make the run's folder writable and tidy, and return the checkpoint to go on from, or None.

    `resume` is None, "auto" for the last checkpoint if there is one, or a checkpoint's folder. Raises VPPError where
    the folder cannot be written, where it holds checkpoints and nobody said to go on, and as `check_checkpoint` does.
    """
    folder = Path(output_dir)
    _check_writable(folder)
    last = last_checkpoint(folder)
    if resume is None and (last is not None or (folder / FINAL).exists()):
        held = folder / FINAL if last is None else last
        raise VPPError(
            f"'{folder}' holds an earlier run ('{held.name}'): go on with it by --resume auto, or choose another "
            "output_dir."
        )
    if resume is None or (resume == "auto" and last is None):
        return None
    chosen = last if resume == "auto" and last is not None else Path(resume)
    check_checkpoint(chosen)
    return chosen


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def check_checkpoint(folder: Path) -> None:
    """Raise VPPError where a run cannot go on from this folder."""
    if not folder.is_dir():
        raise VPPError(f"there is no checkpoint '{folder}': give a folder checkpoint-N of an earlier run, or auto.")
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if missing:
        raise VPPError(
            f"the checkpoint '{folder}' holds no {' and no '.join(missing)}: going on from it would begin with "
            "untrained prompts and a trained host. Go on from another one, or begin anew with its host as the model."
        )
    if not (folder / "trainer_state.json").is_file():
        raise VPPError(
            f"the checkpoint '{folder}' holds weights alone (no trainer_state.json): begin a new run with it as model "
            "and vpp instead."
        )


def check_room(folder: Path, needed: int) -> None:
    """Raise VPPError where the disk has not the bytes that one checkpoint takes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise VPPError(
            f"a checkpoint takes about {needed / 1e9:.1f} GB, but the disk of '{folder}' has {free / 1e9:.1f} GB left: "
            "make room, or choose another output_dir."
        )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VPPError(f"output_dir '{folder}' cannot be written ({error.strerror}): choose another folder.") from None
