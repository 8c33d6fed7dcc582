"""A Llama of two thin layers in SmolLM2's place: as it is fetched, and as training leaves it."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vpp_plugins import VPPConfig, VPPProcessor, attach_vpp
from vpp_plugins.pocket import smollm2


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of single bytes, with SmolLM2's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=special[0], bos_token=special[1], eos_token=special[2]
    )


def write_host(folder: Path) -> Path:
    """Write such a folder as `vpp fetch smollm2` does, and return it."""
    letters = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    model, processor = smollm2.see(LlamaForCausalLM(config), letters)
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / smollm2.MADE_OF).write_text(json.dumps({"sha256": smollm2.SHA256, "numbers": True}))
    return folder


def load_host(folder: Path, config: VPPConfig | None = None) -> tuple[Any, Any]:
    """Load it in float32 with its processor; with prompts, said to be trained, where there is a configuration."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = LlavaProcessor.from_pretrained(folder)
    if config is not None:
        processor = VPPProcessor(processor, attach_vpp(model, config))
        model.vpp.trained = True
    return model, processor


def load_trained(folder: Path, config: VPPConfig | None = None) -> tuple[Any, Any]:
    """Load it with other projectors and with LoRA."""
    model, processor = load_host(folder)
    model.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    if config is not None:
        processor = VPPProcessor(processor, attach_vpp(model, config))
        model.vpp.trained = True
    for name, weight in model.named_parameters():
        if "multi_modal_projector" in name or ".projector." in name:
            weight.data += 0.1 * torch.randn_like(weight)
    return model, processor
