"""What decides a model's greedy answers beside its weights and the protocol: kept in `run.json`, shown by `compare`.

Nothing is listed by name that a host may add to: all of its generation configuration, its processor and its prompts is
kept, but what has no part in greedy answers.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vpp_plugins.attach import active_vpp, host_state, is_attached, unwrap
from vpp_plugins.ground import Grounder
from vpp_plugins.processor import hosts_processor
from vpp_plugins.prompts import TOKEN

PARTS = ("generation", "image_processor", "processor", "host", "adapters", "prompts", "batch_size", "versions")
"""Keys of `run.json` whose differences may make the same weights answer otherwise."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Fields of a generation configuration that only sampling looks at."""
OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")
"""Fields that say what is returned beside the answer."""
_OFF: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "guidance_scale": 1.0,
    "use_cache": True,
}
"""Values that are the same as None; of all others but ids it is what is false."""
_NAMES = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "architectures",
    "vocab_size",
    "dtype",
    "torch_dtype",
)
"""Keys of a model's configuration that say nothing of its answers, or are kept by themselves."""


def answer_settings(grounder: Grounder, generation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what decides the answers of `grounder.ask(..., **generation)` beside weights, as JSON values by part."""
    processor = grounder.processor
    own = hosts_processor(processor)
    found = {
        "generation": _generation(unwrap(grounder.model), grounder.generation(**generation)),
        "image_processor": _image_processor(own.image_processor),
        "processor": _processor(own),
        "host": _host(unwrap(grounder.model)),
        "adapters": _adapters(grounder.model),
        "prompts": _prompts(grounder.model),
    }
    values: dict[str, dict[str, Any]] = json.loads(json.dumps(found, default=str))
    return values


def _generation(host: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `generate` will go by: the host's own configuration, under what it is called with."""
    own = json.loads(host.generation_config.to_json_string(use_diff=False, ignore_metadata=True))
    values = own | asked
    unheard = OUTPUTS if values["do_sample"] else (*OUTPUTS, *SAMPLING)
    return {name: one for name, one in sorted(values.items()) if name not in unheard and not _is_off(name, one)}


def _is_off(name: str, value: Any) -> bool:
    if value is None or name.endswith("token_id"):
        return value is None
    return bool(value == _OFF[name]) if name in _OFF else not value


def _image_processor(image_processor: Any) -> dict[str, Any]:
    return {} if image_processor is None else dict(image_processor.to_dict())


def _processor(processor: Any) -> dict[str, Any]:
    from transformers import ProcessorMixin

    values = processor.to_dict() if isinstance(processor, ProcessorMixin) else {}
    apart = ("image_processor", "video_processor", "feature_extractor", "tokenizer", "chat_template")
    return {
        **{name: value for name, value in values.items() if name not in apart},
        "processor_class": type(processor).__name__,
        "chat_template_sha256": _digest(processor.chat_template),
        "tokenizer_sha256": _digest(_tokenizer(processor.tokenizer)),
    }


def _tokenizer(tokenizer: Any) -> Any:
    """Return what cuts text into tokens; the placeholder that VPPProcessor adds is left out."""
    if not tokenizer.is_fast:
        return {token: number for token, number in tokenizer.get_vocab().items() if token != TOKEN}
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [one for one in values.pop("added_tokens") if one["content"] != TOKEN]
    return {**values, "added_tokens": added, "padding": None, "truncation": None}  # set anew by each call


def _host(host: Any) -> dict[str, Any]:
    """Return how the host computes, and a hash of its configuration: of equal weights it makes another model."""
    from transformers import PreTrainedModel

    parts = [part for part in host.modules() if isinstance(part, PreTrainedModel)]
    config = host.config.to_dict()
    return {
        "dtype": sorted({str(one.dtype).removeprefix("torch.") for one in host.parameters()}),
        "device": sorted({one.device.type for one in host.parameters()}),
        "attention": sorted({str(part.config._attn_implementation) for part in parts}),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "quantization": config.pop("quantization_config", None),
        "config_sha256": _digest(_without_names(config)),
    }


def _without_names(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(name): _without_names(value) for name, value in config.items() if name not in _NAMES}
    return [_without_names(one) for one in config] if isinstance(config, list | tuple) else config


def _adapters(model: nn.Module) -> dict[str, Any]:
    """Return the settings of the PEFT adapters that are in use, by name."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer) and not one.disable_adapters]
    configs = unwrap(model).peft_config if layers else {}  # PEFT puts it there with its layers
    active = {name for layer in layers for name in layer.active_adapters}
    return {name: configs[name].to_dict() for name in sorted(active & configs.keys())}


def _prompts(model: nn.Module) -> dict[str, Any]:
    if not is_attached(model):
        return {}
    if host_state(model).disabled:
        return {"disabled": True}
    vpp = active_vpp(unwrap(model))
    vpp.check_settings()
    return vpp.config.to_dict()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of every setting that differs, and its two values; None stands for one that is not there."""
    for name in sorted(a.keys() | b.keys()):
        ours, theirs = a.get(name), b.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from ((f"{name}.{inner}", *values) for inner, *values in differences(ours, theirs))
        elif ours != theirs:
            yield name, ours, theirs
