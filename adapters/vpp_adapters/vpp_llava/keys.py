"""What VPP-LLaVA's own code calls each tensor of a checkpoint, and what transformers and this library call it."""

import re
from collections.abc import Mapping

from vpp_plugins import VPPError
from vpp_plugins.errors import few
from vpp_plugins.files import Shape, misfits
from vpp_plugins.prompts.generators import VPP_LLAVA_PREFIX, our_name

CLIP_PREFIX = "model.vision_tower.vision_tower.vision_model."
DETR_PREFIX = VPP_LLAVA_PREFIX

_RENAMED: tuple[tuple[str, str], ...] = (
    (r"^lm_head\.", "lm_head."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (f"^{re.escape(CLIP_PREFIX)}", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.visual_prompt$", "vpp.global_prompt.prompt"),
    (r"^model\.grd_projector\.", "vpp.local_prompt.projector."),
)
_PARTS = {
    "global prompt (model.visual_prompt)": "model.visual_prompt",
    "projector of object queries (model.grd_projector)": "model.grd_projector.",
    "detector (model.detr_vision_tower)": DETR_PREFIX,
}
# Older versions of transformers and torch saved these, although they follow from the configuration.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$|\.embeddings\.position_ids$|\.num_batches_tracked$")


def is_computed(key: str) -> bool:
    """Return whether the tensor is no weight, but computed anew when the model is built."""
    return _COMPUTED.search(key) is not None


def new_name(key: str) -> str | None:
    """Return the tensor's name in an attached LlavaForConditionalGeneration; None if VPP-LLaVA has no such tensor."""
    if key.startswith(DETR_PREFIX):
        return f"vpp.local_prompt.generator.{our_name(key)}"
    for pattern, replacement in _RENAMED:
        renamed, found = re.subn(pattern, replacement, key)
        if found:
            return renamed
    return None


def check_parts(keys: Mapping[str, Shape], source: str) -> None:
    """Raise VPPError if a whole part of VPP-LLaVA is absent, as from a plain LLaVA."""
    absent = [part for part, prefix in _PARTS.items() if not any(key.startswith(prefix) for key in keys)]
    if absent:
        raise VPPError(
            f"{source} holds no {', no '.join(absent)}: it is a LLaVA without VPP, or not the whole of a VPP-LLaVA. "
            "Nothing was written."
        )


def match(found: Mapping[str, Shape], expected: Mapping[str, Shape], source: str) -> dict[str, str]:
    """Return the new name of every tensor found, in the same order, computed ones left out.

    Raises VPPError unless each one is expected, in its shape, and each expected one is there exactly once.
    """
    names = {key: new_name(key) or "" for key in found if not is_computed(key)}
    origins: dict[str, list[str]] = {}
    for key, name in names.items():
        origins.setdefault(name, []).append(key)
    shapes = {name if name in expected else key: found[key] for key, name in names.items()}
    problems = misfits(shapes, expected)
    if doubled := [" and ".join(keys) for name, keys in origins.items() if name in expected and len(keys) > 1]:
        problems.append(f"{len(doubled)} doubled: {few(doubled)}")
    if problems:
        raise VPPError(f"{source} does not fit its config.json: {'; '.join(problems)}. Nothing was written.")
    return names
