"""What a box codec must know of each image: its size, and for codecs that count resized pixels, that size too."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vpp_plugins.boxes.codecs import BoxCodec
from vpp_plugins.boxes.frames import ImageMeta
from vpp_plugins.errors import VPPError


def metas_of(images: Sequence[Image.Image], codec: BoxCodec, image_processor: Any) -> list[ImageMeta]:
    """Return one ImageMeta per image; `image_processor` is asked only where the codec counts its pixels."""
    sizes = [(image.height, image.width) for image in images]
    resized = codec.scale.full is None
    return [
        ImageMeta(
            size_hw=size_hw,
            processed_size_hw=processed_size_hw(image_processor, size_hw) if resized else None,
            image_index=index,
        )
        for index, size_hw in enumerate(sizes)
    ]


def processed_size_hw(image_processor: Any, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of an image after Qwen's image processor resized it: what Qwen2.5-VL counts boxes in.

    Read from the processor's settings, without resizing anything.
    """
    if not any(kind.__name__.startswith("Qwen2VLImageProcessor") for kind in type(image_processor).__mro__):
        raise VPPError(
            "this box format counts pixels of the image as Qwen's image processor resizes it, which a "
            f"{type(image_processor).__name__} does not: choose another box_format."
        )
    if not image_processor.do_resize:
        return size_hw
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(
        *size_hw,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    return height, width
