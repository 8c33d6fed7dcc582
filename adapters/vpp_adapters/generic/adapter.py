"""Every host that no named adapter claims: what transformers itself says of it, and a table of what it does not say."""

import inspect
from typing import Any

from torch import nn

from vpp_adapters.generic.table import (
    BOX_FORMATS,
    ENCODERS,
    INNER_PROJECTORS,
    LAYOUTS,
    NO_GLOBAL,
    PADDED,
    PROJECTORS,
    REFUSED,
    WHOLE,
    qwen_order,
)
from vpp_adapters.llava import pad_to_square
from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPError, hookimpl
from vpp_plugins.boxes import BOX_CODECS
from vpp_plugins.plugins import Backbone, PixelLayout, keep_processor
from vpp_plugins.plugins.layouts import planes

IMAGE_ARGUMENTS = (
    "pixel_values",
    "pixel_values_local",
    "high_res_pixel_values",
    "flattened_patches",
    "image_patches",
    "pixel_values_images",
)
"""transformers' names for images in `forward`, in the order in which a host encodes them."""

DEFAULT_BOX_FORMAT = "qwen3-vl"
"""What a host without a tradition of boxes is asked for and taught: JSON, 0 to 1000 on the image itself. It is what
most recent hosts have seen, it does not depend on how a processor resizes, and it names each box."""


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim whatever transformers calls a model of images and text, if no other adapter does.

    Raises VPPError, with the reason, for transformers' models that cannot take VPP.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    kind = model.config.model_type
    refuse(type(model), kind)
    embedding: Any = model.get_input_embeddings()
    encoders = vision_encoders(model, kind)
    box_format = BOX_FORMATS.get(kind, DEFAULT_BOX_FORMAT)
    family = BOX_CODECS[box_format]
    padded = family.frame == "square"
    axes = GlobalVPPConfig(unit="0-1" if family.unit == "0-1" else "0-1000") if encoders else None
    local = LocalVPPConfig(mask_padding=not padded)  # on the padded square, positions must run over all of it
    layout, tiled = pixel_layout(model, kind, encoders)
    return Backbone(
        adapter="generic",
        hidden_size=embedding.weight.shape[-1],
        vision_encoders=encoders,
        projectors=projectors(model, encoders),
        box_format=box_format,
        frame=family.frame,
        image_arguments=image_arguments(type(model)),
        pixel_layout=layout,
        tiled=tiled,
        fallback=True,
        prepare_processor=pad_images if padded else keep_processor,
        defaults=VPPConfig(global_vpp=axes, local_vpp=local),
    )


def refuse(model_class: type, model_type: str) -> None:
    """Raise VPPError for a class of transformers that cannot take VPP."""
    name = model_class.__name__
    if model_type in REFUSED:
        raise VPPError(f"VPP cannot be attached to {name}: {REFUSED[model_type]}.")
    if not image_arguments(model_class):
        raise VPPError(
            f"VPP cannot be attached to {name}: it takes no images; load the model's class for images and text, such "
            "as AutoModelForImageTextToText gives."
        )
    if not model_class.can_generate():  # type: ignore[attr-defined]
        raise VPPError(
            f"VPP cannot be attached to {name}: it has no language head to answer with; load the model's class for "
            "images and text, such as AutoModelForImageTextToText gives."
        )


def image_arguments(model_class: Any) -> tuple[str, ...]:
    """Return the names of the images in the class's forward; none where it takes no images."""
    names = inspect.signature(model_class.forward).parameters
    found = tuple(name for name in IMAGE_ARGUMENTS if name in names)
    return found or (("pixel_values",) if "image" in model_class.input_modalities else ())


def vision_encoders(model: Any, model_type: str) -> tuple[str, ...]:
    """Return the paths of the modules that get the pixels; none where the global prompt cannot act."""
    if model_type in NO_GLOBAL:
        return ()
    if model_type in ENCODERS:
        return ENCODERS[model_type]
    encoder = model.get_encoder("image")
    return tuple(path for path, module in model.named_modules() if module is encoder and path)


def pixel_layout(model: Any, model_type: str, encoders: tuple[str, ...]) -> tuple[PixelLayout, bool]:
    """Return how the encoder's pixels are arranged, and whether its inputs may be other than whole images."""
    if not encoders:
        return planes, False
    vision = model.config.vision_config if "vision_config" in model.config.to_dict() else model.config
    if model_type in LAYOUTS:
        return LAYOUTS[model_type](vision), model_type not in WHOLE
    arguments = inspect.signature(type(model.get_submodule(encoders[0])).forward).parameters
    if "grid_thw" in arguments:
        return qwen_order(vision), model_type in PADDED
    return planes, True  # most processors of planes crop, tile or pad


def projectors(model: Any, encoders: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths of the modules that transformers' names say are projectors, beside or within the encoder."""
    paths = {path for path, _ in model.named_modules()}
    beside = {(path.rpartition(".")[0], name) for path in encoders for name in PROJECTORS}
    within = {(path, name) for path in encoders for name in INNER_PROJECTORS}
    named = {f"{parent}.{name}" if parent else name for parent, name in beside | within}
    return tuple(sorted(named & paths - set(encoders)))


def pad_images(processor: Any) -> None:
    """Make the processor of a host that writes LLaVA's boxes pad images to a square instead of cropping them."""
    from transformers import VideoLlavaProcessor

    if isinstance(processor, VideoLlavaProcessor):
        from vpp_adapters.generic.video_llava import padding

        processor.image_processor = padding(processor.image_processor)
    else:
        pad_to_square(processor)
