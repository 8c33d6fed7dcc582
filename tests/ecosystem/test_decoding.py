"""Ways of decoding that come from around the model: static caches, assisted decoding, going on from a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.ecosystem.hosts import four_families
from tests.families import attached_family, family_inputs
from tests.tiny import cached, inputs_for

pytestmark = pytest.mark.usefixtures("toy")


def answer(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    """New tokens only."""
    kwargs = {"max_new_tokens": 5, "do_sample": False, **kwargs}
    return model.generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]


class TestEveryFamily:
    @four_families
    def test_static_cache(self, family: str) -> None:
        model, processor = attached_family(family)
        inputs = family_inputs(processor, [2, 1])

        assert torch.equal(answer(model, inputs, cache_implementation="static"), answer(model, inputs))

    @four_families
    def test_prompt_lookup(self, family: str) -> None:
        """Candidates are copied from the prompt, where placeholders stand; none may be answered."""
        model, processor = attached_family(family)
        # bare LLaVA itself takes copied image tokens for images; after these texts none are copied
        inputs = inputs_for(processor, [2]) if family == "llava" else family_inputs(processor, [2])

        found = answer(model, inputs, prompt_lookup_num_tokens=3)

        assert torch.equal(found, answer(model, inputs))
        assert not (found == model.vpp.token_id).any()

    @four_families
    def test_beams_and_returned_sequences(self, family: str) -> None:
        """Each beam of a prompt sees that prompt's images: a batch answers as its prompts do alone."""
        model, processor = attached_family(family)
        beams = {"num_beams": 3, "num_return_sequences": 2}

        alone = answer(model, family_inputs(processor, [2]), **beams)

        inputs = family_inputs(processor, [2, 2])
        assert torch.equal(answer(model, inputs, **beams)[:2], alone)

    @four_families
    @torch.no_grad()
    def test_going_on_from_a_cache(self, family: str) -> None:
        """A second question about the image: the conversation comes whole, the images that are cached do not."""
        model, processor = attached_family(family)
        inputs = family_inputs(processor, [1])
        kwargs = {"max_new_tokens": 3, "do_sample": False, "use_cache": True, "return_dict_in_generate": True}
        cache = DynamicCache(config=model.config)
        first = model.generate(**inputs, **cached(cache), **kwargs).sequences
        more = torch.tensor([[7, 8, 9]])
        whole = torch.cat([first, more], dim=1)
        longer = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            longer["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, whole.shape[1] - kinds.shape[1])], dim=1)

        text = {name: longer[name] for name in ("input_ids", "attention_mask")}
        on = model.generate(**text, **cached(cache), max_new_tokens=3, do_sample=False)

        assert torch.equal(on, model.generate(**longer, max_new_tokens=3, do_sample=False))
