"""Training in half precision is warned of once; inference and float32 prompts are not."""

import pytest
import torch

from tests.tiny import attached, inputs_for
from vpp_plugins.errors import HalfPrecisionVPPWarning

pytestmark = pytest.mark.usefixtures("toy")
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@half
def test_training_in_half_precision_warns_once_and_says_what_to_do(dtype: torch.dtype) -> None:
    model, processor = attached()
    model.to(dtype).train()
    inputs = inputs_for(processor, [1], dtype=dtype)

    with pytest.warns(HalfPrecisionVPPWarning, match=r"call model.vpp.float\(\) before making the optimizer"):
        model(**inputs)
    model(**inputs)  # a second warning is an error here


def test_what_the_warning_says_is_so() -> None:
    """A step of a usual size leaves a bfloat16 prompt above 1 as it was; after `model.vpp.float()` it does not."""
    for mended in (False, True):
        model, processor = attached()
        model.to(torch.bfloat16)
        if mended:
            model.vpp.float()
            model.train()
        inputs = inputs_for(processor, [1], dtype=torch.bfloat16)
        prompt = model.vpp.global_vpp.prompt
        large = (prompt.detach().abs() > 1) & (model.vpp.global_vpp.mask > 0)
        before = prompt.detach().clone()
        optimizer = torch.optim.AdamW([prompt], lr=2e-4, weight_decay=0.0)

        model(**inputs).logits.float().square().mean().backward()
        optimizer.step()

        assert large.any()
        assert prompt.grad is not None
        learns = large & (prompt.grad != 0)
        assert learns.any()
        assert torch.equal(prompt.detach()[learns] != before[learns], torch.full((int(learns.sum()),), mended))


@half
def test_inference_does_not_warn(dtype: torch.dtype) -> None:
    model, processor = attached()
    model.to(dtype)
    inputs = inputs_for(processor, [1], dtype=dtype)

    model(**inputs)  # in evaluation mode, though gradients are on
    model.train()
    with torch.no_grad():
        model(**inputs)
    model.generate(**inputs, max_new_tokens=1)


def test_frozen_prompts_do_not_warn() -> None:
    model, processor = attached()
    model.to(torch.bfloat16).train()
    model.vpp.requires_grad_(False)

    model(**inputs_for(processor, [1], dtype=torch.bfloat16))


def test_autocast_over_float32_prompts_does_not_warn() -> None:
    model, processor = attached()
    model.train()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs_for(processor, [1]))
