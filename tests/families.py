"""The named families' tiny hosts of `examples/families`, attached, and inputs for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from examples.families.tiny_hosts import FAMILIES, WORDS, Family, tokenizer
from tests.tiny import image, toy_config
from vpp_plugins import VPPConfig, VPPProcessor, attach_vpp
from vpp_plugins.attach.attach import host_state

__all__ = ["FAMILIES", "WORDS", "Family", "attached_family", "encoder_pixels", "family_inputs", "tokenizer"]

QUESTIONS = ["the red cup .", "where is the cup", "red cup is the cup", "is the red cup where the cup is"]
SIZES = [(40, 24), (24, 40), (56, 32), (32, 32)]
"""Sizes of the images, width x height, in turn."""


def attached_family(name: str, config: VPPConfig | None = None, *, seed: int = 0) -> tuple[Any, VPPProcessor]:
    """Return an attached tiny host and its processor, said to be trained; the fixture `toy` must be in use."""
    model = attach_vpp(FAMILIES[name].model(seed), config or toy_config())
    processor = VPPProcessor(FAMILIES[name].processor(), model)
    model.vpp.trained = True
    return model, processor


def family_inputs(processor: Any, images_per_text: Sequence[int], *, side: str = "left") -> dict[str, Tensor]:
    """Return a padded batch in the family's chat shape, with so many images in each text, of different sizes."""
    processor.tokenizer.padding_side = side
    seeds = iter(range(100))
    images = [[image(seed := next(seeds), SIZES[seed % len(SIZES)]) for _ in range(n)] for n in images_per_text]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}] * n + [{"type": "text", "text": QUESTIONS[n]}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for n in images_per_text
    ]
    return dict(
        processor(
            images=images if any(images_per_text) else None,
            text=texts,
            return_tensors="pt",
            padding=True,
            padding_side=side,
        )
    )


@torch.no_grad()
def encoder_pixels(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what the vision encoder gets in a forward of an attached host, the axes on it."""
    backbone = host_state(model).backbone
    (encoder,) = [model.get_submodule(path) for path in backbone.vision_encoders]
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs[backbone.pixel_argument] if backbone.pixel_argument in kwargs else args[0])

    handle = encoder.register_forward_pre_hook(see, with_kwargs=True)
    model(**inputs)
    handle.remove()
    (pixels,) = seen
    return pixels
