"""What an attached LLaVA must equal bit for bit: an ordinary one, whose weights hold the features."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import tiny_llava


def twin_of(model: Any, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Return an unpatched host and inputs with which it does what VPP does to `model`.

    Each placeholder becomes an id of its own, whose embedding is that placeholder's feature; the axes are on its pixels
    already.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        prompts = model.vpp(inputs.get("vpp_pixel_values"))
    weights = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("vpp.")}
    features = weights["lm_head.weight"].new_zeros(0, weights["lm_head.weight"].shape[1])
    features = features if prompts.features is None else prompts.features
    embedding = "model.language_model.embed_tokens.weight"
    weights[embedding] = torch.cat([weights[embedding], features])

    twin = tiny_llava(vocabulary=rows + len(features)).to(features.dtype)
    twin.lm_head = nn.Linear(features.shape[1], rows, bias=False, dtype=features.dtype)
    twin.config.text_config.vocab_size = rows
    twin.load_state_dict(weights)

    theirs = {name: value for name, value in inputs.items() if name != "vpp_pixel_values"}
    placeholders = torch.isin(inputs["input_ids"], -1 if model.vpp.token_id is None else model.vpp.token_id)
    theirs["input_ids"] = inputs["input_ids"].masked_scatter(placeholders, torch.arange(len(features)) + rows)
    if prompts.overlay is not None and "pixel_values" in inputs:
        with torch.no_grad():
            theirs["pixel_values"] = prompts.overlay.blend(inputs["pixel_values"])
    return twin, theirs
