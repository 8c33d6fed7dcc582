"""What an adapter tells us about a host: everything VPP needs to know of it, as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vpp_plugins.config import VPPConfig
from vpp_plugins.prompts.global_vpp import CLIP_MEAN, CLIP_STD, RGB, Overlay
from vpp_plugins.prompts.resample import Window
from vpp_plugins.prompts.vpp import Frame


@runtime_checkable
class PixelLayout(Protocol):
    """Lays the axes over pixels in the arrangement that one kind of vision encoder takes."""

    def __call__(self, pixels: Tensor, overlay: Overlay, windows: Sequence[Window] | None) -> Tensor:
        """Return pixels of the same shape and dtype; `windows` has one per encoder input, None is whole images."""
        ...


def planes(
    pixels: Float[Tensor, "images 3 height width"], overlay: Overlay, windows: Sequence[Window] | None
) -> Float[Tensor, "images 3 height width"]:
    """The layout of CLIP-like encoders: one plane per colour."""
    return overlay.blend(pixels, windows)


def keep_processor(processor: Any) -> None:
    """Leave the processor's settings as they are."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A host as VPP sees it. An adapter returns one for each model that it claims."""

    adapter: str
    """The adapter's name, as errors and listings show it."""
    hidden_size: int
    """Width of the language model's token embeddings."""
    vision_encoders: tuple[str, ...]
    """Paths, below the model, of the modules whose forward gets the pixels; empty if the global prompt cannot act."""
    box_format: str
    """Name of the codec in which the family writes boxes; see `vpp_plugins.boxes`."""
    frame: Frame
    """Whether the family's coordinates, and so the axes, span the padded square or the picture itself."""
    pixel_argument: str = "pixel_values"
    """The encoder's name for its pixels, where they come by keyword."""
    image_arguments: tuple[str, ...] = ("pixel_values",)
    """The model's arguments that say that a call has images."""
    pixel_layout: PixelLayout = planes
    """How the encoder arranges pixels. A module-level function, so that the attached model pickles."""
    image_mean: RGB = CLIP_MEAN
    """Mean of the usual pixel normalisation, RGB, 0 to 1."""
    image_std: RGB = CLIP_STD
    """Standard deviation of the usual pixel normalisation, RGB."""
    prepare_processor: Callable[[Any], None] = keep_processor
    """Puts settings right, in place, on VPPProcessor's own copy of the host's processor."""
    defaults: VPPConfig = VPPConfig()
    """What `attach_vpp(model)` attaches when it is given no configuration."""
