"""Load DETR weights from each place where they are published, all of them or none."""

import os
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vpp_plugins.errors import VPPError, few
from vpp_plugins.files import check_tensors, read_weights
from vpp_plugins.prompts.generators.detr import DETR

VPP_LLAVA_PREFIX = "model.detr_vision_tower.vision_tower."

# Applied in this order to the names of the original DETR and of VPP-LLaVA ("transformer.", "backbone.0.body."), and of
# transformers, as version 4 saves and version 5 keeps them, on timm's ResNet or its own. Our own names pass unchanged.
_RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^model\.", ""),
    (r"^backbone\.(0\.body|(conv_encoder\.)?model(\._backbone)?)\.", "backbone.body."),
    (r"\.embedder\.embedder\.convolution\.", ".conv1."),
    (r"\.embedder\.embedder\.normalization\.", ".bn1."),
    (r"\.encoder\.stages\.(\d+)\.layers\.", lambda found: f".layer{int(found[1]) + 1}."),
    (r"\.layer\.(\d+)\.convolution\.", lambda found: f".conv{int(found[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda found: f".bn{int(found[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "query_embed."),
    (r"^(transformer\.decoder\.norm|decoder\.layernorm)\.", "decoder_norm."),
    (r"^(transformer\.)?(encoder|decoder)\.layers\.", r"\2."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(encoder\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"^((?:en|de)coder\.\d+)\.(?:mlp\.)?fc([12])\.", r"\1.linear\2."),
]

# Detection heads, and the counters of batch norms that are frozen here.
_LEFT_OUT = re.compile(
    r"^(class_embed|bbox_embed|class_labels_classifier|bbox_predictor)\.|\.num_batches_tracked$",
)


def load_detr_weights(detr: DETR, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
    """Copy published weights into a DETR of the same sizes; its dtype and device stay, but "meta" becomes the CPU.

    `source` is a state dict, a file (.safetensors, or .pth of tensors only), a folder with model*.safetensors or
    pytorch_model*.bin, or a hub id, the only one to touch the network. Known are the layouts of the original DETR, of
    transformers' DetrModel and DetrForObjectDetection, of a whole VPP-LLaVA checkpoint, and of `detr.state_dict()`.
    Detection heads are left out. Raises VPPError, and changes nothing, unless every tensor is found exactly once, has
    the right shape and is finite.
    """
    if isinstance(source, Mapping):
        name, state = "the state dict", source
    else:
        name, state = f"'{source}'", read_weights(source, prefix=VPP_LLAVA_PREFIX)
    renamed = in_our_names(state)
    expected = detr.state_dict()
    if expected.keys().isdisjoint(renamed):
        raise VPPError(
            f"{name} holds no DETR weights in a known layout: the original DETR's, transformers', or VPP-LLaVA's. "
            f"Its names: {few(sorted(renamed), 4) or 'none'}."
        )
    check_tensors(renamed, expected, name, advice="Build the DETR with the sizes and the backbone of the weights.")
    if any(tensor.is_meta for tensor in expected.values()):
        detr.load_state_dict({name: renamed[name].to(expected[name].dtype) for name in expected}, assign=True)
    else:
        detr.load_state_dict(renamed)


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under the names of `DETR`; VPP-LLaVA's other weights and detection heads drop out.

    Raises VPPError when two of its tensors mean the same one.
    """
    of_vpp_llava = [name for name in state if name.startswith(VPP_LLAVA_PREFIX)]
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name in of_vpp_llava or state:
        ours = our_name(name)
        if _LEFT_OUT.search(ours):
            continue
        if ours in renamed:
            raise VPPError(f"the weights hold '{ours}' twice, as '{origin[ours]}' and as '{name}': keep one of them.")
        renamed[ours], origin[ours] = state[name], name
    return _join_projections(renamed)


def our_name(name: str) -> str:
    """Return what `DETR` calls a tensor of the original DETR, of VPP-LLaVA or of transformers."""
    name = name.removeprefix(VPP_LLAVA_PREFIX)
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _join_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack the query, key and value projections of each attention, as torch's nn.MultiheadAttention keeps them."""
    joined = dict(state)
    for name in state:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if ".q_proj." in name and len({state[part].shape if part in state else None for part in parts}) == 1:
            joined[name.replace(".q_proj.", ".in_proj_")] = torch.cat([joined.pop(part) for part in parts])
    return joined
