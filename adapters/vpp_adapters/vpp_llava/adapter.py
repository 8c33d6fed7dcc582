"""VPP-LLaVA (arXiv 2503.15426): its checkpoints as transformers' LlavaForConditionalGeneration with VPP attached."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpp_adapters.llava import VPP_LLAVA
from vpp_adapters.vpp_llava.reference import REFERENCE, is_reference, read_settings
from vpp_plugins import VPPError, VPPProcessor, attach_vpp, hookimpl
from vpp_plugins.attach import CONFIG_FILE, WEIGHTS_FILE, resolve
from vpp_plugins.plugins import Backbone, Converter


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim the LLaVAs that were converted from VPP-LLaVA; they are marked in their config.json."""
    from transformers import LlavaForConditionalGeneration

    if not isinstance(model, LlavaForConditionalGeneration) or VPP_LLAVA not in model.config.to_dict():
        return None
    config: Any = model.config
    return Backbone(
        adapter="vpp_llava",
        hidden_size=config.text_config.hidden_size,
        vision_encoders=("model.vision_tower",),
        projectors=("model.multi_modal_projector",),
        box_format="vpp-llava",
        frame="square",
        never_ids=(config.image_token_id,),  # the reference has no token for an image, so it cannot answer one
        prepare_processor=process_as_trained,
        defaults=REFERENCE,
    )


@hookimpl
def vpp_converter(folder: Path) -> Converter | None:
    """Convert what VPP-LLaVA's own code saved."""
    from vpp_adapters.vpp_llava.convert import convert

    known = (folder / "config.json").is_file() and is_reference(read_settings(folder))
    return convert if known else None


def load_vpp_llava(
    source: str | os.PathLike[str], dtype: torch.dtype | None = None, **options: Any
) -> tuple[Any, VPPProcessor]:
    """Load VPP-LLaVA as a LlavaForConditionalGeneration with VPP attached, and its processor.

    `source` is a folder or hub id: either as VPP-LLaVA's own code saved it, or converted by `vpp convert`. The former
    is converted first, into a folder of the Hugging Face cache (HF_HOME/vpp-plugins) that the next call finds again: it
    takes as much disk as the checkpoint, and memory for one file of at most a gigabyte. Convert it once yourself to
    choose the place.

    `dtype` None keeps the checkpoint's, as published bfloat16: 14 GB for 7B and 27 GB for 13B, on a GPU of 24 or 40 GB.
    float32 doubles that and is for CPUs and for comparing numbers. `options` go to `from_pretrained`: `device_map`, or
    `quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)`, which by
    calculation leaves 4.5 GB of 7B and 8 GB of 13B; the prompts, 120 MB, stay in the dtype of the token embedding.

    Raises VPPError for a source that is not there, of another model, or without VPP.
    """
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = _converted(_fetched(source))
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype or "auto", **options)
    attach_vpp(model, folder)
    return model, VPPProcessor(LlavaProcessor.from_pretrained(folder), model)


def process_as_trained(processor: Any) -> None:
    """Make the image processor pad to a square and resize 8-bit pixels by Pillow's bicubic, bit for bit.

    transformers' default, by torchvision, differs by one level in some pixels.
    """
    from transformers import LlavaImageProcessorPil

    current = processor.image_processor.to_dict()
    settings = {name: current[name] for name in ("size", "crop_size", "image_mean", "image_std")}
    processor.image_processor = LlavaImageProcessorPil(**settings, do_pad=True)


def _converted(folder: Path) -> Path:
    """Return the folder itself if it is converted, else the one of the cache, made at need."""
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    from vpp_adapters.vpp_llava.convert import convert

    settings = read_settings(folder)
    if VPP_LLAVA in settings:
        if lost := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]:
            raise VPPError(f"no '{lost[0]}' in '{folder}', which holds the prompts of VPP-LLaVA: convert it again.")
        return folder
    if not is_reference(settings):
        raise VPPError(
            f"'{folder}' is no VPP-LLaVA, but a {settings.get('model_type', 'model of unknown type')}: load it with "
            "from_pretrained, and add prompts with attach_vpp(model)."
        )
    target = Path(HF_HOME) / "vpp-plugins" / f"{folder.resolve().name}-{_fingerprint(folder)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # one process per GPU may load at once
        if not target.is_dir():
            convert(folder, target)
    return target


def _fingerprint(folder: Path) -> str:
    """Return a name for the present contents of a folder, by its files' sizes and times."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    contents = [str(folder.resolve()), *(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)]
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]


def _fetched(source: str | os.PathLike[str]) -> Path:
    """Return the local folder of a path or a hub id; only a hub id touches the network."""
    settings, expected = ["*.json", "*.jinja", "tokenizer.model"], "the folder of a checkpoint"
    folder = resolve(source, files=[*settings, "*.safetensors"], expected=expected)
    if any(folder.glob("*.safetensors")):
        return folder
    return resolve(source, files=[*settings, "pytorch_model*.bin"], expected=expected)
