"""Every image-text-to-text architecture of transformers at toy size: its default configuration, shrunk by rules.

What the rules cannot know (settings that must fit each other) is in `settings.py`.
"""

import copy
import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

LAYERS = 2
VOCABULARY = 256
SPECIAL = 100
"""Id of the image token; those of the other special tokens follow: video, start and end of either, ..."""

# The first rule whose name matches in full gives the largest value that the setting keeps.
_LARGEST = [
    (r".*vocab_size.*", VOCABULARY),
    (r".*intermediate_size.*|.*ffn_dim|d_ff|mlp_dim|share_expert_dim|moe_hidden_size", 64),
    (r".*hidden_size.*|d_model|.*embed_dim|word_embed_proj_dim|.*output_dim|adapter_(in|out)_dim|.*hidden_dim", 32),
    (r"projector_input_dim|projection_dim|output_channels|patch_embed_hidden_size|latent_channels|laurel_rank", 32),
    (r"hc_lowrank|decoder_hidden_size", 32),
    (r".*num_hidden_layers|num_mtp_layers|.*_layers|layers|n_layers|.*depth", LAYERS),
    (r".*num_key_value_heads|.*num_key_heads", 2),
    (r".*attention_heads|num_heads|.*n_heads|.*num_value_heads|linear_num_heads|mamba_num_heads|.*resampler_heads", 4),
    (r".*head_dim|d_kv|.*dim_head", 8),
    (r"[qk]v?_lora_rank", 16),
    (r"image_size", 32),
    (r"patch_size", 8),
    (r".*num_(local_|routed_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts", 2),
    (r"n_shared_experts|.*num_shared_experts|n_group|topk_group", 1),
    (r"max_position_embeddings", 512),
    (r"num_mel_bins|ssm_state_size", 16),
    (r"ngram_vocab_size_base", 50),
]
_RULES = [(re.compile(pattern), largest) for pattern, largest in _LARGEST]
_ORDINARY = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_IMAGE = {"image_token_id", "image_token_index", "image_patch_id"}
_TOKEN = re.compile(r".*_token_(id|index)|im_(start|end|newline)_id|image_patch_id")
_LEFT_TO_THE_CLASS = {"architectures", "transformers_version", "dtype", "id2label", "label2id", "per_layer_config"}


def shrunk_config(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """Return a toy configuration; `settings` are dotted names and the values that they must have."""
    kind = CONFIG_MAPPING[model_type]
    tree = _shrink(kind().to_dict(), _Ids())
    for path, value in settings.items():
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        place[name] = copy.deepcopy(value)  # configurations change what they are given
    return kind(**tree)


class _Ids(dict[str, int]):
    """Gives every name of a special token an id of its own, the same wherever the name stands."""

    def __missing__(self, name: str) -> int:
        self[name] = SPECIAL if name in _IMAGE else SPECIAL + 1 + len(self)
        return self[name]


def _shrink(tree: dict[str, Any], ids: _Ids) -> dict[str, Any]:
    layers = tree.get("num_hidden_layers")
    return {name: _shrunk(name, value, layers, ids) for name, value in tree.items() if name not in _LEFT_TO_THE_CLASS}


def _shrunk(name: str, value: Any, layers: int | None, ids: _Ids) -> Any:
    if isinstance(value, dict) and (name.endswith("config") or name in ("encoder", "decoder")):
        return _shrink(value, ids)
    if isinstance(value, list) and len(value) == layers:  # one entry per layer: keep one layer of each kind
        kinds = [kind for place, kind in enumerate(value) if kind not in value[:place]]
        return (kinds * LAYERS)[:LAYERS]
    if type(value) is not int:
        return value
    if name in _ORDINARY:
        return _ORDINARY[name]
    if _TOKEN.fullmatch(name):
        return ids[name]
    largest = next((largest for pattern, largest in _RULES if pattern.fullmatch(name)), value)
    return min(value, largest) if value > 0 else value
