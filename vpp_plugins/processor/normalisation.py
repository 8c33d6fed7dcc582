"""The global prompt lies over normalised pixels, so it must be in the units of the processor that makes them."""

from dataclasses import replace
from typing import Any

import numpy as np

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import RGB


def match_normalisation(vpp: Any, image_processor: Any) -> None:
    """Bring an untrained global prompt to the units of this processor's pixels; it shows the same colours then.

    Raises VPPError for a trained one: it would act differently from what it learned.
    """
    prompt = vpp.global_vpp
    if prompt is None:
        return
    mean, std = normalisation(image_processor)
    if np.allclose([*mean, *std], [*prompt.image_mean, *prompt.image_std], atol=1e-6):
        return
    if vpp.trained:
        raise VPPError(
            f"this processor normalises pixels with mean {mean} and std {std}, but the global prompt was trained with "
            f"{prompt.image_mean} and {prompt.image_std}: use the processor that it was trained with."
        )
    prompt.renormalise_(mean, std)
    vpp.config = replace(vpp.config, global_vpp=replace(vpp.config.global_vpp, image_mean=mean, image_std=std))


def normalisation(image_processor: Any) -> tuple[RGB, RGB]:
    """Return mean and standard deviation of the pixels that an image processor makes, one for each colour."""
    if not image_processor.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = image_processor.image_mean, image_processor.image_std
    if isinstance(mean, float):  # Fuyu has one for all
        return (mean, mean, mean), (std, std, std)
    return tuple(mean), tuple(std)
