"""Images: loaded upright, letterboxed, drawn on."""

from vpp_plugins.images.draw import draw_boxes, shrink
from vpp_plugins.images.load import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LARGEST_SIDE,
    SMALLEST_SIDE,
    ImageSource,
    flatten_images,
    image_sources,
    letterbox,
    letterboxes,
    load_image,
    load_images,
    normalise,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LARGEST_SIDE",
    "SMALLEST_SIDE",
    "ImageSource",
    "draw_boxes",
    "flatten_images",
    "image_sources",
    "letterbox",
    "letterboxes",
    "load_image",
    "load_images",
    "normalise",
    "shrink",
]
