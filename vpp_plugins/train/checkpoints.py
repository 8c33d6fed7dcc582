"""A run's folder: where its checkpoints are, what must be in one to go on from it, and its weights."""

import json
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer

from vpp_plugins.attach import CONFIG_FILE, WEIGHTS_FILE
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import ADAPTER, BASE
from vpp_plugins.files import check_manifest, is_hub_id, read_safetensors, why_unwritable, write_manifest, write_whole

FINAL = "final"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = {
    "optimizer's state": ("optimizer.pt", "optimizer*", "global_step*"),
    "schedule's state": ("scheduler.pt", "global_step*"),
    "state of the random numbers": ("rng_state*.pth", "global_step*"),
}
"""What a run goes on with beside weights, and the files that hold it: transformers' own, FSDP's, DeepSpeed's."""


def open_run(output_dir: str | Path, resume: str | None, *, prompts: bool = True, verify: bool = True) -> Path | None:
    """Make the run's folder writable and tidy, and return the checkpoint to go on from, or None.

    `resume` is None, "auto" for the last checkpoint if there is one, or a checkpoint's folder. Raises VPPError where
    the folder cannot be written, where it holds checkpoints and nobody said to go on, and as `check_checkpoint` does;
    with `verify`, which one process of several is enough for, also where a file is not as it was saved. `prompts` is
    whether the run has some.
    """
    folder = Path(output_dir)
    check_writable(folder)
    if verify:
        killed = (*folder.glob(".checkpoint-*.part"), *folder.glob(".step-*.part"), folder / f".{FINAL}.part")
        for left in killed:  # ours is the lock
            shutil.rmtree(left, ignore_errors=True)
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
    check_checkpoint(chosen, prompts=prompts)
    if verify:
        check_files(chosen)
    return chosen


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def check_checkpoint(folder: Path, *, prompts: bool = True) -> None:
    """Raise VPPError where a run, with prompts or without, cannot go on from this folder."""
    if not folder.is_dir():
        raise VPPError(f"there is no checkpoint '{folder}': give a folder checkpoint-N of an earlier run, or auto.")
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if not prompts and len(missing) < 2:
        raise VPPError(
            f"the checkpoint '{folder}' has prompts, but the recipe says vpp = \"none\": choose another output_dir."
        )
    if prompts and missing:
        raise VPPError(
            f"the checkpoint '{folder}' holds no {' and no '.join(missing)}: going on from it would begin with "
            "untrained prompts and a trained host. Go on from another one, or begin anew with its host as the model."
        )
    if not (folder / "trainer_state.json").is_file():
        raise VPPError(
            f"the checkpoint '{folder}' holds weights alone (no trainer_state.json): begin a new run with it as model "
            "and vpp instead."
        )
    for what, patterns in _STATE.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise VPPError(
                f"the checkpoint '{folder}' lacks the {what} ({patterns[0]}), without which the run would end with "
                "other weights: go on from another one, or begin a new run with it as model and vpp."
            )


class SealedTrainer(Trainer):
    """Trainer whose checkpoints have the manifest by which going on sees that every file is as it was saved."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


def check_files(folder: Path) -> None:
    """Raise VPPError where a file of a checkpoint is not as it was saved."""
    if not check_manifest(folder):
        _check_unhashed(folder)


def _check_unhashed(folder: Path) -> None:
    """Warn of a checkpoint without manifest, as 0.1.0 wrote, and raise VPPError where a file cannot be read."""
    warnings.warn(
        f"the checkpoint '{folder}' has no manifest, as version 0.1.0 wrote none: whether its weights are as they were "
        "saved cannot be checked.",
        stacklevel=3,
    )
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".safetensors":
                read_safetensors([path])
            elif path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path) as parts:  # torch writes a checksum with each part
                    whole = parts.testzip() is None
                if not whole:
                    raise zipfile.BadZipFile("a checksum does not fit")
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
        except (ValueError, RecursionError, zipfile.BadZipFile, OSError) as error:
            raise VPPError(f"'{path}' is damaged ({error}): go on from another checkpoint.") from None


def check_room(folder: Path, needed: int) -> None:
    """Raise VPPError where the disk has not the bytes that one checkpoint takes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise VPPError(
            f"a checkpoint takes about {needed / 1e9:.1f} GB, but the disk of '{folder}' has {free / 1e9:.1f} GB left: "
            "make room, or choose another output_dir."
        )


def read_host(host: nn.Module, folder: Path) -> None:
    """Load a checkpoint's host, all of it: Trainer would only warn of names that do not match, and go on without."""
    own = {name: value for name, value in host.state_dict().items() if not name.startswith("vpp.")}
    loaded: set[int] = set()
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = load_file(path)
        if unknown := sorted(tensors.keys() - own.keys()):
            raise VPPError(f"'{path}' holds {len(unknown)} tensors that the model has not, {unknown[0]} for one.")
        host.load_state_dict(tensors, strict=False)
        loaded |= {own[name].data_ptr() for name in tensors}
    missing = [name for name, value in own.items() if value.data_ptr() not in loaded]  # a tied head is its embedding
    if missing:
        raise VPPError(f"'{folder}' lacks {len(missing)} of the host's tensors, {missing[0]} for one: it is not whole.")


def gathered_prompts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the prompts of a whole model's state, PEFT's wrapper looked through."""
    found = ((re.fullmatch(r"(?:base_model\.model\.)?vpp\.(.+)", name), value) for name, value in state.items())
    return {match[1]: value for match, value in found if match}


def forget_local_host(folder: Path) -> None:
    """Take the host's folder out of what PEFT wrote, unless the host is on the hub: the run's own file has it."""
    path = folder / ADAPTER
    values = json.loads(path.read_bytes()) if path.is_file() else {}
    if values.get(BASE) and not is_hub_id(values[BASE]):
        write_whole(path, json.dumps({**values, BASE: None}, indent=2) + "\n")


def check_weights(folder: Path) -> None:
    """Raise VPPError where prompts were saved empty, as they are where nobody gathered them from several devices."""
    empty = [name for name, value in load_file(folder / WEIGHTS_FILE).items() if not value.numel()]
    if empty:
        raise VPPError(f"{len(empty)} tensors of the prompts were saved empty, {empty[0]} for one: gather them first.")


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and raise VPPError where it cannot be written."""
    if reason := why_unwritable(folder):
        raise VPPError(f"output_dir '{folder}' cannot be written ({reason}): choose another folder.")
