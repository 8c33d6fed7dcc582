"""What a box codec must know of each image: its size, and for codecs that count resized pixels, that size too."""

import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from vpp_plugins.boxes.codecs import BoxCodec
from vpp_plugins.boxes.frames import ImageMeta
from vpp_plugins.errors import VPPError

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

KEPT = 10_000
"""Images whose latest size is kept; older ones are told by their sizes."""


def metas_of(
    images: Sequence[Image.Image],
    codec: BoxCodec,
    image_processor: Any,
    inputs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> list[ImageMeta]:
    """Return one ImageMeta per image; `image_processor` is asked only where the codec counts its pixels.

    `inputs` are what a processor's call made of these very images, and tell how it resized them. Before the call, sizes
    are computed as a call with the arguments `settings` would resize.
    """
    sizes = [(image.height, image.width) for image in images]
    resized: Sequence[Size | None] = [None] * len(sizes)
    if codec.scale.full is None:
        _check_processor(image_processor)
        if inputs is None:
            resized = [processed_size_hw(image_processor, size_hw, settings) for size_hw in sizes]
        else:
            resized = shown_sizes_hw(inputs, image_processor, len(sizes), settings)
    return [
        ImageMeta(size_hw=size_hw, processed_size_hw=processed, image_index=index)
        for index, (size_hw, processed) in enumerate(zip(sizes, resized, strict=True))
    ]


def shown_sizes_hw(
    inputs: Mapping[str, Any], image_processor: Any, images: int, settings: Mapping[str, Any]
) -> list[Size]:
    """Return the size in which a call with these `inputs` shows each of so many images, from its grids of patches."""
    grids = inputs.get("image_grid_thw", ())
    if len(grids) != images:
        raise VPPError(
            f"the inputs show {len(grids)} images in image_grid_thw, but {images} came: pass what one call of the "
            "processor made of these very images."
        )
    side = _settings(image_processor, settings)["patch_size"]
    return [(int(rows) * side, int(columns) * side) for _, rows, columns in grids]


def processed_size_hw(image_processor: Any, size_hw: Size, settings: Mapping[str, Any]) -> Size:
    """Return height and width of an image after Qwen's image processor resized it: what Qwen2.5-VL counts boxes in.

    Computed from the processor's settings and those of a call, without resizing anything.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    values = _settings(image_processor, settings)
    if not values.get("do_resize"):
        return size_hw
    # transformers has two names for each bound, and lets these win
    bounds = {"shortest_edge": values.get("min_pixels"), "longest_edge": values.get("max_pixels")}
    try:
        edges = dict(values["size"]) | {name: bound for name, bound in bounds.items() if bound is not None}
        height, width = smart_resize(
            *size_hw,
            factor=values["patch_size"] * values["merge_size"],
            min_pixels=edges["shortest_edge"],
            max_pixels=edges["longest_edge"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VPPError(
            f"an image of {size_hw[1]} x {size_hw[0]} pixels cannot be resized by these settings ({error}): size needs "
            "shortest_edge and longest_edge, and the longer side at most 200 times the shorter."
        ) from None
    return height, width


def check_shown(stated: Sequence[ImageMeta], shown: Sequence[ImageMeta]) -> None:
    """Raise VPPError where boxes were written in other sizes than those in which the call then showed the images."""
    for before, after in zip(stated, shown, strict=True):
        if before.processed_size_hw != after.processed_size_hw:
            raise VPPError(
                f"boxes were written for an image resized to {before.processed_size_hw} (height, width), but the "
                f"processor's call resized it to {after.processed_size_hw}: set the image processor's `size`, and do "
                "not change it between the two."
            )


class ShownSizes:
    """In which sizes a processor's calls have shown images, by its settings: a call's arguments may change them.

    An image is known again by its path, its bytes or as an object, and else by its size.
    """

    def __init__(self) -> None:
        self._of_image: dict[Hashable, tuple[weakref.ref[Any] | None, Size]] = {}
        self._of_size: dict[Hashable, set[Size]] = {}

    def remember(self, sources: Sequence[Any], usual: Sequence[ImageMeta], shown: Sequence[ImageMeta]) -> None:
        """Take in one call: its images as they were given, and how the settings alone and the call showed them."""
        for source, expected, actual in zip(sources, usual, shown, strict=True):
            if actual.processed_size_hw is not None:
                self._of_size.setdefault(_settled(expected), set()).add(actual.processed_size_hw)
                known = _name(source), _settled(expected)
                self._of_image.pop(known, None)
                self._of_image[known] = (_reference(source), actual.processed_size_hw)
                if len(self._of_image) > KEPT:
                    self._of_image.pop(next(iter(self._of_image)), None)

    def recall(self, source: Any, usual: ImageMeta) -> Size | None:
        """Return the size in which the latest call with this image showed it; raises VPPError where it is unclear."""
        reference, size_hw = self._of_image.get((_name(source), _settled(usual)), (None, None))
        if size_hw is not None and (reference is None or reference() is source):
            return size_hw
        sizes = self._of_size.get(_settled(usual))
        if sizes is None:
            return usual.processed_size_hw
        if len(sizes) > 1:
            raise VPPError(
                f"calls of this processor have shown images of {usual.size_hw} (height, width) in the sizes "
                f"{sorted(sizes)}: say which call is meant, image_metas(images, inputs)."
            )
        return next(iter(sizes))

    def __reduce__(self) -> Any:
        return ShownSizes, ()  # objects are other ones in another process


def _settled(usual: ImageMeta) -> Hashable:
    return usual.size_hw, usual.processed_size_hw


def _name(source: Any) -> Hashable:
    return (type(source), hash(source)) if isinstance(source, str | Path | bytes) else id(source)


def _reference(source: Any) -> "weakref.ref[Any] | None":
    """Return a reference to what is told by its id, which it leaves to another once it is gone."""
    return None if isinstance(source, str | Path | bytes) else weakref.ref(source)


def _check_processor(image_processor: Any) -> None:
    if not any(kind.__name__.startswith("Qwen2VLImageProcessor") for kind in type(image_processor).__mro__):
        raise VPPError(
            "this box format counts pixels of the image as Qwen's image processor resizes it, which a "
            f"{type(image_processor).__name__} does not: choose another box format (--box-format)."
        )


def _settings(image_processor: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image processor's settings as those of a call change them, `images_kwargs` included."""
    return {**image_processor.to_dict(), **settings, **(settings.get("images_kwargs") or {})}
