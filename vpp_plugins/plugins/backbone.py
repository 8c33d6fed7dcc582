"""What an adapter says of a host: everything VPP needs to know of it, as data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vpp_plugins.boxes import Frame
from vpp_plugins.config import VPPConfig
from vpp_plugins.plugins.layouts import planes
from vpp_plugins.prompts import CLIP_MEAN, CLIP_STD, RGB, Overlay, Window


@runtime_checkable
class PixelLayout(Protocol):
    """Lays the axes over pixels in the arrangement that one kind of vision encoder takes."""

    def __call__(
        self, pixels: Tensor, overlay: Overlay, windows: Sequence[Window] | None, call: Mapping[str, Any]
    ) -> Tensor:
        """Return pixels of the same shape and dtype.

        `windows` has one per encoder input, None is whole images; `call` holds the encoder's other arguments by name,
        and the model's where the encoder has none of that name.
        """
        ...


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
    projectors: tuple[str, ...] = ()
    """Paths of the modules that bring image features to the language model's width. What is neither vision encoder nor
    projector is the language model: parameter groups and LoRA scopes go by this."""
    box_format: str
    """Name of the codec in which the family writes boxes; see `vpp_plugins.boxes`."""
    frame: Frame
    """Whether the family's coordinates, and so the axes, span the padded square or the image itself."""
    pixel_argument: str = "pixel_values"
    """The encoder's name for its pixels, where they come by keyword."""
    image_arguments: tuple[str, ...] = ("pixel_values",)
    """The model's arguments that say that a call has images."""
    pixel_layout: PixelLayout = planes
    """How the encoder arranges pixels: one of `vpp_plugins.plugins.layouts`, or a module-level function of your own."""
    tiled: bool = False
    """Whether an encoder input may show a part of its image, or more than it: calls then need `vpp_tile_boxes`."""
    image_mean: RGB = CLIP_MEAN
    """Mean of the usual pixel normalisation, RGB, 0 to 1."""
    image_std: RGB = CLIP_STD
    """Standard deviation of the usual pixel normalisation, RGB."""
    image_token: str | None = None
    """The marker in the text that one image replaces, where it is not the processor's own `image_token`; "" where the
    processor sets images before the text itself."""
    plain_prompt: str = "{image}\n{question}"
    """An image and a question as one text, where the processor has no chat template."""
    never_ids: tuple[int, ...] = ()
    """Token ids, besides the placeholder's, that generate must never answer."""
    fallback: bool = False
    """Whether the claim gives way to any adapter's that is not a fallback."""
    prepare_processor: Callable[[Any], None] = keep_processor
    """Puts settings right, in place, on VPPProcessor's own copy of the host's processor."""
    defaults: VPPConfig = VPPConfig()
    """What `attach_vpp(model)` attaches when it is given no configuration."""
