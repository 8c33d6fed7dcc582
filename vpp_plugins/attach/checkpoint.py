"""Save and load the prompts alone: `vpp_config.json` and `vpp.safetensors`."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.config import TRAINED_ON, WEIGHTS_SHA256, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.files import (
    check_tensors,
    is_hub_id,
    local_folder,
    read_safetensors,
    safetensors_shapes,
    sha256_of,
    sha256_of_tensors,
    whole_file,
)
from vpp_plugins.plugins import build_generator
from vpp_plugins.prompts import VPP, without_local_configuration

CONFIG_FILE = "vpp_config.json"
WEIGHTS_FILE = "vpp.safetensors"
GENERATOR = "local_prompt.generator."


def write_vpp(vpp: VPP, folder: str | os.PathLike[str], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write configuration and weights into `folder`; each file appears whole or not at all.

    `tensors` replaces the module's own state, where a caller has gathered it from several devices. Raises VPPError
    where settings were changed on the prompts themselves.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if not os.fspath(folder):
        raise VPPError("the folder to save to has no name: give one, or '.' for this one.")
    if target.is_file():
        raise VPPError(f"'{folder}' is a file: give a folder to save to.")
    target.mkdir(parents=True, exist_ok=True)
    vpp.check_settings()
    state = vpp.state_dict() if tensors is None else tensors
    config, state = _without_hub_weights(vpp, state)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(target / WEIGHTS_FILE) as file:
        save_file(weights, file.name, metadata={"format": "pt"})
    beside = {WEIGHTS_SHA256: sha256_of(target / WEIGHTS_FILE), TRAINED_ON: dict(vpp.trained_on)}
    config.save(target / CONFIG_FILE, **{name: value for name, value in beside.items() if value})


def read_into(vpp: VPP, folder: Path, *, check: bool = True) -> None:
    """Load `vpp.safetensors` into the prompts, all of it or, with VPPError, nothing.

    `check` compares the file with the SHA-256 that `vpp_config.json` has of it.
    """
    saved, tensors = read_prompts(vpp, folder, check=check)
    if any(tensor.is_meta for tensor in vpp.state_dict().values()):
        raise VPPError(
            "the prompts are offloaded, and so cannot be loaded into: call load_vpp before dispatching the model."
        )
    vpp.load_state_dict(tensors)
    adopt(vpp, saved)


def read_prompts(vpp: VPP, folder: Path, *, check: bool = True) -> tuple[VPPConfig, dict[str, Tensor]]:
    """Return what `read_into` loads; raises VPPError where it does not fit the prompts."""
    path = _weights_of(folder)
    saved = VPPConfig.load(folder / CONFIG_FILE)
    check_host(folder, vpp.trained_on)
    check_settings(saved, vpp.config, folder)
    tensors = {**read_safetensors([path]), **_from_hub(saved, folder)}
    check_tensors(tensors, vpp.state_dict(), f"'{path}'")
    if check:
        _check_hash(folder)
    return saved, tensors


def hub_weights(generator: nn.Module, source: str) -> dict[str, str]:
    """Return how saved prompts name a generator that has just been loaded from the hub, and its SHA-256."""
    dtype = next(value.dtype for value in generator.state_dict().values() if value.is_floating_point())
    return {f"{source}:{str(dtype).removeprefix('torch.')}": sha256_of_tensors(generator.state_dict())}


def _without_hub_weights(vpp: VPP, state: Mapping[str, Tensor]) -> tuple[VPPConfig, Mapping[str, Tensor]]:
    """Leave out a generator that is, to the bit, as the hub has it, and name it instead; no local path is kept."""
    local = vpp.config.local_vpp
    if local is None:
        return vpp.config, state
    own = {name.removeprefix(GENERATOR): value for name, value in state.items() if name.startswith(GENERATOR)}
    unchanged = bool(vpp.hub_weights) and [*vpp.hub_weights.values()] == [sha256_of_tensors(own)]
    local = replace(
        local,
        weights=local.weights if local.weights is not None and is_hub_id(local.weights) else None,
        frozen_weights={**_packaged(local.frozen_weights), **(vpp.hub_weights if unchanged else {})},
    )
    kept = {name: value for name, value in state.items() if not (unchanged and name.startswith(GENERATOR))}
    return replace(vpp.config, local_vpp=local), kept


def _from_hub(saved: VPPConfig, folder: Path) -> dict[str, Tensor]:
    """Return the generator's tensors where saved prompts only name them; raises VPPError where the hub has others."""
    local, tensors = saved.local_vpp, {}
    for name, digest in named_on_hub(saved).items():
        from vpp_plugins.prompts.generators import load_weights

        assert local is not None  # it named them
        source, _, dtype = name.rpartition(":")
        with torch.random.fork_rng(devices=[]):
            generator = build_generator(local.generator, local.num_queries, local.generator_options)
        load_weights(generator, source)
        state = generator.to(_dtype(dtype, folder)).state_dict()
        if sha256_of_tensors(state) != digest:
            raise VPPError(
                f"the prompts in '{folder}' were trained on the detector '{source}' with SHA-256 {digest[:12]}…, and "
                "what the hub has now is another one. Nothing was loaded: put the files of that day into the hub's "
                "cache, or train anew."
            )
        tensors = {GENERATOR + part: value for part, value in state.items()}
    return tensors


def named_on_hub(config: VPPConfig) -> dict[str, str]:
    """Return the hub's weights that saved prompts name, see `LocalVPPConfig.frozen_weights`."""
    local = config.local_vpp
    return {} if local is None else {name: one for name, one in local.frozen_weights.items() if "/" in name}


def _dtype(name: str, folder: Path) -> torch.dtype:
    known = {str(one).removeprefix("torch."): one for one in (torch.float32, torch.bfloat16, torch.float16)}
    if name not in known:
        raise VPPError(f"frozen_weights in '{folder / CONFIG_FILE}' names the dtype '{name}': take another copy.")
    return known[name]


def _weights_of(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise VPPError(f"no '{WEIGHTS_FILE}' in '{folder}': give a folder that save_vpp wrote.")
    return path


def adopt(vpp: VPP, saved: VPPConfig) -> None:
    """Have the prompts say of themselves what their weights, which have been loaded, were saved with."""
    vpp.trained = True
    prompt = saved.global_vpp
    if vpp.global_vpp is None or prompt is None or prompt.image_mean is None or prompt.image_std is None:
        return
    vpp.global_vpp.image_mean, vpp.global_vpp.image_std = prompt.image_mean, prompt.image_std
    vpp.config = replace(vpp.config, global_vpp=prompt)


def _check_hash(folder: Path) -> None:
    """Raise VPPError where the weights are not those that were saved with their configuration."""
    path, values = folder / WEIGHTS_FILE, json.loads((folder / CONFIG_FILE).read_bytes())
    expected = values.get(WEIGHTS_SHA256)
    if expected is None:
        unnamed = "" if TRAINED_ON in values else ", and does not say which family they are for"
        warnings.warn(
            f"'{folder}' has no SHA-256 of its weights{unnamed}, as version 0.1.0 wrote none: whether they are as they "
            "were saved, and belong here, cannot be checked; save_vpp adds it.",
            stacklevel=4,
        )
    elif sha256_of(path) != expected:
        raise VPPError(
            f"'{path}' was changed since it was saved, or is of other prompts than '{CONFIG_FILE}' beside it (its "
            f"SHA-256 is another): take another copy of '{folder}'. Where you replaced it on "
            f"purpose, delete {WEIGHTS_SHA256} from '{CONFIG_FILE}'."
        )


def check_host(folder: Path, here: Mapping[str, Any]) -> None:
    """Raise VPPError where the prompts were trained on another family of hosts: its width may be the same by chance."""
    there = json.loads((folder / CONFIG_FILE).read_bytes()).get(TRAINED_ON, {})
    if not isinstance(there, dict):
        raise VPPError(f"{TRAINED_ON} in '{folder / CONFIG_FILE}' must be an object, but is {there!r}.")
    if any(there.get(name, value) != value for name, value in here.items()):
        listed = [", ".join(f"{name} {value}" for name, value in host.items()) for host in (there, here)]
        raise VPPError(
            f"the prompts in '{folder}' were trained on another family ({listed[0]}) than this host's ({listed[1]}). "
            "Nothing was loaded: take prompts of its own, or, to train on from these all the same, "
            f"delete {TRAINED_ON} from '{CONFIG_FILE}'."
        )


def check_header(folder: Path, saved: VPPConfig) -> None:
    """Raise VPPError where a configuration is not of the weights beside it, before anything of its sizes is built."""
    path = _weights_of(folder)
    shapes, prompt, local = safetensors_shapes(path), saved.global_vpp, saved.local_vpp
    axes, projector = shapes.get("global_prompt.prompt"), shapes.get("local_prompt.projector.0.weight")
    if prompt is not None and axes is not None and axes[-1] != prompt.size:
        raise VPPError(_header_says(path, "global_vpp.size", prompt.size, axes[-1]))
    if local is None:
        return
    if projector is not None and projector[0] != local.projector_size:
        raise VPPError(_header_says(path, "local_vpp.projector_size", local.projector_size, projector[0]))
    most = max([1024, len(shapes), *(side for shape in shapes.values() for side in shape)])
    for name, value in local.generator_options.items() if not named_on_hub(saved) else ():
        if isinstance(value, int) and value > most:
            raise VPPError(_header_says(path, f"local_vpp.generator_options.{name}", value, f"nothing above {most}"))


def _header_says(path: Path, name: str, said: int, found: int | str) -> str:
    return (
        f"'{path}' does not fit '{CONFIG_FILE}' beside it: {name} is {said} there, and {found} in the weights. Nothing "
        "was loaded: take another copy of both."
    )


def check_settings(saved: VPPConfig, attached: VPPConfig, folder: Path) -> None:
    """Raise VPPError where the prompts were saved with other settings than they are attached with.

    The seed and the detector's first weights are overwritten, and the normalisation comes with the prompt.
    """
    found, expected = _settings(saved), _settings(attached)
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if names:
        listed = "; ".join(f"{name} is {found.get(name)} there and {expected.get(name)} here" for name in names[:3])
        raise VPPError(
            f"'{folder}' was saved with other settings than are attached: {listed}. Nothing was loaded; "
            "attach_vpp(model, folder) builds what was saved."
        )


def _settings(config: VPPConfig) -> dict[str, Any]:
    values = without_local_configuration(config).to_dict()
    parts = {part: values[part] for part in ("global_vpp", "local_vpp")}
    flat = {part: "absent" if fields is None else "present" for part, fields in parts.items()}
    flat |= {f"{part}.{name}": value for part, fields in parts.items() for name, value in (fields or {}).items()}
    loose = ("global_vpp.image_mean", "global_vpp.image_std", "local_vpp.weights")
    flat = {name: value for name, value in flat.items() if name not in loose}
    local = config.local_vpp
    return flat if local is None else {**flat, "local_vpp.frozen_weights": _packaged(local.frozen_weights)}


def _packaged(frozen_weights: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is on the hub, where what was loaded from there decides."""
    return {name: digest for name, digest in frozen_weights.items() if "/" not in name}


def resolve(
    source: str | os.PathLike[str],
    *,
    files: Sequence[str] = (CONFIG_FILE, WEIGHTS_FILE),
    expected: str = "a folder that save_vpp wrote",
) -> Path:
    """Return the local folder of a path or a hub id; only a hub id touches the network.

    `files` are the names or patterns that are fetched; raises VPPError, naming what is `expected`, for neither.
    """
    return local_folder(source, files=files, expected=expected)
