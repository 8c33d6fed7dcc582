"""Both prompts of one host in one module: what `model.vpp` is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.boxes import Frame
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.prompts.global_vpp import GlobalVPP, Overlay
from vpp_plugins.prompts.inference_cache import InferenceCache
from vpp_plugins.prompts.local_vpp import LocalVPP

TOKEN = "<|vpp|>"
"""The placeholder in the text; every image gets `num_queries` of them after its own tokens."""


class Prompts(NamedTuple):
    """What one forward puts into the host: token features (images in order) and the axes for its vision encoder.

    A named tuple, as Overlay is: FSDP and DeepSpeed gather the weights again for backward when the gradient of an
    output comes, and find the tensors in these.
    """

    features: Float[Tensor, "placeholders hidden"] | None
    overlay: Overlay | None


class VPP(nn.Module):
    """The prompts attached to one host; every parameter is used in `forward`, as FSDP, offloading and PEFT require."""

    def __init__(
        self, config: VPPConfig, *, global_vpp: GlobalVPP | None, local_vpp: LocalVPP | None, frame: Frame = "image"
    ) -> None:
        super().__init__()
        self.config, self.frame = config, frame
        # names that do not end with "vpp": PEFT's modules_to_save=["vpp"] would wrap (and freeze) them too
        self.global_prompt, self.local_prompt = global_vpp, local_vpp
        local = config.local_vpp
        self.mask_padding = local is not None and local.mask_padding
        self.detector_overlay = local.overlay_units if local is not None and local.overlay else "off"
        self.token_id: int | None = None
        self.trained = False
        self.trained_on: Mapping[str, Any] = {}
        """The family of the host, and the frame and unit of its boxes; saved prompts say so."""
        self.hub_weights: Mapping[str, str] = {}
        """SHA-256 of a generator that is as the hub has it, by the name there and its dtype; what is saved names it."""
        self._rendered: InferenceCache[Tensor] = InferenceCache()
        """The axes at the size of the detector's images: the same for all of them on the padded square."""
        self._check_frame()

    @property
    def global_vpp(self) -> GlobalVPP | None:
        """The global prompt, or None where it was left out."""
        return self.global_prompt

    @property
    def local_vpp(self) -> LocalVPP | None:
        """The local prompt, or None where it was left out."""
        return self.local_prompt

    @property
    def is_empty(self) -> bool:
        """Whether there is no prompt at all: the host is its own control."""
        return self.global_prompt is None and self.local_prompt is None

    @property
    def tokens_per_image(self) -> int:
        """Placeholder tokens that every image gets; 0 without a local prompt."""
        return 0 if self.local_vpp is None else self.local_vpp.num_queries

    def check_settings(self) -> None:
        """Raise VPPError where a setting was changed on the prompt itself: what is saved would not say so."""
        for part, prompt, saved, names in (
            ("global_vpp", self.global_vpp, self.config.global_vpp, ("alpha", "style", "interior", "resample")),
            ("local_vpp", self.local_vpp, self.config.local_vpp, ("gain",)),
        ):
            for name in names if prompt is not None and saved is not None else ():
                if (value := getattr(prompt, name)) != (said := getattr(saved, name)):
                    raise VPPError(
                        f"model.vpp.{part}.{name} is {value!r}, but the prompts were attached with {said!r}, which is "
                        f"what would be saved: set it back, or attach anew, as by VPPConfig({part}="
                        f"{type(saved).__name__}({name}={value!r}))."
                    )

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Take whole prompts that differ from these for trained ones: what accelerate loads does not say so itself."""
        own = self.state_dict()
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        if given.keys() == own.keys() and all(value.shape == own[name].shape for name, value in given.items()):
            self.trained = self.trained or any(_differ(value, own[name]) for name, value in given.items())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def bind_token(self, token_id: int) -> None:
        """Say which id of the tokenizer is the placeholder `<|vpp|>`."""
        self.token_id = token_id

    def forward(self, vpp_pixel_values: Float[Tensor, "images 3 height width"] | None = None) -> Prompts:
        """Return this forward's prompts; the images are the detector's, see `images.letterbox`."""
        overlay = None if self.global_vpp is None else self.global_vpp.overlay()
        if self.local_vpp is None or vpp_pixel_values is None:
            return Prompts(None, overlay)
        pixels = vpp_pixel_values.to(next(self.local_vpp.projector.parameters()))
        mask = (pixels != 0).any(dim=1) if self.mask_padding else None
        # in memory of their own: a compiled local prompt's CUDA graph writes the next ones over its results
        return Prompts(self.local_vpp(self.detector_view(pixels), mask).flatten(0, 1).clone(), overlay)

    def detector_view(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images 3 height width"]:
        """Return letterboxed images as the detector sees them: with the axes on, unless the overlay is off."""
        if self.global_vpp is None or self.detector_overlay == "off":
            return pixels
        raw = self.detector_overlay == "host"
        overlay = self.global_vpp.overlay() if raw else self.global_vpp.overlay_for(IMAGENET_MEAN, IMAGENET_STD)
        if self.frame == "square":
            return self._blend_square(self.global_vpp, overlay, pixels)
        return overlay.blend_each(pixels, _content_windows((pixels != 0).any(dim=1)))

    def _blend_square(self, axes: GlobalVPP, overlay: Overlay, pixels: Tensor) -> Tensor:
        if overlay.shrink or torch.is_grad_enabled():  # what is trained changes with every step
            return overlay.blend(pixels)
        size_hw = (pixels.shape[-2], pixels.shape[-1])
        key = (size_hw, overlay.resampling, self.detector_overlay, tuple(axes.image_mean), tuple(axes.image_std))
        rendered = self._rendered.get(axes, key, lambda: overlay.render(size_hw))
        return overlay.blend(pixels) if rendered is None else overlay.mix(pixels, rendered)

    def _check_frame(self) -> None:
        axes, laid_on_images = self.global_vpp, self.frame == "image" and self.local_vpp is not None
        if axes is None or not laid_on_images or self.detector_overlay == "off":
            return
        if axes.style == "padding" or axes.resample == "nearest":
            raise VPPError(
                "style='padding' and resample='nearest' need axes on the padded square, but this family has them on "
                "the image, letterboxed for the detector: set local_vpp.overlay to False, or choose another style."
            )


def _differ(given: Tensor, own: Tensor) -> bool:
    """Whether weights are others; whatever is put in the place of those on meta is."""
    return not given.is_meta and (own.is_meta or not torch.equal(given.to(own), own))


def _content_windows(content: Bool[Tensor, "images height width"]) -> Float[Tensor, "images 4"]:
    """Return each letterboxed input's window in units of its image."""
    (top, bottom), (left, right) = _span(content.any(2)), _span(content.any(1))
    return torch.stack([left, top, right, bottom], dim=1)


def _span(inside: Bool[Tensor, "images length"]) -> tuple[Float[Tensor, " images"], Float[Tensor, " images"]]:
    """Return where an input begins and ends, in units of the content; it lies in one piece."""
    length = inside.shape[1]
    first, after = inside.int().argmax(1), inside.flip(1).int().argmax(1)
    content = length - first - after
    return -first / content, (length - first) / content


def without_local_configuration(config: VPPConfig) -> VPPConfig:
    """Put a detector's configuration in place of the folder that holds it: what is saved names no path."""
    local = config.local_vpp
    named = None if local is None else local.generator_options.get("config")
    if local is None or local.generator != "hf_detector" or not isinstance(named, str) or not Path(named).is_dir():
        return config
    from vpp_plugins.prompts.generators import configuration_values

    options = {**local.generator_options, "config": configuration_values(named)}
    return replace(config, local_vpp=replace(local, generator_options=options))
