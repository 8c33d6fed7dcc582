"""What to attach: plain dataclasses that read from and write to JSON; and the one setting of the environment."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.files import unique_keys, write_whole

Part = TypeVar("Part")
AxisStyle = Literal["edge-0.1", "edge-0.05", "cross", "padding"]
AxisUnit = Literal["0-1", "0-1000"]
WEIGHTS_SHA256 = "weights_sha256"
"""What `save_vpp` adds to the file of a configuration: the SHA-256 of the weights saved with it."""
TRAINED_ON = "trained_on"
"""What `save_vpp` adds besides: the family of the host, and the frame and unit of its boxes."""
MAX_IMAGE_PIXELS = "VPP_MAX_IMAGE_PIXELS"
"""Environment variable, which worker processes have too: the most pixels that an image file may have."""
LARGEST_PIXELS = 64_000_000
"""What it is unless set. No model sees more than a part of them, and decoding takes time and memory for each."""
MOST = {"size": 4096, "font_size": 4096, "num_queries": 10_000, "image_size": 8192, "projector_size": 65_536}
"""The largest values that are taken: far beyond any model's, and small enough to be built."""

MOST_GAIN = 10_000
"""The largest gain of projected queries: beyond it their products overflow in half precision."""


@dataclass(frozen=True, kw_only=True)
class GlobalVPPConfig:
    """The global prompt: a learnable image of axes blended into the encoder's pixels (paper, section III-B).

    The defaults are for new models. Where the published VPP-LLaVA, "the reference", does otherwise, a line says so.
    """

    size: int = 336
    """Side of the learnable prompt, in pixels; other image sizes get it resampled."""
    alpha: float = 0.95
    """Weight of the image where the prompt lies, 0 to 1; the prompt gets the rest."""
    border: int = 30
    """Width of the band that the prompt covers, in pixels at `size`."""
    style: AxisStyle = "edge-0.1"
    """The drawn start: ticks every 0.1 or 0.05 along the edges, a cross through the centre, or axes around the
    image, which is shrunk for them."""
    unit: AxisUnit = "0-1"
    """What the tick labels count in; it should be the unit in which the host writes its boxes."""
    frame: Literal["boxes", "square", "image"] = "boxes"
    """What the axes span: the frame of the family's boxes, the image padded to a square, or the image itself.

    The reference draws them on the padded square, which is the frame of LLaVA's boxes, so that part of the band lies on
    padding. "boxes" for new models: ticks then stand where the numbers of an answer do."""
    interior: Literal["kept", "scaled"] = "kept"
    """Pixels outside the band: left as they are, or multiplied by alpha too.

    The reference multiplies the whole image by 0.95, and what the mask cuts out of the prompt is not made up for.
    "kept" for new models: the encoder sees the pixels that it knows."""
    resample: Literal["bilinear", "nearest"] = "bilinear"
    """How the prompt reaches another size: as one masked tensor, antialiased, or prompt and mask apart by the nearest.

    The reference takes the nearest index for its detector, 640 pixels from 336, which leaves the band one pixel wider
    on one side and the ticks ragged. "bilinear" for new models: any size, and any part of the square for tiles."""
    font_size: int = 10
    """Height of the tick labels, in pixels at `size`."""
    image_mean: tuple[float, float, float] | None = None
    """Mean of the host's pixel normalisation, RGB; None takes the family's."""
    image_std: tuple[float, float, float] | None = None
    """Standard deviation of the host's pixel normalisation, RGB; None takes the family's."""

    def __post_init__(self) -> None:
        _check_types(self, "global_vpp.")
        if self.size < 4:
            raise VPPError(f"global_vpp.size must be at least 4 pixels, but is {self.size}.")
        if not 0 <= self.alpha <= 1:
            raise VPPError(f"global_vpp.alpha must lie between 0 and 1, but is {self.alpha}.")
        most = (self.size - 1) // 2  # something must be left inside
        if not 0 < self.border <= most:
            raise VPPError(f"global_vpp.border must be 1 to {most} pixels (half of size), but is {self.border}.")
        if self.image_std is not None and min(self.image_std) <= 0:
            raise VPPError(f"global_vpp.image_std must be above 0, but is {self.image_std}.")


@dataclass(frozen=True, kw_only=True)
class LocalVPPConfig:
    """The local prompt: object queries of a detector, projected into the language model (paper, section III-C).

    The defaults are for new models, as in GlobalVPPConfig.
    """

    num_queries: int = 100
    """Queries, and so placeholder tokens, per image."""
    generator: str = "detr"
    """Name of the generator: "detr", "hf_detector" for any of transformers' detectors, "nanodet", or a plugin's."""
    generator_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of its builder, `build_detr` or `build_hf_detector`.

    `{"dilation": True}` dilates DETR's last stage. The reference loads weights that were trained so (DC5) and leaves it
    off. Off for new models too, being cheaper: start from weights without DC5 then, or switch it on for those with."""
    weights: str | None = None
    """File, folder or hub id of pretrained detector weights; None starts at random and touches no network."""
    frozen_weights: dict[str, str] = field(default_factory=dict)
    """SHA-256, by name, of weights that the generator's package or the hub has, and that are therefore not saved with
    the prompts: of the hub's the name is "owner/name:dtype", and loading fetches them.

    Leave it empty: attaching fills it in, and loading saved prompts compares it with what is installed."""
    image_size: int = 640
    """Side of the detector's square input, in pixels, a multiple of 32."""
    projector_size: int = 1024
    """Width of the projector's hidden layer."""
    gain: float = 1.0
    """What the projected queries are multiplied by. In a deep pretrained language model the residual stream grows to
    hundreds of times a word's length, and a token that enters as quietly as a word cannot be told from others in the
    last layers: with 64 it can in SmolLM2, see docs/evidence.md."""
    overlay: bool = True
    """Whether the global prompt is laid over the detector's image too; the reference does."""
    overlay_units: Literal["detector", "host"] = "detector"
    """Whether the prompt is first converted to the detector's normalisation, or used as it is for the host.

    The reference uses it as it is: a prompt in CLIP's units on pixels in ImageNet's. "detector" for new models: both
    see the same colours."""
    mask_padding: bool = True
    """Whether the detector ignores letterbox padding, in attention and in its positions, as DETR was trained.

    The reference masks nothing, so padding counts as image. True for new models: positions then run over the image,
    as in the weights that they start from. LLaVA's family defaults to False, like the reference: its boxes are measured
    on the padded square, and so should positions be."""

    def __post_init__(self) -> None:
        _check_types(self, "local_vpp.")
        for name, value in (("num_queries", self.num_queries), ("projector_size", self.projector_size)):
            if value < 1:
                raise VPPError(f"local_vpp.{name} must be at least 1, but is {value}.")
        if not 0 < self.gain <= MOST_GAIN:
            raise VPPError(f"local_vpp.gain must be above 0 and at most {MOST_GAIN:,}, but is {self.gain}.")
        if self.image_size < 32 or self.image_size % 32:
            raise VPPError(f"local_vpp.image_size must be a multiple of 32, but is {self.image_size}.")


@dataclass(frozen=True, kw_only=True)
class VPPConfig:
    """Both prompts; either may be None, which leaves it out. `seed` starts their random weights."""

    global_vpp: GlobalVPPConfig | None = field(default_factory=GlobalVPPConfig)
    local_vpp: LocalVPPConfig | None = field(default_factory=LocalVPPConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self, "")
        if not -(2**63) <= self.seed < 2**63:
            raise VPPError(f"seed must fit into 64 bits, but is {self.seed}.")
        if self.global_vpp is None and self.local_vpp is None:
            raise VPPError("a VPPConfig needs a global prompt, a local prompt or both, but both are None.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON values; raises VPPError for an unknown key, naming the nearest known one."""
        _check_keys(cls, values, "")
        parts = dict(values)
        if isinstance(parts.get("local_vpp"), Mapping):
            parts["local_vpp"] = _without_fusion(parts["local_vpp"])
        for name, part in (("global_vpp", GlobalVPPConfig), ("local_vpp", LocalVPPConfig)):
            if isinstance(parts.get(name), Mapping):
                parts[name] = _build(part, parts[name], f"{name}.")
        return cls(**parts)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with some values changed, as a recipe says it; False leaves a prompt out.

            config.changed({"global_vpp": {"style": "cross"}, "local_vpp": False})

        Raises VPPError for an unknown key, and for a value of a prompt that is left out.
        """
        _check_keys(type(self), changes, "")
        values = self.to_dict()
        for name, change in changes.items():
            if name not in ("global_vpp", "local_vpp"):
                values[name] = change
            elif change is False:  # TOML has no null
                values[name] = None
            elif values[name] is None or not isinstance(change, Mapping):
                raise VPPError(
                    f"{name} must be changed by a table of its values, or be false to leave it out, but is "
                    f"{values[name]} and was given {change!r}."
                )
            else:
                values[name] |= change
        return self.from_dict(values)

    def save(self, path: str | Path, **beside: Any) -> None:
        """Write as JSON, the whole file or none; `beside` are WEIGHTS_SHA256 and TRAINED_ON of saved weights."""
        write_whole(Path(path), json.dumps({**self.to_dict(), **beside}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read JSON; raises VPPError where the file is missing, no JSON, or has an unknown key."""
        try:
            values = json.loads(Path(path).read_text(), object_pairs_hook=unique_keys)
        except (FileNotFoundError, NotADirectoryError):
            name, folder = Path(path).name, Path(path).parent
            raise VPPError(f"no '{name}' in '{folder}': give a folder that save_vpp wrote.") from None
        except OSError as error:  # a folder, or no permission
            raise VPPError(f"'{path}' cannot be read ({error.strerror}): save it again with save_vpp.") from None
        except (ValueError, RecursionError) as error:
            raise VPPError(f"'{path}' is not valid JSON ({error}): save it again with save_vpp.") from None
        if not isinstance(values, dict):
            raise VPPError(f"'{path}' must hold a JSON object, but holds a {type(values).__name__}.")
        # of the file beside it, and checked where that is read
        return cls.from_dict(
            {name: value for name, value in values.items() if name not in (WEIGHTS_SHA256, TRAINED_ON)}
        )


def _build(part: type[Part], values: Mapping[str, Any], prefix: str) -> Part:
    _check_keys(part, values, prefix)
    return part(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _without_fusion(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what 0.1.0 wrote for the paper's choice, concatenation; raise VPPError for what it had besides."""
    fusion = values.get("fusion", "concatenate")
    if fusion != "concatenate":
        raise VPPError(
            f"local_vpp.fusion = {fusion!r} was removed after 0.1.0: leave the key out, which concatenates prompt and "
            "image as the paper does, and train these prompts anew."
        )
    return {name: value for name, value in values.items() if name != "fusion"}


def _check_keys(part: type, values: Mapping[str, Any], prefix: str) -> None:
    known = [f.name for f in fields(part)]
    for name in values:
        if name not in known:
            listed = ", ".join(known)
            raise VPPError(f"unknown configuration key '{prefix}{name}'.{nearest(name, known)} Known: {listed}.")


def _check_types(part: Any, prefix: str) -> None:
    """Values come from JSON and from people: a wrong one must not wait to be misunderstood later."""
    for f in fields(part):
        value = getattr(part, f.name)
        if fits(value, f.type):
            most = MOST.get(f.name)  # what would fill the memory, or take for ever, must not wait until it is built
            if most is not None and value > most:
                raise VPPError(f"{prefix}{f.name} is at most {most} in any model, but is {value}.")
        elif get_origin(f.type) is Literal:
            options = get_args(f.type)
            hint = nearest(str(value), options)
            raise VPPError(f"{prefix}{f.name} must be one of {', '.join(options)}, but is {value!r}.{hint}")
        else:
            wanted = f.type.__name__ if isinstance(f.type, type) else f.type
            raise VPPError(f"{prefix}{f.name} must be {wanted}, but is {value!r}.")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value that JSON, TOML or a person gave is of an annotated type.

    Whole numbers are floats too, but true and false are no numbers, and no number is infinite. `tuple[T, ...]` and
    `list[T]` take a list or a tuple.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in args)
    if origin is tuple and ... not in args:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(fits, value, args))
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and all(fits(one, args[0]) for one in value)
    if isinstance(value, bool):  # to Python, True is a whole number
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(origin or kind, type) and isinstance(value, origin or kind)


def most_image_pixels() -> int:
    """Return how many pixels an image may have to be decoded; raises VPPError where the setting is no number."""
    text = os.environ.get(MAX_IMAGE_PIXELS, "")
    if not text:
        return LARGEST_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text)):
        raise VPPError(f"{MAX_IMAGE_PIXELS} should be a whole number from 1, but is '{text[:40]}'.")
    return int(text)
