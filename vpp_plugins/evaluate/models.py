"""The model to evaluate: the pocket model, or any that transformers loads, with or without prompts."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpp_plugins.attach import CONFIG_FILE, attach_vpp, check_found
from vpp_plugins.errors import VPPError, few, known_name, named_extras, nearest
from vpp_plugins.evaluate.run import processes
from vpp_plugins.files import check_weights_listed, is_hub_id, local_folder
from vpp_plugins.ground import Grounder
from vpp_plugins.processor import VPPProcessor

SHIPPED = {
    "pocket": ("pocket", True),
    "pocket-without-vpp": ("pocket", False),
    "smollm2": ("smollm2", True),
    "smollm2-without-vpp": ("smollm2", False),
}
"""What `load_pocket` calls the model of each name, and whether it has prompts."""
DTYPES = ("auto", "bfloat16", "float16", "float32")
ADAPTER, BASE = "adapter_config.json", "base_model_name_or_path"
"""PEFT's file beside LoRA, and its key for the host."""
FOR_BOTH = ("revision", "trust_remote_code")
_KIND = re.compile(r"model type `([^`]+)`|\.configuration_(\w+)\.")
"""Where transformers says of which type a model is that it does not load."""
_LISTED = "The documentation of AutoModelForImageTextToText lists all"
_PROBED = 64
"""Values of each tensor that a model's fingerprint reads."""


@named_extras("eval")
def load_grounder(
    model: str,
    *,
    vpp: str | None = None,
    box_format: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    **options: Any,
) -> Grounder:
    """Load a model by name and make it ready to be asked.

    `model` is "pocket" or "smollm2", each also with "-without-vpp", or a folder or hub id of an image-text-to-text
    model; `vpp` is what `save_vpp` or a run wrote for it, LoRA included, and defaults to the prompts beside the model
    where there are some.
    `device` defaults to the first GPU of this process, or else the CPU. `options` go to `load_pretrained`; where
    `device_map` is one of them, it places the host.
    """
    known_name(dtype, DTYPES, "dtype")
    place = processes().device if device is None else torch.device(device)
    if model in SHIPPED:
        if vpp is not None:
            raise VPPError(f"'{model}' comes with its own prompts, so '{vpp}' cannot be put on: leave --vpp out.")
        if dtype not in ("auto", "float32"):
            raise VPPError(f"'{model}' runs in float32, but {dtype} was asked for: leave --dtype out.")
        if options:
            raise VPPError(f"'{model}' is loaded as it is, but {few(list(options))} came: leave it out.")
        from vpp_plugins.pocket import load_pocket

        name, prompted = SHIPPED[model]
        shipped, own = load_pocket(prompted, name=name)
        nn.Module.to(shipped, place)
        return Grounder(shipped, own, box_format=box_format)
    lora = vpp if vpp is not None and vpp != model and Path(vpp, ADAPTER).is_file() else None
    host, processor = load_pretrained(model, lora, dtype=dtype, **options)
    if lora is not None:
        _put_on(host, lora)
    host = host.eval() if "device_map" in options else host.to(place).eval()
    beside = model if vpp is None else vpp
    bare = vpp is None or Path(beside, ADAPTER).is_file()  # a control's LoRA has no prompts beside it
    if not bare or Path(beside, CONFIG_FILE).is_file():
        attach_vpp(host, beside)
        processor = VPPProcessor(processor, host)
    return Grounder(host, processor, box_format=box_format)


def load_pretrained(model: str, processor: str | None = None, **options: Any) -> tuple[Any, Any]:
    """Load an image-text-to-text model and its processor (None: from the same place) from a folder or hub id.

    `options` go to `from_pretrained`, those of `FOR_BOTH` to the processor's too where it comes from the same place.
    Raises VPPError where it is no such model, and where weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vpp_plugins.pocket import register_pocket

    register_pocket()  # a pocket model that was trained anew lies in a folder like any other
    check_weights_listed(Path(model))  # there where `vpp train` wrote it
    if options.get("revision") is None:
        check_there(model)
    below = _host_of_run(Path(model))
    try:
        told: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, **options}
        loaded: Any = AutoModelForImageTextToText.from_pretrained(below or model, **told)
        host, found = loaded
        _check_loaded(below or model, host, found)
        if below is not None:
            _put_on(host, model)
        both = {name: value for name, value in options.items() if name in FOR_BOTH and processor is None}
        return host, AutoProcessor.from_pretrained(processor or model, **both)
    except VPPError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError, SafetensorError) as error:
        raise not_loaded(below or model, error) from None


def _check_loaded(model: str, host: nn.Module, found: Mapping[str, Any]) -> None:
    """Raise VPPError where weights of a host were not in its files, or of other shapes: they start at random then."""
    weights = {name for name, _ in host.named_parameters()}
    if missing := sorted(weights & {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise VPPError(
            f"the files of '{model}' lack {len(missing)} weights of a {type(host).__name__}, or hold them in other "
            f"shapes, so that these would be random: {few(missing)}. Take a whole copy of the model."
        )


def check_there(model: str) -> Path:
    """Return the folder of a model's configuration; raises VPPError, before transformers asks the hub, for none."""
    if not Path(model).is_dir() and not is_hub_id(model):
        raise not_loaded(model, FileNotFoundError("there is no such folder"))
    return local_folder(model, files=["config.json"], expected="a model's folder")


def not_loaded(model: str, error: Exception) -> VPPError:
    """Return what is said of a model that transformers could not load: one sentence, without the list of all types."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if kind := _KIND.search(reason):
        name = kind[1] or kind[2]
        reason = f"transformers has none of the type '{name}'.{nearest(name, KNOWN)} {_LISTED}"
    return VPPError(
        f"'{model}' could not be loaded as an image-text-to-text model ({reason}): name pocket, a folder or a hub id."
    )


def _host_of_run(folder: Path) -> str | None:
    """Return the host of a folder's LoRA; one that is not on the hub is named by the run, not by what is shared.

    None where the folder holds no LoRA. Raises VPPError for LoRA that lies somewhere else.
    """
    if not (folder / ADAPTER).is_file():
        return None
    try:
        if named := json.loads((folder / ADAPTER).read_bytes()).get(BASE):
            return str(named)
        return str(json.loads((folder.parent / "run.json").read_bytes())["host"])
    except (OSError, ValueError, KeyError):
        raise VPPError(
            f"'{folder}' holds LoRA of a host that lay in a folder, and does not say where: name the host as the "
            f"model, and these beside it (--model HOST --vpp {folder})."
        ) from None


def _put_on(host: Any, folder: str) -> None:
    """Load a folder's LoRA into its host."""
    check_weights_listed(Path(folder))
    check_found(host.load_adapter(folder), folder)


def fingerprint_of_model(model: nn.Module) -> str:
    """Return a SHA-256 that changes when a model is trained on, converted, or gets other prompts.

    Of every parameter and buffer it reads name, shape, type and 64 values spread over it: enough to tell two
    checkpoints apart, and quick for a model of billions. It does not depend on the device.
    """
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta:  # offloaded: its values are elsewhere
            continue
        values = tensor.detach().reshape(-1)
        probed = values[:: max(1, len(values) // _PROBED)][:_PROBED]
        own = probed.clone(memory_format=torch.contiguous_format)  # FSDP cannot free what numpy has looked at
        digest.update(own.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
