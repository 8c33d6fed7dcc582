"""Save and load the prompts alone: `vpp_config.json` and `vpp.safetensors`."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError, few
from vpp_plugins.prompts import VPP

CONFIG_FILE = "vpp_config.json"
WEIGHTS_FILE = "vpp.safetensors"


def write_vpp(vpp: VPP, folder: str | os.PathLike[str], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write configuration and weights into `folder`; each file appears whole or not at all.

    `tensors` replaces the module's own state, where a caller has gathered it from several devices.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if target.is_file():
        raise VPPError(f"'{folder}' is a file: give a folder to save to.")
    target.mkdir(parents=True, exist_ok=True)
    state = vpp.state_dict() if tensors is None else tensors
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with tempfile.TemporaryDirectory(dir=target, prefix=".vpp-") as temporary:
        vpp.config.save(Path(temporary) / CONFIG_FILE)
        save_file(weights, Path(temporary) / WEIGHTS_FILE, metadata={"format": "pt"})
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            (Path(temporary) / name).replace(target / name)


def read_config(folder: Path) -> VPPConfig:
    """Read `vpp_config.json`."""
    return VPPConfig.load(folder / CONFIG_FILE)


def read_into(vpp: VPP, folder: Path) -> None:
    """Load `vpp.safetensors` into the prompts, all of it or, with VPPError, nothing."""
    import safetensors
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise VPPError(f"no '{WEIGHTS_FILE}' in '{folder}': give a folder that save_vpp wrote.")
    saved = read_config(folder)
    check_settings(saved, vpp.config, folder)
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise VPPError(f"'{path}' is damaged or truncated ({error}): save or download it again.") from None
    expected = vpp.state_dict()
    check_tensors(tensors, expected, str(path))
    if any(tensor.is_meta for tensor in expected.values()):
        raise VPPError(
            "the prompts are offloaded, and so cannot be loaded into: call load_vpp before dispatching the model."
        )
    vpp.load_state_dict(tensors)
    vpp.trained = True
    _adopt_normalisation(vpp, saved)


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
    values = config.to_dict()
    parts = {part: values[part] for part in ("global_vpp", "local_vpp")}
    flat = {part: "absent" if fields is None else "present" for part, fields in parts.items()}
    flat |= {f"{part}.{name}": value for part, fields in parts.items() for name, value in (fields or {}).items()}
    loose = ("global_vpp.image_mean", "global_vpp.image_std", "local_vpp.weights")
    return {name: value for name, value in flat.items() if name not in loose}


def _adopt_normalisation(vpp: VPP, saved: VPPConfig) -> None:
    prompt = saved.global_vpp
    if vpp.global_vpp is None or prompt is None or prompt.image_mean is None or prompt.image_std is None:
        return
    vpp.global_vpp.image_mean, vpp.global_vpp.image_std = prompt.image_mean, prompt.image_std
    vpp.config = replace(vpp.config, global_vpp=prompt)


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raise VPPError for missing or foreign keys, wrong shapes, and values that are not numbers."""
    problems = [
        *_group("missing", sorted(expected.keys() - found.keys())),
        *_group("not expected", sorted(found.keys() - expected.keys())),
        *_group(
            "of another shape",
            [
                f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in sorted(expected.keys() & found.keys())
                if found[name].shape != expected[name].shape
            ],
        ),
        *_group("NaN or infinite", [name for name, value in sorted(found.items()) if not torch.isfinite(value).all()]),
    ]
    if problems:
        raise VPPError(f"'{source}' does not fit: {'; '.join(problems)}. Nothing was loaded.")


def resolve(
    source: str | os.PathLike[str],
    *,
    files: Sequence[str] = (CONFIG_FILE, WEIGHTS_FILE),
    expected: str = "a folder that save_vpp wrote",
) -> Path:
    """Return the local folder of a path or a hub id; only a hub id touches the network.

    `files` are the names or patterns that are fetched; raises VPPError, naming what is `expected`, for neither.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or str(source).count("/") != 1 or str(source).startswith("."):
        raise VPPError(f"the folder '{source}' does not exist: give {expected}, or a hub id 'owner/name'.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=[*files]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise VPPError(
            f"'{source}' is no folder here and could not be fetched from the hub ({type(error).__name__}): check the "
            "name and the network."
        ) from None


def _group(label: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} {label}: {few(names)}"]
