"""The prompts that a configuration asks for, built for one host."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vpp_plugins import plugins
from vpp_plugins.attach.checkpoint import check_header, check_host, read_config, read_into, resolve
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone, FrozenWeights
from vpp_plugins.prompts import VPP, GlobalVPP, LocalVPP


def resolve_config(
    config: VPPConfig | str | os.PathLike[str] | None, backbone: Backbone
) -> tuple[VPPConfig, Backbone, Path | None]:
    """Return the configuration in full, the host with its axes where that wants them, and where weights are saved.

    Weights are saved where `config` is a folder or hub id; None is the family's defaults.
    """
    folder = None
    if config is None:
        config = backbone.defaults
    elif not isinstance(config, VPPConfig):
        folder = resolve(config)
        config = read_config(folder)
    prompt = config.global_vpp
    if prompt is None:
        return config, backbone, folder
    if prompt.frame != "boxes" and prompt.frame != backbone.frame:
        backbone = replace(backbone, frame=prompt.frame, tiled=True)  # each input's place must then be known
    mean, std = prompt.image_mean or backbone.image_mean, prompt.image_std or backbone.image_std
    return replace(config, global_vpp=replace(prompt, image_mean=mean, image_std=std)), backbone, folder


def build_vpp(config: VPPConfig, backbone: Backbone, folder: Path | None = None, *, family: str = "") -> VPP:
    """Build the prompts, with the weights saved in `folder`, or else from the configuration's seed.

    The global random state is left alone. `family` is the host's, as transformers calls it.
    """
    boxes = plugins.BOX_CODECS.get(backbone.box_format)
    host = {"family": family, "box_format": backbone.box_format, "frame": backbone.frame}
    host |= {} if boxes is None else {"unit": boxes.unit}
    if folder is not None:
        check_host(folder, host)
        check_header(folder, config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed every GPU too
        global_vpp = _build_global(config, backbone)
        local_vpp = _build_local(config, backbone, pretrained=folder is None)
        config = _with_frozen_weights(config, local_vpp)
        vpp = VPP(config, global_vpp=global_vpp, local_vpp=local_vpp, frame=backbone.frame)
    vpp.trained_on = host
    if folder is not None:
        read_into(vpp, folder)
    return vpp


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


def _with_frozen_weights(config: VPPConfig, local_vpp: LocalVPP | None) -> VPPConfig:
    """Name the weights that the generator's package has; raise VPPError where the prompts were saved with others."""
    local = config.local_vpp
    if local is None or local_vpp is None or not isinstance(local_vpp.generator, FrozenWeights):
        return config
    installed = dict(local_vpp.generator.frozen_weights)
    for name, saved in local.frozen_weights.items():
        if installed.get(name) != saved:
            raise VPPError(
                f"these prompts were trained on '{name}' of the generator '{local.generator}' with SHA-256 "
                f"{saved[:12]}…, but installed is {installed.get(name, 'none')[:12]}…: install the generator's package "
                "in the version that they were saved with."
            )
    return replace(config, local_vpp=replace(local, frozen_weights=installed))
