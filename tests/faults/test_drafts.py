"""A refusal gives its own reason: drafts of assisted decoding, and arguments in each other's place."""

from typing import Any

import pytest
import torch

from tests.families import FAMILIES, attached_family, family_inputs
from tests.tiny import FULL, attached, inputs_for, tiny_llava
from vpp_plugins import Grounder, VPPError, VPPProcessor, attach_vpp, detach_vpp, vpp_disabled

pytestmark = pytest.mark.usefixtures("toy")
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
REASON = r"the draft \(assistant_model\) has VPP attached.*: call detach_vpp\(draft\), or generate within vpp_disabled"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_an_attached_draft_is_named_whatever_the_main_model(family: str) -> None:
    model, processor = attached_family(family)
    draft, _ = attached_family(family, seed=1)
    inputs = family_inputs(processor, [1])
    with pytest.raises(VPPError, match=REASON):
        model.generate(**inputs, **GREEDY, assistant_model=draft)

    with vpp_disabled(model):
        plain = family_inputs(processor, [1])
        with pytest.raises(VPPError, match=REASON):
            model.generate(**plain, **GREEDY, assistant_model=draft)
    with pytest.raises(VPPError, match=REASON):
        FAMILIES[family].model().generate(**plain, **GREEDY, assistant_model=draft)


def test_the_advice_works() -> None:
    model, processor = attached()
    draft, _ = attached(tiny_llava(seed=1))
    inputs = inputs_for(processor, [1])
    alone = model.generate(**inputs, **GREEDY)

    with vpp_disabled(draft):
        assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=draft), alone)
    assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=detach_vpp(draft)), alone)


def test_a_draft_in_its_wrapper_is_named_too() -> None:
    from peft import LoraConfig, get_peft_model

    model, processor = attached()
    draft = attach_vpp(tiny_llava(seed=1), model.vpp.config)
    wrapped = get_peft_model(draft, LoraConfig(target_modules=["q_proj"], exclude_modules=r"vpp\..*"))

    with pytest.raises(VPPError, match=REASON):
        model.generate(**inputs_for(processor, [1]), **GREEDY, assistant_model=wrapped)


@pytest.mark.parametrize("was_attached", [True, False])
def test_a_draft_without_a_row_for_the_placeholder(was_attached: bool) -> None:
    """transformers would speak of another tokenizer."""
    model, processor = attached(tiny_llava(vocabulary=FULL))
    draft = attached(tiny_llava(vocabulary=FULL))[0] if was_attached else tiny_llava(vocabulary=FULL)
    inputs, reason = inputs_for(processor, [1]), r"embeds 13 ids, and <\|vpp\|>, which is 13, is none of them"

    with vpp_disabled(draft) if was_attached else torch.no_grad(), pytest.raises(VPPError, match=reason):
        model.generate(**inputs, **GREEDY, assistant_model=draft)
    if not was_attached:
        draft.resize_token_embeddings(14)
        alone = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=draft), alone)


@pytest.mark.usefixtures("unchecked")
def test_a_model_and_a_processor_in_each_other_s_place() -> None:
    """VPP was said not to be attached to a processor, and no adapter to claim it."""
    model, processor = attached()
    with pytest.raises(VPPError, match="but the model is a VPPProcessor"):
        Grounder(processor, model)  # type: ignore[arg-type]
    with pytest.raises(VPPError, match="a model is expected here, but a LlavaProcessor came"):
        VPPProcessor(model, processor.processor)
