"""Fusion by cross-attention: against a plain computation, and on hosts, where it must fit in with all the rest."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import attached_family, family_inputs
from tests.tiny import TOY_LOCAL, attached, inputs_for, tiny_llava, toy_config
from vpp_plugins import VPPConfig, VPPError, attach_vpp, detach_vpp, load_vpp, save_vpp, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.plugins.registry import describe
from vpp_plugins.prompts.fusion import CrossAttention, Direction
from vpp_plugins.testing.fingerprint import assert_same, fingerprint

HIDDEN, WIDTH, HEADS, QUERIES = 12, 8, 2, 3
ROWS = [
    [0, 1, 1, 2, 2, 2, 0, 1, 2, 2, 2, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0],
]
"""Texts of two images, none, and one: 0 is text, 1 an image's own token, 2 one of its local prompt."""
IMAGES = [(0, [1, 2], [3, 4, 5]), (0, [7], [8, 9, 10]), (2, [0, 1, 2, 3], [4, 5, 6])]
"""Row, own places and local places of each image."""

both_directions = pytest.mark.parametrize("direction", get_args(Direction))
with_fusion = pytest.mark.usefixtures("toy")


def cross_attention(direction: Direction) -> CrossAttention:
    module = CrossAttention(HIDDEN, WIDTH, direction=direction, num_queries=QUERIES, heads=HEADS)
    nn.init.normal_(module.to_output)
    return module


def plain(module: CrossAttention, asking: Tensor, asked: Tensor) -> Tensor:
    """One image, head by head."""
    asking, asked = (F.layer_norm(tokens, tokens.shape[-1:]) for tokens in (asking, asked))
    query, key, value = asking @ module.to_query.T, asked @ module.to_key.T, asked @ module.to_value.T
    size = WIDTH // HEADS
    heads = [slice(head * size, (head + 1) * size) for head in range(HEADS)]
    attended = [(query[:, h] @ key[:, h].T / size**0.5).softmax(-1) @ value[:, h] for h in heads]
    return torch.cat(attended, -1) @ module.to_output.T


@both_directions
@pytest.mark.parametrize("repeats", [1, 2], ids=["one beam", "two beams"])
def test_equals_a_plain_computation_image_by_image(direction: Direction, repeats: int) -> None:
    module, kinds = cross_attention(direction), torch.tensor(ROWS).repeat_interleave(repeats, 0)
    embeddings = torch.randn(*kinds.shape, HIDDEN)
    expected = embeddings.clone()
    for row, own, local in IMAGES:
        for copied in range(row * repeats, (row + 1) * repeats):
            asking, asked = (local, own) if direction == "queries-attend" else (own, local)
            expected[copied, asking] += plain(module, embeddings[copied, asking], embeddings[copied, asked])

    fused = module().fuse(embeddings, kinds == 1, kinds == 2)

    torch.testing.assert_close(fused, expected)


def fused_model(direction: str, *, fresh: bool = False) -> tuple[Any, Any]:
    model, processor = attached(config=toy_config(local_vpp=replace(TOY_LOCAL, fusion=direction)))
    if not fresh:
        torch.manual_seed(1)
        nn.init.normal_(model.vpp.local_vpp.fusion.to_output)
    return model, processor


@with_fusion
@both_directions
class TestOnAHost:
    def test_a_fresh_fusion_is_concatenation(self, direction: Direction) -> None:
        model, processor = fused_model(direction, fresh=True)
        inputs = inputs_for(processor, [2, 0, 1])
        beside, _ = attached()
        beside.vpp.load_state_dict(model.vpp.state_dict(), strict=False)

        assert torch.equal(model(**inputs).logits, beside(**inputs).logits)

    def test_a_trained_one_is_not(self, direction: Direction) -> None:
        model, processor = fused_model(direction)
        inputs = inputs_for(processor, [1])
        before = model(**inputs).logits
        nn.init.zeros_(model.vpp.local_vpp.fusion.to_output)
        assert not torch.allclose(before, model(**inputs).logits)

    def test_a_batch_is_its_rows(self, direction: Direction) -> None:
        model, processor = fused_model(direction)
        both = model(**inputs_for(processor, [2, 1], side="right")).logits
        alone = model(**inputs_for(processor, [2])).logits
        torch.testing.assert_close(both[:1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)

    def test_every_parameter_learns(self, direction: Direction) -> None:
        model, processor = fused_model(direction)
        inputs = inputs_for(processor, [2, 1])
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        silent = [n for n, p in model.vpp.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []

    @pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {}], ids=str)
    def test_generation_with_and_without_a_cache(self, direction: Direction, how: dict[str, int]) -> None:
        model, processor = fused_model(direction)
        inputs = inputs_for(processor, [2, 1])
        asked = {**inputs, **how, "max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(**asked), model.generate(**asked, use_cache=False))

    def test_generation_answers_what_forward_says(self, direction: Direction) -> None:
        """generate encodes images before it calls forward; the fusion must see them all the same."""
        model, processor = fused_model(direction)
        inputs = inputs_for(processor, [1, 2])
        found = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        torch.testing.assert_close(found.logits[0], model(**inputs).logits[:, -1])

    def test_detaching_leaves_no_trace(self, direction: Direction) -> None:
        model = tiny_llava()
        before = fingerprint(model)
        attach_vpp(model, toy_config(local_vpp=replace(TOY_LOCAL, fusion=direction)))
        assert_same(fingerprint(detach_vpp(model)), before)

    def test_disabled_it_is_the_host(self, direction: Direction) -> None:
        model, processor = fused_model(direction)
        with vpp_disabled(model):
            inputs = inputs_for(processor, [1])
            assert torch.equal(model(**inputs).logits, tiny_llava()(**inputs).logits)

    def test_copies_and_pickles(self, direction: Direction) -> None:
        model, processor = fused_model(direction)
        inputs = inputs_for(processor, [1])
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(**inputs).logits, model(**inputs).logits)

    def test_saves_and_loads(self, direction: Direction, tmp_path: Path) -> None:
        model, processor = fused_model(direction)
        save_vpp(model, tmp_path)
        loaded = attach_vpp(tiny_llava(), tmp_path)
        loaded.vpp.bind_token(model.vpp.token_id)
        inputs = inputs_for(processor, [1])
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        with pytest.raises(VPPError, match=f"local_vpp.fusion is {direction} there and concatenate here"):
            load_vpp(attached()[0], tmp_path)

    def test_through_peft(self, direction: Direction) -> None:
        model, processor = fused_model(direction)
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"]))
        assert torch.equal(wrapped(**inputs).logits, expected)
        wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
        learned = [n for n, p in wrapped.named_parameters() if ".fusion." in n and p.grad is not None]
        assert len(learned) == 4

    @pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing_changes_nothing(self, direction: Direction, reentrant: bool) -> None:
        gradients = []
        for checkpointed in (False, True):
            model, processor = fused_model(direction)
            model.train()
            if checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            inputs = inputs_for(processor, [2, 1])
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
            gradients.append(model.vpp.local_vpp.fusion.to_query.grad)
        torch.testing.assert_close(*gradients)

    def test_in_low_precision(self, direction: Direction) -> None:
        model, processor = attached(tiny_llava().bfloat16(), toy_config(local_vpp=replace(TOY_LOCAL, fusion=direction)))
        nn.init.normal_(model.vpp.local_vpp.fusion.to_output)
        assert model(**inputs_for(processor, [1], dtype=torch.bfloat16)).logits.isfinite().all()


@with_fusion
@both_directions
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_vl"])
def test_other_families_with_one_projector(family: str, direction: Direction) -> None:
    """Images of different sizes have different numbers of tokens there."""
    config = toy_config(local_vpp=replace(TOY_LOCAL, fusion=direction))
    model, processor = attached_family(family, config)
    inputs = family_inputs(processor, [2, 1])
    before = model(**inputs).logits
    nn.init.normal_(model.vpp.local_vpp.fusion.to_output)

    after = model(**inputs)

    assert not torch.allclose(before, after.logits)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 2


@with_fusion
def test_hosts_without_one_projector_are_refused() -> None:
    config = VPPConfig(local_vpp=replace(TOY_LOCAL, fusion="image-attends"))
    model = tiny_llava()
    bare = replace(describe(model), projectors=())

    with pytest.raises(VPPError, match=r"needs a host .* 'llava' names 0: use 'concatenate'"):
        attach_vpp(model, config, adapter=bare)


@with_fusion
def test_concatenation_hooks_the_language_model_not_at_all() -> None:
    model, _ = attached()
    assert not model.get_decoder()._forward_pre_hooks
    assert not host_state(model).fuses


@with_fusion
def test_a_call_that_passes_the_fusion_by_is_an_error() -> None:
    """torch.compile does so where it has compiled a model without a fusion before."""
    model, processor = fused_model("image-attends")
    model.get_decoder()._forward_pre_hooks.clear()

    with pytest.raises(VPPError, match=r"did not pass the fusion: torch.compile .* torch._dynamo.reset"):
        model(**inputs_for(processor, [1]))


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(VPPError, match="must be a multiple of its 8 heads, but is 12"):
        CrossAttention(HIDDEN, 12, direction="image-attends", num_queries=QUERIES)
