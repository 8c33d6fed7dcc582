"""From a training checkpoint to the real thing: an attached LLaVA with backbones, and its processor."""

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vpp_plugins import VPPProcessor, attach_vpp
from vpp_plugins.pocket import BACKBONE_PREFIXES, build_pocket, load_imagenet_backbone, pocket_config


def assemble(checkpoint: Path) -> tuple[LlavaForConditionalGeneration, VPPProcessor, PreTrainedTokenizerFast]:
    """Build the model of a checkpoint of train.py (its averaged weights) or finetune.py; also the host's tokenizer."""
    saved = torch.load(checkpoint, weights_only=True)
    model, processor = build_pocket(**saved["size"])
    tokenizer = processor.tokenizer
    weights = {name.removeprefix("llava."): v for name, v in saved["average"].items() if name.startswith("llava.")}
    if saved["arm"] == "vpp":
        attach_vpp(model, pocket_config())
        weights |= {
            name.replace("local_vpp.", "vpp.local_prompt.", 1): v
            for name, v in saved["average"].items()
            if name.startswith("local_vpp.")
        }
        # stage 1 leaves the axes as they were drawn
        weights["vpp.global_prompt.prompt"] = saved["average"].get(
            "global_vpp.prompt", model.vpp.global_vpp.prompt.detach()
        )
    backbone = load_imagenet_backbone()
    for name in model.state_dict():
        for prefix in BACKBONE_PREFIXES:
            if name.startswith(prefix):
                weights[name] = backbone[name.removeprefix(prefix)]
    model.load_state_dict(weights)
    if saved["arm"] == "vpp":
        model.vpp.trained = True
        processor = VPPProcessor(processor, model)
    return model.eval(), processor, tokenizer
