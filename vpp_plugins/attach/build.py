"""The prompts that a configuration asks for, built for one host."""

from dataclasses import replace
from typing import Any

import torch

from vpp_plugins import plugins
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone
from vpp_plugins.prompts import VPP, GlobalVPP, LocalVPP


def framed(backbone: Backbone, config: VPPConfig) -> Backbone:
    """Return the host with its axes where the configuration wants them; each input's place must then be known."""
    prompt = config.global_vpp
    if prompt is None or prompt.frame == "boxes" or prompt.frame == backbone.frame:
        return backbone
    return replace(backbone, frame=prompt.frame, tiled=True)


def build_prompts(config: VPPConfig, backbone: Backbone, *, pretrained: bool) -> VPP:
    """Build the prompts from the configuration's seed, leaving the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed every GPU too
        config = _with_normalisation(config, backbone)
        return VPP(
            config,
            global_vpp=_build_global(config, backbone),
            local_vpp=_build_local(config, backbone, pretrained=pretrained),
            frame=backbone.frame,
        )


def _with_normalisation(config: VPPConfig, backbone: Backbone) -> VPPConfig:
    prompt = config.global_vpp
    if prompt is None:
        return config
    mean, std = prompt.image_mean or backbone.image_mean, prompt.image_std or backbone.image_std
    return replace(config, global_vpp=replace(prompt, image_mean=mean, image_std=std))


def _build_global(config: VPPConfig, backbone: Backbone) -> GlobalVPP | None:
    prompt = config.global_vpp
    if prompt is None:
        return None
    if not backbone.vision_encoders:
        raise VPPError(
            f"the global prompt cannot act on '{backbone.adapter}' hosts: attach with VPPConfig(global_vpp=None)."
        )
    return GlobalVPP(
        prompt.size,
        alpha=prompt.alpha,
        border=prompt.border,
        style=prompt.style,
        unit=prompt.unit,
        interior=prompt.interior,
        resample=prompt.resample,
        font_size=prompt.font_size,
        image_mean=prompt.image_mean or backbone.image_mean,
        image_std=prompt.image_std or backbone.image_std,
    )


def _build_local(config: VPPConfig, backbone: Backbone, *, pretrained: bool) -> LocalVPP | None:
    local = config.local_vpp
    if local is None:
        return None
    generator: Any = plugins.build_generator(local.generator, local.num_queries, local.generator_options)
    if pretrained and local.weights is not None:
        from vpp_plugins.prompts.generators import load_weights

        load_weights(generator, local.weights)
    return LocalVPP(
        generator,
        num_queries=local.num_queries,
        query_width=generator.width,
        hidden_size=backbone.hidden_size,
        projector_size=local.projector_size,
    )
