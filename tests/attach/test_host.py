"""The attached host does what an ordinary host does whose placeholder embeddings are the local prompt's features."""

import copy
import inspect
import io
import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlavaForConditionalGeneration, LogitsProcessor
from transformers.cache_utils import StaticCache

from tests.attach.reference_host import twin_of
from tests.tiny import FULL, TOY_GLOBAL, attached, cached, inputs_for, tiny_llava, tiny_processor, toy_config
from vpp_plugins import UntrainedVPPWarning, VPPError, VPPProcessor, attach_vpp, detach_vpp, vpp_disabled
from vpp_plugins.attach.host import attached_class
from vpp_plugins.attach.vocabulary import NeverTokens
from vpp_plugins.plugins.registry import describe

pytestmark = pytest.mark.usefixtures("toy")

LAYOUTS = [[1], [2, 1], [0, 2, 1], [0, 0]]
DECODERS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams with several returns": {"num_beams": 3, "num_return_sequences": 2},
    "sampling with several returns": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}


def answer(model: Any, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    """New tokens only; sampling starts from the same random state every time."""
    torch.manual_seed(3)
    return model.generate(**inputs, max_new_tokens=5, **kwargs)[:, inputs["input_ids"].shape[1] :]


class TestEqualsAnUnpatchedTwin:
    @pytest.mark.parametrize("vocabulary", [32, FULL], ids=["spare row", "grown"])
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    @torch.no_grad()
    def test_forward_with_labels(self, layout: list[int], side: str, vocabulary: int) -> None:
        model, processor = attached(tiny_llava(vocabulary=vocabulary))
        inputs = inputs_for(processor, layout, side=side)
        twin, theirs = twin_of(model, inputs)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.vpp.token_id, -100)
        real = inputs["attention_mask"].bool()

        ours, expected = model(**inputs, labels=labels), twin(**theirs, labels=labels)

        assert torch.equal(ours.logits[real], expected.logits[real])
        assert torch.equal(ours.loss, expected.loss)

    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    @pytest.mark.parametrize("decoder", list(DECODERS))
    def test_generate(self, decoder: str, layout: list[int]) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, layout)
        twin, theirs = twin_of(model, inputs)

        ours = answer(model, inputs, **DECODERS[decoder])

        assert torch.equal(ours, answer(twin, theirs, suppress_tokens=[model.vpp.token_id], **DECODERS[decoder]))

    def test_the_comparison_above_would_see_a_difference(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        twin, theirs = twin_of(model, inputs)
        inputs["vpp_pixel_values"] = inputs["vpp_pixel_values"].flip(-1)

        assert not torch.equal(model(**inputs).logits, twin(**theirs).logits)

    @pytest.mark.parametrize("side", ["left", "right"])
    @torch.no_grad()
    def test_bfloat16(self, side: str) -> None:
        model, processor = attached(tiny_llava().to(torch.bfloat16))
        inputs = inputs_for(processor, [2, 1], side=side, dtype=torch.bfloat16)
        twin, theirs = twin_of(model, inputs)
        real = inputs["attention_mask"].bool()

        assert torch.equal(model(**inputs).logits[real], twin(**theirs).logits[real])
        assert {p.dtype for p in model.vpp.parameters()} == {torch.bfloat16}

    def test_prompt_lookup_decoding(self) -> None:
        """Assisted decoding copies candidates from the prompt, placeholders among them."""
        model, processor = attached()
        inputs = inputs_for(processor, [2])
        twin, theirs = twin_of(model, inputs)

        ours = answer(model, inputs, prompt_lookup_num_tokens=3)

        assert torch.equal(ours, answer(twin, theirs, prompt_lookup_num_tokens=3, suppress_tokens=[model.vpp.token_id]))
        assert torch.equal(ours, answer(model, inputs))

    @torch.no_grad()
    def test_a_second_forward_on_the_cache_of_the_first(self) -> None:
        model, processor = attached()
        first, second = inputs_for(processor, [1]), inputs_for(processor, [2])
        both = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
        twin, theirs = twin_of(
            model,
            {"input_ids": both} | {k: torch.cat([first[k], second[k]]) for k in ("pixel_values", "vpp_pixel_values")},
        )

        cache = model(**first, use_cache=True).past_key_values
        second["attention_mask"] = torch.ones_like(both)
        ours = model(**second, **cached(cache)).logits

        torch.testing.assert_close(ours, twin(**theirs).logits[:, -second["input_ids"].shape[1] :])

    @pytest.mark.parametrize("given", ["the whole conversation", "only what is new"])
    def test_generate_continues_from_a_cache(self, given: str) -> None:
        """generate tells by the mask whether it is given the whole conversation again; images are new ones only."""
        model, processor = attached()
        first, second = inputs_for(processor, [1]), inputs_for(processor, [2])
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(**first, **cached(cache), use_cache=True)
        whole = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
        images = {k: second[k] for k in ("pixel_values", "vpp_pixel_values")}
        everything = {k: torch.cat([first[k], second[k]]) for k in images}
        mask = torch.ones_like(whole)

        ids = whole if given == "the whole conversation" else second["input_ids"]

        ours = answer(model, {"input_ids": ids, "attention_mask": mask, **images}, **cached(cache))

        assert torch.equal(ours, answer(model, {"input_ids": whole, "attention_mask": mask, **everything}))

    @torch.no_grad()
    def test_a_given_static_cache(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2])
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)

        assert torch.equal(answer(model, inputs, **cached(cache)), answer(model, inputs))

    @torch.no_grad()
    def test_hidden_states_and_attentions_are_recorded(self) -> None:
        """transformers decides by the class what it records."""
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        twin, theirs = twin_of(model, inputs)
        wanted = {"output_hidden_states": True, "output_attentions": True}

        ours, expected = model(**inputs, **wanted), twin(**theirs, **wanted)

        assert len(ours.hidden_states) == len(expected.hidden_states) > 0
        assert torch.equal(ours.hidden_states[-1], expected.hidden_states[-1])
        assert len(ours.attentions) == len(expected.attentions)


class TestThePlaceholderIsNeverAnAnswer:
    @pytest.mark.parametrize("decoder", ["greedy", "beams", "sampling with several returns"])
    def test_where_the_model_wants_it_most(self, decoder: str) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        bias = torch.zeros(32)
        bias[model.vpp.token_id] = 1e4
        model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))
        assert model(**inputs).logits[0, -1].argmax() == model.vpp.token_id

        assert model.vpp.token_id not in answer(model, inputs, **DECODERS[decoder])

    def test_also_in_a_text_without_images(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [0])
        model.lm_head.weight.data[model.vpp.token_id] = (
            1e4 * model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        )

        assert model.vpp.token_id not in answer(model, inputs)[:, :1]

    @pytest.mark.parametrize("local", [True, False], ids=["both prompts", "global prompt only"])
    def test_nor_is_a_token_that_the_adapter_rules_out(self, local: bool) -> None:
        host = tiny_llava()
        ruled_out = replace(describe(host), never_ids=(7, 8))
        config = toy_config() if local else toy_config(local_vpp=None)
        model = attach_vpp(host, config, adapter=ruled_out)
        model.vpp.trained = True
        processor = VPPProcessor(tiny_processor(), model)
        bias = torch.zeros(32)
        bias[[7, 8]] = 1e4
        model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))

        assert not torch.isin(answer(model, inputs_for(processor, [1])), torch.tensor([7, 8])).any()
        with vpp_disabled(model):  # the host's own answer
            assert torch.isin(answer(model, inputs_for(processor, [1])), torch.tensor([7, 8])).all()

    def test_the_users_own_processors_and_suppressed_tokens_stay(self) -> None:
        class Only(LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                return scores.masked_fill(torch.arange(scores.shape[-1]) != 7, -1e9)

        model, processor = attached()
        inputs = inputs_for(processor, [1])

        assert (answer(model, inputs, logits_processor=[Only()]) == 7).all()
        assert 7 not in answer(model, inputs, suppress_tokens=[7])

    def test_where_the_host_loses_the_logits_processors_on_the_way(self) -> None:
        """Janus passes on its settings and arguments, but not the processors that generate was given."""

        class Losing(LlavaForConditionalGeneration):
            def generate(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
                return super().generate(*args, **kwargs)

        host = tiny_llava()
        host.__class__ = Losing
        model, processor = attached(host)
        bias = torch.zeros(32)
        bias[model.vpp.token_id] = 1e4
        model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))

        assert model.vpp.token_id not in answer(model, inputs_for(processor, [1]))

    def test_in_logits_of_several_places_at_once(self) -> None:
        """Diffusion models answer a block at a time."""
        scores = NeverTokens([1])(torch.zeros(1, 1), torch.zeros(1, 3, 2))

        assert scores[..., 1].isinf().all()
        assert not scores[..., 0].isinf().any()

    def test_a_head_with_fewer_rows_than_the_embedding(self) -> None:
        scores = torch.zeros(1, 5)

        assert torch.equal(NeverTokens([5])(torch.zeros(1, 1), scores), scores)
        assert NeverTokens([5, 4])(torch.zeros(1, 1), scores)[0, 4] == -torch.inf
        assert not scores.isinf().any()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
class TestGradients:
    @pytest.mark.parametrize("frozen", [False, True], ids=["host trains", "host frozen"])
    @pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
    def test_reach_every_prompt_parameter(self, reentrant: bool | None, frozen: bool) -> None:
        expected = self.gradients(None, frozen=False)

        found = self.gradients(reentrant, frozen=frozen)

        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert gradient.abs().sum() > 0, name
            torch.testing.assert_close(gradient, expected[name])

    def gradients(self, reentrant: bool | None, *, frozen: bool) -> dict[str, torch.Tensor]:
        model = tiny_llava()
        model.requires_grad_(not frozen)
        model, processor = attached(model.train())
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            assert any(module.__dict__.get("gradient_checkpointing") for module in model.model.modules())
        inputs = inputs_for(processor, [2, 1], side="right")
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        return {name: p.grad for name, p in model.vpp.named_parameters()}


class TestWrongCalls:
    def test_fewer_images_than_placeholders(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        inputs["vpp_pixel_values"] = inputs["vpp_pixel_values"][:2]

        with pytest.raises(
            VPPError, match=r"hold 12 <\|vpp\|> placeholders, but .* hold 2 images that need 8 \(4 each\)"
        ):
            model(**inputs)
        with pytest.raises(VPPError, match="hold 12"):
            model.generate(**inputs)

    def test_images_without_placeholders(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        inputs["input_ids"] = inputs["input_ids"][inputs["input_ids"] != model.vpp.token_id][None]

        with pytest.raises(VPPError, match=r"hold 0 <\|vpp\|> placeholders, but .* hold 1 images that need 4"):
            model(**inputs)

    def test_placeholders_without_images(self) -> None:
        model, processor = attached()
        ids = inputs_for(processor, [1])["input_ids"]
        text_only = ids[ids != 4][None]

        with pytest.raises(VPPError, match=r"hold 4 <\|vpp\|> placeholders, but .* hold 0 images that need 0"):
            model(input_ids=text_only)
        with pytest.raises(VPPError, match="hold 4"):
            model(input_ids=text_only, vpp_pixel_values=torch.zeros(0, 3, 64, 64))

    @pytest.mark.parametrize("how", ["keyword", "positional", "generate"])
    def test_host_inputs_with_images_on_a_local_prompt(self, how: str) -> None:
        model, processor = attached()
        with vpp_disabled(model):
            inputs = inputs_for(processor, [1])
        calls = {
            "keyword": lambda: model(**inputs),
            "positional": lambda: model(inputs["input_ids"], inputs["pixel_values"]),
            "generate": lambda: model.generate(**inputs),
        }

        with pytest.raises(
            VPPError, match=r"images came without vpp_pixel_values, .* 4 tokens per image: .*VPPProcessor"
        ):
            calls[how]()

    def test_host_inputs_with_images_on_a_global_prompt_alone(self) -> None:
        model, processor = attached(config=toy_config(local_vpp=None))
        inputs = inputs_for(processor, [2, 1])
        assert "vpp_pixel_values" not in inputs
        twin, theirs = twin_of(model, inputs)

        assert torch.equal(model(**inputs).logits, twin(**theirs).logits)
        assert torch.equal(answer(model, inputs), answer(twin, theirs))
        with pytest.raises(VPPError, match="this model has no local prompt: leave them out"):
            model(**inputs, vpp_pixel_values=torch.zeros(3, 3, 64, 64))

    def test_precomputed_image_features(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        with vpp_disabled(model):
            features = {"image": model.model.get_image_features(inputs.pop("pixel_values"))}

        with pytest.raises(VPPError, match="precomputed image features bypass the vision encoder"):
            model(**inputs, mm_encoder_outputs=features)

    @pytest.mark.parametrize("how", ["keyword", "configuration", "positional configuration", "model"])
    def test_chunked_prefill(self, how: str) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        ids, config = inputs.pop("input_ids"), GenerationConfig(prefill_chunk_size=4, max_new_tokens=2)
        if how == "model":
            model.generation_config.prefill_chunk_size = 4
        calls = {
            "keyword": lambda: model.generate(ids, **inputs, prefill_chunk_size=4),
            "configuration": lambda: model.generate(ids, **inputs, generation_config=config),
            "positional configuration": lambda: model.generate(ids, config, **inputs),
            "model": lambda: model.generate(ids, **inputs),
        }

        with pytest.raises(VPPError, match="prefill_chunk_size cuts the prompt between placeholders: leave it unset"):
            calls[how]()

    def test_embeddings_instead_of_ids(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        embedded = model.get_input_embeddings()(inputs.pop("input_ids"))

        with pytest.raises(VPPError, match="vpp_pixel_values need input_ids"):
            model(inputs_embeds=embedded, **inputs)

    def test_a_model_that_was_not_told_the_token(self) -> None:
        _, processor = attached()
        inputs = inputs_for(processor, [1])
        model = attach_vpp(tiny_llava(), toy_config())

        with pytest.raises(VPPError, match=r"does not know the id of <\|vpp\|>: make a VPPProcessor"):
            model(**inputs)
        model.vpp.trained = True
        model.vpp.bind_token(processor.tokenizer.convert_tokens_to_ids("<|vpp|>"))
        assert model(**inputs).logits.isfinite().all()

    @pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 60)], ids=str)
    def test_images_of_a_shape_that_no_detector_takes(self, shape: tuple[int, ...]) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1]) | {"vpp_pixel_values": torch.ones(shape)}

        with pytest.raises(
            VPPError, match=r"must be normalised floats \[images, 3, height, width\] with sides in multiples of 32, but"
        ):
            model(**inputs)

    def test_images_in_a_call_within_another(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])

        class Asks(LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                return scores + 0 * model(**inputs).logits[:, -1]

        with pytest.raises(VPPError, match="came in a call within another call of the same model"):
            model.generate(**inputs, max_new_tokens=2, logits_processor=[Asks()])

    def test_text_in_a_call_within_another(self) -> None:
        model, processor = attached()
        inputs, text = inputs_for(processor, [1]), inputs_for(processor, [0])
        expected, alone = answer(model, inputs), model(**text).logits
        seen = []

        class Asks(LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                seen.append(model(**text).logits)
                return scores

        assert torch.equal(answer(model, inputs, logits_processor=[Asks()]), expected)
        assert all(torch.equal(logits, alone) for logits in seen)

    def test_the_next_call_is_not_harmed(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits

        with pytest.raises(VPPError):
            model(**inputs | {"vpp_pixel_values": inputs["vpp_pixel_values"].repeat(2, 1, 1, 1)})
        with pytest.raises(AttributeError):
            model(**inputs, **cached("nonsense"))

        assert torch.equal(model(**inputs).logits, expected)


class TestCalls:
    def test_positional_ids(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits
        ids, pixels = inputs.pop("input_ids"), inputs.pop("pixel_values")

        assert torch.equal(model(ids, pixels, **inputs).logits, expected)
        assert torch.equal(model.forward(ids, pixels, **inputs).logits, expected)

    def test_positional_arguments_of_generate(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        expected = model.generate(**inputs, max_new_tokens=3)
        ids, config = inputs.pop("input_ids"), copy.deepcopy(model.generation_config)
        config.max_new_tokens = 3

        assert torch.equal(model.generate(ids, config, **inputs), expected)
        assert torch.equal(model.generate(inputs=ids, generation_config=config, **inputs), expected)

    def test_text_alone_is_the_hosts_own(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [0, 0])

        assert torch.equal(model(**inputs).logits, tiny_llava()(**inputs).logits)

    def test_signatures_show_the_new_arguments(self) -> None:
        """Trainer keeps the columns, and generate the arguments, that a signature names."""
        ours, theirs = attached_class(LlavaForConditionalGeneration), LlavaForConditionalGeneration

        for name in ("forward", "generate"):
            found, expected = (inspect.signature(getattr(cls, name)).parameters for cls in (ours, theirs))
            assert set(found) - set(expected) == {"vpp_pixel_values", "vpp_tile_boxes"}
            assert [p for p in found if p in expected] == list(expected)
            assert list(found)[-1] == list(expected)[-1]

    def test_the_class_goes_by_the_hosts_name(self) -> None:
        ours = attached_class(LlavaForConditionalGeneration)

        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(ours, name) == getattr(LlavaForConditionalGeneration, name)
        assert str(ours) == str(LlavaForConditionalGeneration)
        assert ours is attached_class(LlavaForConditionalGeneration)

    def test_so_does_the_class_of_a_host_that_someone_wrote_in_a_function(self) -> None:
        class Mine(LlavaForConditionalGeneration):
            """A host of one's own."""

        ours = attached_class(Mine)

        assert (ours.__name__, ours.__qualname__, ours.__module__) == (
            Mine.__name__,
            Mine.__qualname__,
            Mine.__module__,
        )
        assert str(ours) == str(Mine)

    def test_untrained_prompts_warn_once(self) -> None:
        model, processor = attached(trained=False)
        text, inputs = inputs_for(processor, [0]), inputs_for(processor, [1])

        model(**text)
        with vpp_disabled(model):
            model(**inputs_for(processor, [1]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(**inputs)
            model(**inputs)
            model.generate(**inputs, max_new_tokens=1)

        assert [w.category for w in caught] == [UntrainedVPPWarning]
        assert "untrained, so it cannot help yet: load weights with load_vpp" in str(caught[0].message)

    def test_generate_warns_too(self) -> None:
        model, processor = attached(trained=False)

        with pytest.warns(UntrainedVPPWarning, match="set model.vpp.trained = True"):
            model.generate(**inputs_for(processor, [1]), max_new_tokens=1)

    def test_trained_prompts_do_not_warn(self) -> None:
        model, processor = attached(trained=False)
        assert model.vpp.trained is False
        model.vpp.trained = True

        model(**inputs_for(processor, [1]))  # a warning is an error here


class TestResize:
    def test_rows_that_the_user_added_are_the_hosts_own(self) -> None:
        """They were cut away with the placeholder's row: in a disabled block, in what was saved, and at detaching."""
        model, processor = attached(tiny_llava(vocabulary=FULL))
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits

        model.resize_token_embeddings(FULL + 9, mean_resizing=False)

        torch.testing.assert_close(model(**inputs).logits[..., : FULL + 1], expected)
        with vpp_disabled(model):
            assert len(model.get_input_embeddings().weight) == FULL + 9
        assert len(detach_vpp(model).get_input_embeddings().weight) == FULL + 9

    def test_to_the_same_size_changes_nothing(self) -> None:
        model, _ = attached(tiny_llava(vocabulary=FULL))

        model.resize_token_embeddings(FULL + 1)
        model.resize_token_embeddings()

        assert len(detach_vpp(model).get_input_embeddings().weight) == FULL

    @pytest.mark.parametrize("rows", [FULL, FULL + 19], ids=["grown", "spare row"])
    def test_may_not_take_the_placeholders_row(self, rows: int) -> None:
        model, processor = attached(tiny_llava(vocabulary=rows))
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits

        with pytest.raises(VPPError, match=rf"{FULL} rows has none for <\|vpp\|>, whose id is {FULL}: resize"):
            model.resize_token_embeddings(new_num_tokens=FULL)
        assert torch.equal(model(**inputs).logits, expected)

    def test_is_refused_in_a_disabled_block(self) -> None:
        model, _ = attached(tiny_llava(vocabulary=FULL))

        with vpp_disabled(model), pytest.raises(VPPError, match="cannot be resized inside a vpp_disabled block"):
            model.resize_token_embeddings(40)


class TestCopies:
    @pytest.mark.parametrize("vocabulary", [32, FULL], ids=["spare row", "grown"])
    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
    def test_are_whole_and_independent(self, way: str, vocabulary: int) -> None:
        model, processor = attached(tiny_llava(vocabulary=vocabulary))
        inputs = inputs_for(processor, [2, 1])

        # before any forward: LLaVA's first one leaves closures of transformers on the host, which do not pickle
        twin = {"deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _saved}[way](model)
        expected = model(**inputs).logits

        assert type(twin) is type(model)
        assert torch.equal(twin(**inputs).logits, expected)
        twin.vpp.local_vpp.projector[2].bias.data += 1
        assert not torch.equal(twin(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)

    def test_of_prompts_that_only_act_globally(self) -> None:
        model, processor = attached(config=toy_config(local_vpp=None, global_vpp=TOY_GLOBAL))
        inputs = inputs_for(processor, [1])

        twin = copy.deepcopy(model)
        expected = model(**inputs).logits
        twin.vpp.global_vpp.prompt.data += 5

        assert torch.equal(model(**inputs).logits, expected)
        assert not torch.equal(twin(**inputs).logits, expected)

    def test_state_dict_holds_host_and_prompts(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        names = set(tiny_llava().state_dict())
        other, _ = attached(tiny_llava(seed=5), toy_config(seed=5))

        state = model.state_dict()
        other.load_state_dict(state)

        assert {name for name in state if not name.startswith("vpp.")} == names
        assert {name.removeprefix("vpp.") for name in state if name.startswith("vpp.")} == set(model.vpp.state_dict())
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)


def _pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def _saved(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)
