"""Video-LLaVA's image processor, padding: transformers' own crops the sides of images away, and cannot pad."""

from typing import Any

import numpy as np
import transformers
from transformers.image_transforms import to_channel_dimension_format
from transformers.image_utils import ChannelDimension, to_numpy_array

from vpp_plugins.boxes import padded_square


class VideoLlavaImageProcessor(transformers.VideoLlavaImageProcessor):
    """Pads every image to a square with its mean colour, as LLaVA's data were prepared; nothing is cropped then.

    It keeps the name, so that what `save_pretrained` writes can be loaded anywhere.
    """

    def _preprocess_image(self, image: Any = None, *args: Any, **settings: Any) -> Any:
        channels_first: Any = to_channel_dimension_format(to_numpy_array(image), ChannelDimension.FIRST)
        height, width = channels_first.shape[1:]
        side, left, top = padded_square((height, width))
        square = np.empty((3, side, side), channels_first.dtype)
        highest = 255 if np.issubdtype(square.dtype, np.integer) else 1
        square[:] = (np.array(self.image_mean) * highest).astype(square.dtype)[:, None, None]
        square[:, top : top + height, left : left + width] = channels_first
        return super()._preprocess_image(square, *args, **{**settings, "input_data_format": ChannelDimension.FIRST})


def padding(processor: transformers.VideoLlavaImageProcessor) -> VideoLlavaImageProcessor:
    """Return a processor with the same settings that pads."""
    return VideoLlavaImageProcessor(**processor.to_dict())
