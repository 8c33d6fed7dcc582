"""Put VPP on a model and take it off again."""

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vpp_plugins import plugins
from vpp_plugins.attach import hooks, vocabulary
from vpp_plugins.attach.card import CARD, write_card
from vpp_plugins.attach.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_header,
    check_host,
    hub_weights,
    named_on_hub,
    read_into,
    resolve,
    write_vpp,
)
from vpp_plugins.attach.hooks import HostState, Slot
from vpp_plugins.attach.host import AttachedHost, active_vpp, attached_class, onloaded
from vpp_plugins.attach.peft_compat import refuse_dropped_prompts
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError, warn_untested
from vpp_plugins.files import is_hub_id
from vpp_plugins.plugins import Backbone, FrozenWeights
from vpp_plugins.prompts import VPP, GlobalVPP, LocalVPP, without_local_configuration

Model = TypeVar("Model", bound=nn.Module)


def attach_vpp(
    model: Model, config: VPPConfig | str | os.PathLike[str] | None = None, *, adapter: str | Backbone | None = None
) -> Model:
    """Add Visual Position Prompts to a multimodal LLM, in place, and return the same object.

    `config` is a VPPConfig, a folder or hub id that `save_vpp` wrote (its weights are loaded), or None for the family's
    defaults. Without saved weights the prompts start untrained: drawn axes, and a detector and projector random from
    `config.seed`. `adapter` names the adapter to use, or describes the host itself where no plugin does. PeftModel, DDP
    and torch.compile wrappers are looked through. Afterwards `model.vpp` holds the prompts, and inputs come from
    `VPPProcessor(processor, model)`.

    Raises VPPError if VPP is attached already, if no adapter or more than one claims the model, or if saved weights do
    not fit; the model is then as before.
    """
    host = _bare_host(model, config)
    config, backbone, folder = resolve_config(config, plugins.describe(host, adapter))
    _put_on(host, build_vpp(config, backbone, folder, family=host.config.model_type), backbone)
    return model


def attach_control(model: Model) -> Model:
    """Attach to a model, in place, no prompt at all, so that it can be trained and asked as an attached one is.

    It is the control of a comparison: it answers as the bare host does, bit for bit, and what is saved is the host
    alone. `detach_vpp` takes it off.
    """
    host = _bare_host(model)
    backbone = plugins.describe(host)
    nothing = VPP(backbone.defaults, global_vpp=None, local_vpp=None, frame=backbone.frame)
    nothing.trained = True  # there is nothing that could be untrained
    _put_on(host, nothing, backbone)
    return model


def detach_vpp(model: Model) -> Model:
    """Take VPP off, in place, and return the model: weights, class and hooks are bit for bit what they were."""
    host = _attached_host(model)
    state = host._vpp_state
    state.abandon()
    if state.disabled:
        raise VPPError("VPP cannot be detached inside a vpp_disabled block: leave the block first.")
    with state.lock:  # another thread's running session ends first
        if state.callers:
            raise VPPError("VPP cannot be detached while a forward or generate of the model runs: wait for its end.")
        if state.host_rows is not None:
            vocabulary.shrink(host, state.host_rows)
        hooks.remove(host)
        state.attached = False
        _set_class(host, type(host)._vpp_host_class)
        del host.vpp
        del host._vpp_state
    return model


def is_attached(model: nn.Module) -> bool:
    """Return whether VPP is attached to the model, or to the host inside its wrappers."""
    return isinstance(unwrap(model), AttachedHost)


def vpp_of(model: nn.Module) -> VPP:
    """Return the prompts of an attached model, through all wrappers, PEFT's around the prompts too.

    They are `model.vpp`, which a type checker takes for any module. Raises VPPError where nothing is attached.
    """
    return active_vpp(_attached_host(model))


@contextlib.contextmanager
def vpp_disabled(model: nn.Module) -> Iterator[None]:
    """Within this block the model is the bare host, bit for bit, and its VPPProcessor makes host inputs only."""
    host = _attached_host(model)
    state = host._vpp_state
    with state.lock:  # another thread's running session ends first
        if not state.disabled and state.host_rows is not None:
            state.whole_tables = vocabulary.narrow(host, state.host_rows)
        state.disabled += 1
    try:
        yield
    finally:
        with state.lock:
            state.disabled -= 1
            if not state.disabled and state.host_rows is not None:
                vocabulary.widen(host, state.whole_tables)
                state.whole_tables = []


def save_vpp(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    evaluations: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """Write the prompts, without the host, as `vpp_config.json` and `vpp.safetensors`, through PEFT's wrappers.

    A detector that is as the hub has it is not stored but named, with its SHA-256; loading fetches it. Beside them
    stands a model card, README.md, unless there is one of your own; `evaluations` are folders of `vpp eval` whose
    scores it shows, of this model and of its controls. With `push_to_hub` all of it is then uploaded to `repo_id`
    (default: the folder's name).
    """
    host = _attached_host(model)
    vpp = active_vpp(host)
    if vpp.is_empty:
        raise VPPError("this model is a control without prompts, so there are none to save: save the model itself.")
    with onloaded(vpp):
        write_vpp(vpp, folder)
    path, measured = Path(folder).resolve(), [Path(one) for one in evaluations]
    base, family = host.config.name_or_path, host.config.model_type
    write_card(path, base, family=family, evaluations=measured)
    if push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi()
        name = api.create_repo(repo_id or path.name, exist_ok=True).repo_id
        write_card(path, base, family=family, name=name, evaluations=measured)
        api.upload_folder(repo_id=name, folder_path=path, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD])


def load_vpp(model: nn.Module, source: str | os.PathLike[str]) -> None:
    """Load saved prompts into an attached model; raises VPPError, and changes nothing, where they do not fit.

    Not only the weights must fit: prompts saved with another setting (alpha, border, ...) would act differently.
    """
    host, folder = _attached_host(model), resolve(source)
    _check_units(host._vpp_state.pixel_units, folder)
    read_into(active_vpp(host), folder)


def _check_units(units: Sequence[float] | None, folder: Path) -> None:
    """Raise VPPError for prompts of pixels in other units than those that the model's VPPProcessor makes."""
    prompt = VPPConfig.load(folder / CONFIG_FILE).global_vpp
    if units is None or prompt is None or prompt.image_mean is None or prompt.image_std is None:
        return
    saved = *prompt.image_mean, *prompt.image_std
    if any(abs(ours - theirs) > 1e-6 for ours, theirs in zip(units[1:], saved, strict=True)):
        raise VPPError(
            f"the prompts in '{folder}' were trained on pixels of mean {saved[:3]} and std {saved[3:]}, but the "
            f"model's VPPProcessor makes {tuple(units[1:4])} and {tuple(units[4:])}. Nothing was loaded: attach anew, "
            "with the processor that they were trained with."
        )


def unwrap(model: nn.Module) -> Any:
    """Return the host inside PeftModel, DistributedDataParallel, DataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            model = model._orig_mod
        elif "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel):
            model = model.get_base_model()
        else:
            return model


def host_state(model: nn.Module) -> HostState:
    """Return what an attached host remembers; raises VPPError if VPP is not attached."""
    return _attached_host(model)._vpp_state


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
        config = VPPConfig.load(folder / CONFIG_FILE)
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
        config = _with_frozen_weights(without_local_configuration(config), local_vpp)
        vpp = VPP(config, global_vpp=global_vpp, local_vpp=local_vpp, frame=backbone.frame)
    vpp.trained_on = host
    if config.local_vpp is not None and config.local_vpp.frozen_weights:
        vpp.hub_weights = named_on_hub(config)
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
        gain=local.gain,
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


def _attached_host(model: nn.Module) -> Any:
    host = unwrap(model)
    if not isinstance(host, nn.Module):
        raise VPPError(f"a model is expected here, but a {type(host).__name__} came: see which argument comes first.")
    if not isinstance(host, AttachedHost):
        refuse_dropped_prompts(host)
        raise VPPError(f"VPP is not attached to this {type(host).__name__}: call attach_vpp(model) first.")
    return host


def _bare_host(model: Any, config: Any = None) -> Any:
    """Return the host that something can be attached to; raises VPPError where there is none, or another is there."""
    if not isinstance(model, nn.Module):
        raise VPPError(
            f"VPP is attached to a loaded model, but a {type(model).__name__} came: load it first, as by "
            "AutoModelForImageTextToText.from_pretrained(...)."
        )
    if not isinstance(config, VPPConfig | str | os.PathLike | None):
        raise VPPError(
            f"the configuration must be a VPPConfig, or a folder or hub id that save_vpp wrote, but is a "
            f"{type(config).__name__}: of a dictionary, VPPConfig.from_dict makes one."
        )
    host = unwrap(model)
    if is_attached(host):
        raise VPPError(f"VPP is already attached to this {type(host).__name__}: call detach_vpp(model) first.")
    if "peft_config" in host.__dict__:
        refuse_dropped_prompts(host)
    return host


def _put_on(host: Any, vpp: VPP, backbone: Backbone) -> None:
    warn_untested(stacklevel=4)
    embedding = host.get_input_embeddings()
    paths = () if vpp.global_vpp is None else backbone.vision_encoders
    encoders = [_submodule(host, path, backbone) for path in paths]
    state = HostState(backbone, paths, Slot(backbone.pixel_layout, backbone.pixel_argument))
    vpp.to(device=_device_of(embedding), dtype=embedding.weight.dtype).train(host.training)
    _name_hub_weights(vpp)
    host.add_module("vpp", vpp)
    host._vpp_state = state.slot.owner = state
    hooks.install(embedding, encoders, state.slot)
    hooks.install_inner(host)
    kind: type = type(host)
    _set_class(host, attached_class(kind))


def _name_hub_weights(vpp: VPP) -> None:
    """Remember a generator that was just loaded from the hub, in the dtype of its host."""
    local = vpp.config.local_vpp
    if local and local.weights and vpp.local_vpp is not None and not vpp.trained and is_hub_id(local.weights):
        vpp.hub_weights = hub_weights(vpp.local_vpp.generator, local.weights)


def _submodule(host: nn.Module, path: str, backbone: Backbone) -> nn.Module:
    try:
        return host.get_submodule(path)
    except AttributeError:
        raise VPPError(
            f"the adapter '{backbone.adapter}' names the vision encoder '{path}', which this {type(host).__name__} "
            "does not have: correct the adapter's vision_encoders."
        ) from None


def _device_of(embedding: Any) -> torch.device:
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    hook = vars(embedding).get("_hf_hook")
    if hook is None:
        raise VPPError(
            "the model's weights are on the device 'meta', so there are none yet: load them before attach_vpp, as by "
            "from_pretrained(...)."
        )
    return torch.device(hook.execution_device)  # accelerate keeps offloaded weights on "meta"


def _set_class(host: Any, cls: type) -> None:
    host.__class__ = cls
    if "_old_forward" in host.__dict__:  # accelerate put its `forward` on the instance, around the class's
        host._old_forward = cls.forward.__get__(host)  # type: ignore[attr-defined]
        host.forward.__dict__.clear()
        functools.update_wrapper(host.forward, host._old_forward)
        if "__signature__" in host.forward.__dict__:  # the copied one counts `self`
            host.forward.__signature__ = inspect.signature(host._old_forward)
