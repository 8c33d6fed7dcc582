"""The model to evaluate: the pocket model, or any that transformers loads, with or without prompts."""

from pathlib import Path
from typing import Any

from vpp_plugins.attach import attach_vpp
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.run import processes
from vpp_plugins.ground import Grounder
from vpp_plugins.processor import VPPProcessor

POCKET = {"pocket": True, "pocket-without-vpp": False}


def load_grounder(
    model: str, *, vpp: str | None = None, box_format: str | None = None, dtype: str = "auto", device: str | None = None
) -> Grounder:
    """Load a model by name and make it ready to be asked.

    `model` is "pocket" or "pocket-without-vpp", or a folder or hub id of an image-text-to-text model; `vpp` is what
    `save_vpp` wrote for it, and defaults to the prompts beside the model where there are some. `device` defaults to the
    first GPU of this process, or else the CPU.
    """
    import torch

    if model in POCKET:
        from vpp_plugins.pocket import load_pocket

        return Grounder(*load_pocket(vpp=POCKET[model]), box_format=box_format)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        host: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
        processor: Any = AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise VPPError(
            f"'{model}' could not be loaded as an image-text-to-text model ({first}): give pocket, pocket-without-vpp, "
            "a folder or a hub id."
        ) from None
    host = host.to(torch.device(device) if device is not None else processes().device).eval()
    prompts = vpp or (model if Path(model, "vpp_config.json").is_file() else None)
    if prompts is None:
        return Grounder(host, processor, box_format=box_format)
    attach_vpp(host, prompts)
    return Grounder(host, VPPProcessor(processor, host), box_format=box_format)
