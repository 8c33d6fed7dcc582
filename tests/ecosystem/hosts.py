"""The four hosts that every library is tried on, and what is asked of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vpp_plugins.attach.attach import unwrap
from vpp_plugins.attach.host import active_vpp

four_families = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return a forward's logits."""
    return model(**inputs).logits


def trainable(model: Any) -> set[str]:
    """Name the parameters that a trainer would train."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def labels_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the ids as labels, none on placeholders."""
    ids = inputs["input_ids"]
    return ids.masked_fill(ids == active_vpp(unwrap(model)).token_id, -100)
