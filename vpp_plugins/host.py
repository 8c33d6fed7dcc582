"""The class that an attached host has: its own class, with VPP's arguments in `forward`, `generate` and `save_pretrained`."""

import functools
import inspect
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vpp_plugins import vocabulary
from vpp_plugins.checkpoint import write_vpp
from vpp_plugins.errors import UntrainedVPPWarning, VPPError
from vpp_plugins.prompts.vpp import TOKEN, VPP
from vpp_plugins.session import HostState, heal

ARGUMENTS = ("vpp_pixel_values", "vpp_tile_boxes")


class AttachedHost:
    """Mixed into the host's class by `attached_class`; `self` is the host."""

    vpp: nn.Module
    _vpp_state: HostState
    _vpp_host_class: type
    _vpp_input_ids_at: int | None

    def forward(
        self,
        *args: Any,
        vpp_pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        vpp_tile_boxes: Float[Tensor, "inputs 4"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the host's forward with the prompts in place."""
        if self._vpp_state.inside():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        ids = kwargs.get("input_ids")
        at = type(self)._vpp_input_ids_at
        if ids is None and at is not None and at < len(args):
            ids = args[at]
        with _session(self, ids, vpp_pixel_values, vpp_tile_boxes, kwargs):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(
        self,
        *args: Any,
        vpp_pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        vpp_tile_boxes: Float[Tensor, "inputs 4"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the host's generate in one session: prompts are computed once, and the placeholder is never an answer."""
        ids = _generation_ids(args, kwargs)
        if vpp_pixel_values is not None:
            _refuse_chunks(self, kwargs)
        token_id = active_vpp(self).token_id
        if token_id is not None and not self._vpp_state.disabled:
            kwargs["logits_processor"] = _with_never(kwargs.get("logits_processor"), token_id)
        with torch.no_grad(), _session(self, ids, vpp_pixel_values, vpp_tile_boxes, kwargs):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> Any:
        """Save the bare host as it was, and the prompts beside it in their own files."""
        with vocabulary.narrowed(self, self._vpp_state.host_rows):
            tensors = dict(self.state_dict() if state_dict is None else state_dict)  # type: ignore[attr-defined]
            prompts = {name.removeprefix("vpp."): tensors.pop(name) for name in list(tensors) if name.startswith("vpp.")}
            tensors = _cut(self, tensors)
            result = super().save_pretrained(save_directory, *args, state_dict=tensors, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            write_vpp(active_vpp(self), save_directory, prompts or None)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (type(self)._vpp_host_class,), self.__dict__.copy()


@functools.cache
def attached_class(host_class: type) -> type:
    """Return the host's class with VPP's arguments, under the same name: transformers keys caches and saved files by it."""
    names = [name for name in inspect.signature(host_class.forward).parameters if name != "self"]  # type: ignore[attr-defined]
    body = {
        "__module__": host_class.__module__,
        "__qualname__": host_class.__qualname__,
        "__doc__": host_class.__doc__,
        "_vpp_host_class": host_class,
        "_vpp_input_ids_at": names.index("input_ids") if "input_ids" in names else None,
    }
    for name in ("forward", "generate"):
        if name in dir(host_class):
            body[name] = _with_arguments(getattr(AttachedHost, name), getattr(host_class, name))
    return type(host_class)(host_class.__name__, (AttachedHost, host_class), body)


def active_vpp(host: Any) -> VPP:
    """Return the host's prompts, through the wrapper that PEFT's modules_to_save puts around them."""
    vpp = host.vpp
    if isinstance(vpp, VPP):
        return vpp
    wrapped: VPP = vpp.original_module if vpp.disable_adapters else vpp.modules_to_save[vpp.active_adapter]
    return wrapped


def _rebuild(host_class: type) -> Any:
    attached = attached_class(host_class)
    return attached.__new__(attached)


def _with_arguments(ours: Any, theirs: Any) -> Any:
    """Give our method the host's signature plus VPP's arguments: Trainer and generate read signatures to choose inputs."""
    signature = inspect.signature(theirs)
    parameters = list(signature.parameters.values())
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ARGUMENTS]
    last = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        last -= 1
    parameters[last:last] = extra

    @functools.wraps(theirs)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method


@contextmanager
def _session(
    host: Any, ids: Int[Tensor, "batch length"] | None, pixels: Tensor | None, tile_boxes: Tensor | None, call: dict[str, Any]
) -> Iterator[None]:
    """Check the call, compute its prompts, and let the hooks see them until it ends."""
    state, vpp = host._vpp_state, active_vpp(host)
    if pixels is not None and pixels.shape[0] == 0:
        pixels = None
    has_images = any(call.get(name) is not None for name in state.backbone.image_arguments)
    _check(state, vpp, _new_ids(ids, call), pixels, has_images, call)
    if state.disabled or not (has_images or pixels is not None):
        yield
        return
    _warn_untrained(state, vpp)
    if torch.compiler.is_compiling():  # a lock breaks the graph; compiled calls of one model do not overlap
        _fill(host, ids, pixels, tile_boxes)
        try:
            yield
        finally:
            state.slot.clear()
        return
    with state.lock:
        state.owner = threading.get_ident()
        try:
            _fill(host, ids, pixels, tile_boxes)
            yield
        finally:
            state.owner = None
            state.slot.clear()


def _fill(host: Any, ids: Tensor | None, pixels: Tensor | None, tile_boxes: Tensor | None) -> None:
    state, vpp = host._vpp_state, active_vpp(host)
    heal(host, host.get_input_embeddings(), state.slot)
    state.slot.prompts = host.vpp(pixels)
    state.slot.token_id = -1 if vpp.token_id is None else vpp.token_id
    state.slot.rows = 1 if ids is None else ids.shape[0]
    state.slot.windows = None if tile_boxes is None else [tuple(box) for box in tile_boxes.tolist()]


def _check(
    state: HostState, vpp: VPP, ids: Tensor | None, pixels: Tensor | None, has_images: bool, call: dict[str, Any]
) -> None:
    images, each = 0 if pixels is None else pixels.shape[0], vpp.tokens_per_image
    if pixels is not None:
        _check_pixels(state, vpp, pixels)
    if state.disabled:
        has_images = False
    if (call.get("mm_encoder_outputs") or {}).get("image") is not None and vpp.global_vpp is not None and not state.disabled:
        raise VPPError(
            "precomputed image features bypass the vision encoder, where the global prompt acts: pass the pixels instead."
        )
    if has_images and each and not images:
        raise VPPError(
            f"images came without vpp_pixel_values, but this model has a local prompt of {each} tokens per image: make the "
            "inputs with VPPProcessor(processor, model), or call within vpp_disabled(model)."
        )
    if ids is None or torch.compiler.is_compiling():
        if images and ids is None:
            raise VPPError("vpp_pixel_values need input_ids, where the placeholders stand; inputs_embeds alone have none.")
        return
    if vpp.token_id is None:
        if images:
            raise VPPError(
                f"the model does not know the id of {TOKEN}: make a VPPProcessor(processor, model), or call "
                "model.vpp.bind_token(id)."
            )
        return
    placeholders = int((ids == vpp.token_id).sum())
    if placeholders and state.disabled:
        raise VPPError(
            f"input_ids hold {placeholders} {TOKEN} placeholders, but VPP is disabled here: make the inputs inside the "
            "vpp_disabled block."
        )
    if placeholders != images * each:
        raise VPPError(
            f"input_ids hold {placeholders} {TOKEN} placeholders, but vpp_pixel_values hold {images} images that need "
            f"{images * each} ({each} each): make text and images in one VPPProcessor call."
        )


def _check_pixels(state: HostState, vpp: VPP, pixels: Tensor) -> None:
    if state.disabled:
        raise VPPError("vpp_pixel_values came while VPP is disabled: make the inputs inside the vpp_disabled block.")
    if vpp.local_vpp is None:
        raise VPPError("vpp_pixel_values came, but this model has no local prompt: leave them out.")
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % 32 or pixels.shape[3] % 32:
        raise VPPError(
            f"vpp_pixel_values must be [images, 3, height, width] with sides in multiples of 32, but are {tuple(pixels.shape)}."
        )


def _new_ids(ids: Tensor | None, call: dict[str, Any]) -> Tensor | None:
    """Leave out ids that the key-value cache already holds, where a caller passes the whole history again."""
    cache, mask = call.get("past_key_values"), call.get("attention_mask")
    if ids is None or cache is None:
        return ids
    past = cache.get_seq_length()
    whole = ids.shape[1] > past and (mask is None or mask.shape[1] == ids.shape[1])
    return ids[:, past:] if whole else ids


def _generation_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    candidates = (kwargs.get("input_ids"), kwargs.get("inputs"), *args)
    return next((c for c in candidates if isinstance(c, Tensor) and c.ndim == 2 and not c.is_floating_point()), None)


def _refuse_chunks(host: Any, kwargs: dict[str, Any]) -> None:
    config = kwargs.get("generation_config") or host.generation_config
    if kwargs.get("prefill_chunk_size") or config.prefill_chunk_size:
        raise VPPError("prefill_chunk_size cuts the prompt between placeholders: leave it unset together with VPP.")


class NeverToken:
    """A logits processor that makes one token impossible; separate from `suppress_tokens`, which stays the user's."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.token_id] = -torch.inf
        return scores


def _with_never(given: Any, token_id: int) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList([*(given or []), NeverToken(token_id)])


def _warn_untrained(state: HostState, vpp: VPP) -> None:
    if vpp.trained or state.warned:
        return
    state.warned = True
    warnings.warn(
        "the attached VPP is untrained, so it cannot help yet: load weights with load_vpp(model, folder) or "
        "attach_vpp(model, folder), or train it and set model.vpp.trained = True.",
        UntrainedVPPWarning,
        stacklevel=5,
    )


def _cut(host: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut vocabulary tables that were gathered before `narrowed` took hold (Trainer passes its own state dict)."""
    rows = host._vpp_state.host_rows
    if rows is None:
        return tensors
    tables = {name for name, value in host.state_dict().items() if value.shape[:1] == (rows,)}
    return {name: value[:rows] if name in tables else value for name, value in tensors.items()}
