"""Whether a call of an attached host can be served, and if not, what to do about it; what there is to warn of."""

import warnings
from typing import Any

import torch
from torch import Tensor

from vpp_plugins.attach.hooks import HostState
from vpp_plugins.errors import HalfPrecisionVPPWarning, UntrainedVPPWarning, VPPError
from vpp_plugins.prompts import TOKEN, VPP

ENCODED = (
    "image_embeds",
    "image_hidden_states",
    "image_encoder_embeddings",
    "perceiver_embeddings",
    "cross_attention_states",
)
"""transformers' names, beside `mm_encoder_outputs`, for images that are encoded already."""

CACHES = ("cache", "past_key_values", "cache_params")
"""transformers' names for what a host has seen before: the first since 5.24, the others before, and still taken."""


def has_features(call: dict[str, Any]) -> bool:
    """Return whether the call brings the host images that are encoded already."""
    outputs = call.get("mm_encoder_outputs") or {}
    return outputs.get("image") is not None or any(call.get(name) is not None for name in ENCODED)


def check_call(
    state: HostState,
    vpp: VPP,
    call: dict[str, Any],
    ids: Tensor | None,
    pixels: Tensor | None,
    tile_boxes: Tensor | None,
) -> None:
    """Raise VPPError for a call whose text, images and prompts do not belong together.

    `ids` are those that will be embedded, `pixels` the detector's images and `tile_boxes` the vision encoder's
    windows, None where there is none.
    """
    if pixels is not None:
        _check_pixels(state, vpp, pixels)
    if not state.disabled:
        _check_images(state, vpp, call, pixels)
        _check_boxes(state, vpp, call, tile_boxes)
    if pixels is not None and (ids is None or call.get("inputs_embeds") is not None):
        raise VPPError("vpp_pixel_values need input_ids, where the placeholders stand; inputs_embeds have none.")
    if ids is None:
        return
    if vpp.token_id is None:
        if pixels is not None:
            raise VPPError(
                f"the model does not know the id of {TOKEN}: make a VPPProcessor(processor, model), or call "
                "model.vpp.bind_token(id)."
            )
        return
    if not torch.compiler.is_compiling():  # counting would break the graph
        placeholders = int(ids.eq(vpp.token_id).sum())
        _check_count(state, vpp, placeholders, images=0 if pixels is None else pixels.shape[0])


def check_embeddings(host: Any, vpp: VPP, call: dict[str, Any]) -> None:
    """Raise VPPError for embeddings that were looked up of ids with placeholders: nothing put the features in."""
    given, mask = call.get("inputs_embeds"), call.get("attention_mask")
    if given is None or vpp.token_id is None or host._vpp_state.disabled or torch.compiler.is_compiling():
        return
    embedding = host.get_input_embeddings()
    with torch.no_grad():
        row = embedding(torch.tensor([[vpp.token_id]], device=given.device))[0, 0].to(given)
        bare = (given == row).all(-1)
    if mask is not None and mask.shape == bare.shape:
        bare = bare & mask.bool()
    if bare.any() and (mask is not None or row.any()):  # padding may be zero too
        raise VPPError(
            f"inputs_embeds hold {int(bare.sum())} rows of {TOKEN} as the embedding has it, without the local prompt's "
            "features: pass input_ids and vpp_pixel_values, as VPPProcessor makes them."
        )


def check_used(state: HostState, call: dict[str, Any]) -> None:
    """Raise VPPError where a call has ended and the host went round the hooks, so that its prompts did not count."""
    slot, (features, overlay) = state.slot, state.slot.prompts
    if features is not None and slot.placed is not True and int(slot.placed) != len(features):
        raise VPPError(
            f"the host embedded {int(slot.placed)} of {len(features)} {TOKEN} placeholders in one piece, so the local "
            "prompt did not count in this call: pass whole input_ids, and nothing that embeds or splits them elsewhere."
        )
    if overlay is not None and not slot.overlaid and state.has_images(call):
        raise VPPError(
            "the host did not call its vision encoder for the images of this call, so the global prompt did not count: "
            "pass the pixels, and nothing that is encoded already."
        )


def embedded_ids(rest: tuple[Any, ...], call: dict[str, Any]) -> Tensor | None:
    """Return the ids that generate will embed: not those that a key-value cache already holds."""
    given = (call.get("input_ids"), call.get("inputs"), *rest)
    ids = next((c for c in given if isinstance(c, Tensor) and c.ndim == 2 and not c.is_floating_point()), None)
    mask, cache = call.get("attention_mask"), next((call[name] for name in CACHES if call.get(name) is not None), None)
    if ids is None or cache is None or (mask is not None and mask.shape[1] != ids.shape[1]):  # as generate does
        return ids
    return ids[:, int(cache.get_seq_length()) :]


def warn_once(state: HostState, vpp: VPP, *, trained: bool) -> None:
    """Warn of untrained prompts, and, but under torch.compile, of training prompts whose steps are rounded away."""
    found: dict[type[Warning], str] = {}
    if not trained:
        found[UntrainedVPPWarning] = (
            "the attached VPP is untrained, so it cannot help yet: load weights with load_vpp(model, folder) or "
            "attach_vpp(model, folder), or train it and set model.vpp.trained = True."
        )
    compiling = torch.compiler.is_compiling()  # a look at every parameter would be as many guards
    if vpp.training and torch.is_grad_enabled() and not compiling and _learns_in_half(vpp):
        found[HalfPrecisionVPPWarning] = (
            "VPP is being trained in bfloat16 or float16, in which steps of usual learning rates are rounded away, so "
            "that most of it would not learn: call model.vpp.float() before making the optimizer; the model itself may "
            "stay as it is. Only an optimizer that keeps float32 copies, as DeepSpeed's does, needs no change."
        )
    for category, text in found.items():
        if category not in state.warned:
            state.warned.add(category)
            warnings.warn(text, category, stacklevel=2)


def _learns_in_half(vpp: VPP) -> bool:
    return any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in vpp.parameters())


def refuse_nested(pixels: Tensor | None) -> None:
    """Raise VPPError for images of a call within another: the running one's prompts would stand in for them."""
    if pixels is not None:
        raise VPPError(
            "vpp_pixel_values came in a call within another call of the same model: make one after the other."
        )


def refuse_chunks(host: Any, call: dict[str, Any]) -> None:
    """Raise VPPError where generate would cut the prompt into chunks."""
    config = call.get("generation_config") or host.generation_config
    if call.get("prefill_chunk_size") or config.to_dict().get("prefill_chunk_size"):  # not every config has it
        raise VPPError("prefill_chunk_size cuts the prompt between placeholders: leave it unset together with VPP.")


def is_draft(call: dict[str, Any]) -> bool:
    """Return whether a generate is assisted decoding's, which asks a draft (`assistant_model`) for candidates."""
    config = call.get("generation_config")
    return bool(config is not None and config.to_dict().get("is_assistant"))


def _check_count(state: HostState, vpp: VPP, placeholders: int, *, images: int) -> None:
    if placeholders and state.disabled:
        raise VPPError(
            f"input_ids hold {placeholders} {TOKEN} placeholders, but VPP is disabled here: make the inputs inside the "
            "vpp_disabled block."
        )
    each = vpp.tokens_per_image
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
    planes = pixels.ndim == 4 and pixels.shape[1] == 3 and not pixels.shape[2] % 32 and not pixels.shape[3] % 32
    if not planes or not pixels.is_floating_point():
        raise VPPError(
            "vpp_pixel_values must be normalised floats [images, 3, height, width] with sides in multiples of 32, but "
            f"are {list(pixels.shape)} of {pixels.dtype}."
        )


def _check_boxes(state: HostState, vpp: VPP, call: dict[str, Any], tile_boxes: Tensor | None) -> None:
    if tile_boxes is None:
        if state.backbone.tiled and vpp.global_vpp is not None and state.has_images(call):
            raise VPPError(
                "images came without vpp_tile_boxes, which say what part of its image each tile shows: make the "
                "inputs with VPPProcessor(processor, model), or call within vpp_disabled(model)."
            )
    elif tile_boxes.ndim != 2 or tile_boxes.shape[1] != 4 or tile_boxes.dtype in (torch.bfloat16, torch.float16):
        raise VPPError(
            "vpp_tile_boxes must be [inputs, 4], the left, top, right and bottom of what each tile shows of its "
            "image, in millionths of the frame that has the axes, or float32 fractions of it (half precision would "
            f"shift them), but are {list(tile_boxes.shape)} of {tile_boxes.dtype}."
        )


def _check_images(state: HostState, vpp: VPP, call: dict[str, Any], pixels: Tensor | None) -> None:
    if call.get("pixel_values_videos") is not None:
        raise VPPError(
            "pixel_values_videos came, but VPP takes images only, videos not yet: pass single frames as images, or "
            "call within vpp_disabled(model)."
        )
    if has_features(call) and vpp.global_vpp is not None:
        raise VPPError(
            "precomputed image features bypass the vision encoder, where the global prompt acts: pass the pixels."
        )
    if pixels is None and vpp.tokens_per_image and state.has_images(call):
        raise VPPError(
            f"images came without vpp_pixel_values, but this model has a local prompt of {vpp.tokens_per_image} tokens "
            "per image: make the inputs with VPPProcessor(processor, model), or call within vpp_disabled(model)."
        )
    if pixels is not None and not state.has_images(call) and not has_features(call):
        raise VPPError(
            f"vpp_pixel_values came without {' or '.join(state.backbone.image_arguments)}, so the host would not see "
            "the images: pass everything that one VPPProcessor call made."
        )
