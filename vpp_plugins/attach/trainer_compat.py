"""Checkpoints of transformers' Trainer and of PEFT hold the prompts beside their own files, and bring them back.

Both load the host's part into `load_state_dict`, and neither tells a model of what folder it comes. So the folder is
read off their frames on the stack: that is the only way in which a user's own Trainer, SFTTrainer or Seq2SeqTrainer
does not go on with the wrong prompts.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpp_plugins.attach import vocabulary
from vpp_plugins.attach.checkpoint import WEIGHTS_FILE, adopt, read_prompts, write_vpp
from vpp_plugins.attach.peft_compat import check_whole
from vpp_plugins.errors import VPPError
from vpp_plugins.files import check_tensors, read_safetensors, sha256_of_tensors
from vpp_plugins.prompts import VPP

Frames = Mapping[tuple[str, str], Callable[[Mapping[str, Any]], Any]]
"""By module and function, where its folder stands among its local names."""

LOADING: Frames = {
    ("peft.peft_model", "load_adapter"): lambda names: names["model_id"],
    ("transformers.trainer", "_load_from_checkpoint"): lambda names: names["resume_from_checkpoint"],
    ("transformers.trainer", "_load_best_model"): lambda names: names["self"].state.best_model_checkpoint,
}
SAVING: Frames = {
    ("peft.peft_model", "save_pretrained"): lambda names: _adapter_folder(names) if names["is_main_process"] else None,
    ("transformers.trainer", "_save"): lambda names: names["output_dir"],
}
SHA256 = "sha256"
"""In the header of the placeholder's rows, their own."""
OURS = "vpp_plugins.train.trainer"
"""It reads and writes the prompts itself."""


def folders(frames: Frames) -> list[tuple[str, Path]]:
    """Return the libraries that are loading or saving now, and their folders, the innermost first."""
    found = []
    for module, function, names in _stack():
        if module == OURS:
            return []
        if (module, function) in frames and (folder := frames[module, function](names)) is not None:
            found.append((module.partition(".")[0], Path(folder)))
    return found


def complete(host: Any, state: dict[str, Tensor], prefix: str) -> None:
    """Add the prompts beside a checkpoint to its host's part, in place, while Trainer or PEFT loads it.

    The host's part is brought to the names and to the vocabulary that the host has now. Raises VPPError where Trainer's
    checkpoint holds no prompts, and where they or the host do not fit.
    """
    loading = folders(LOADING)
    _check_lora(host, state, prefix)
    ours = f"{prefix}vpp."
    if not loading or any(name.startswith(ours) for name in state):
        return
    folder = next((folder for _, folder in loading if (folder / WEIGHTS_FILE).is_file()), None)
    if folder is None and any(library == "transformers" for library, _ in loading):
        raise VPPError(
            f"the checkpoint '{loading[-1][1]}' holds no prompts ({WEIGHTS_FILE}), and going on from it would leave "
            "others beside its host: go on from another one, or begin a new run with its host, attach_vpp(model)."
        )
    if folder is None:
        return
    if not prefix:
        _rename(host, state, folder)
        _widen(host, state, folder)
    adapters = len(host.__dict__.get("peft_config", {})) if all(library == "peft" for library, _ in loading) else 1
    for path, vpp in host.vpp.named_modules(remove_duplicate=False):
        if isinstance(vpp, VPP):
            saved, tensors = read_prompts(vpp, folder)
            _refuse_second(vpp, tensors, folder, adapters)
            state |= {f"{ours}{path}{'.' if path else ''}{name}": value for name, value in tensors.items()}
            adopt(vpp, saved)


def prompts_beside(host: Any, adapter: Any) -> Path | None:
    """Return the folder of an adapter that transformers is about to put on a host, where prompts stand beside it.

    Raises VPPError where they do not fit, or are others than those of the adapters that the host has.
    """
    folder = Path(str(adapter))
    if not (folder / WEIGHTS_FILE).is_file() or not isinstance(host.vpp, VPP):  # modules_to_save wraps them
        return None
    _refuse_second(host.vpp, read_prompts(host.vpp, folder)[1], folder, len(host.__dict__.get("peft_config", {})) + 1)
    return folder


def keep(host: Any) -> None:
    """Write the prompts beside an adapter that PEFT is saving without them."""
    saving = folders(SAVING)
    if not saving or saving[0][0] != "peft" or not isinstance(host.vpp, VPP):  # modules_to_save wraps them
        return
    if host.vpp.trained or any(parameter.requires_grad for parameter in host.vpp.parameters()):
        write_vpp(host.vpp, saving[0][1])


def keep_rows(host: Any) -> None:
    """Write what training made of the placeholder's rows into a checkpoint that Trainer is saving."""
    from safetensors.torch import save_file

    added = vocabulary.added_rows(host)
    if added and (saving := folders(SAVING)):
        save_file(added, saving[-1][1] / vocabulary.ROWS_FILE, metadata={SHA256: sha256_of_tensors(added)})


def _check_lora(host: Any, state: Mapping[str, Tensor], prefix: str) -> None:
    """Raise VPPError where the file from which PEFT loads low-rank layers lacks some: PEFT warns of it at most."""
    for module, function, names in _stack():
        if (module, function) == ("peft.peft_model", "load_adapter"):
            adapter = names["adapter_name"]
            low_rank = host.peft_config[adapter].peft_type == "LORA"
            own = [name for name in host.state_dict() if ".lora_" in name and adapter in name.split(".")]
            check_whole(names["model_id"], [name for name in own if low_rank and prefix + name not in state])


def _stack() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    frame = inspect.currentframe()
    while frame is not None:
        yield str(frame.f_globals.get("__name__")), frame.f_code.co_name, frame.f_locals
        frame = frame.f_back


def _rename(host: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Bring published names to the host's own: transformers saves the former, and Trainer loads by the latter."""
    own = {name: value for name, value in host.state_dict().items() if not name.startswith("vpp.")}
    unknown = [name for name in state if name not in own]
    if not unknown:
        return
    from transformers.core_model_loading import revert_weight_conversion

    published = revert_weight_conversion(host, dict(own))
    names = {_place(value): name for name, value in own.items()}
    renamed = {name: names.get(_place(published[name])) for name in unknown if name in published}
    for name in unknown:
        if (known := renamed.get(name)) is None:
            raise VPPError(
                f"'{folder}' holds {len(unknown)} tensors that Trainer cannot load into this {type(host).__name__}, "
                f"{name} for one: begin a new run with from_pretrained and attach_vpp(model, '{folder}'), or train by "
                "`vpp train`, which goes on exactly."
            )
        state[known] = state.pop(name)


def _place(value: Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.shape, value.dtype


def _widen(host: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Add the placeholder's rows to the vocabulary's tables, which are saved without them."""
    rows, grown = host._vpp_state.host_rows, vocabulary.rows_of(host)
    shapes = {name: value.shape for name, value in state.items() if value.ndim}
    own = {name: value for name, value in host.state_dict().items() if name in shapes}
    short = [name for name, value in own.items() if (shapes[name][0], len(value)) == (rows, grown)]
    if short:
        vocabulary.put_rows(host, _saved_rows(host, folder))
        own = host.state_dict()
        state |= {name: torch.cat([state[name], own[name][rows:].to(state[name])]) for name in short}


def _saved_rows(host: Any, folder: Path) -> dict[str, Tensor]:
    """Return what `keep_rows` wrote; raises VPPError where it is lost, damaged, or another host's."""
    path = folder / vocabulary.ROWS_FILE
    if not path.is_file():
        raise VPPError(
            f"the checkpoint '{folder}' has lost '{path.name}', what training made of the placeholder's rows: take "
            "another copy, or go on from another checkpoint."
        )
    from safetensors import safe_open

    rows = read_safetensors([path])
    check_tensors(rows, vocabulary.added_rows(host), f"'{path}'")
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get(SHA256) != sha256_of_tensors(rows):
            raise VPPError(f"'{path}' was changed since it was saved: take another copy, or another checkpoint.")
    return rows


def _adapter_folder(names: Mapping[str, Any]) -> Path:
    """Return where PEFT saves one of its adapters: all but the first have folders of their own."""
    name = names.get("adapter_name", "default")
    return Path(names["save_directory"], "" if name == "default" else name)


def _refuse_second(vpp: VPP, tensors: Mapping[str, Tensor], folder: Path, adapters: int) -> None:
    """Raise VPPError for prompts of one of several adapters, which share what the model has."""
    own = {name: value.cpu() for name, value in vpp.state_dict().items()}
    same = all(torch.equal(value.to(own[name]), own[name]) for name, value in tensors.items())
    if adapters > 1 and vpp.trained and not same:
        raise VPPError(
            f"the adapter in '{folder}' comes with other prompts than those of the adapters that the model has, and "
            "would give them to all: train prompts of their own by modules_to_save=['vpp'], or load it into a model of "
            "its own."
        )
