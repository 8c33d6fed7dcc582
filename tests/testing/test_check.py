"""The conformance suite holds for honest adapters, and names what a mistaken one breaks."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import FULL, attached, inputs_for, tiny_llava, tiny_processor
from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPError, attach_vpp
from vpp_plugins.attach import hooks
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.plugins.registry import describe, manager
from vpp_plugins.prompts.global_vpp import Overlay
from vpp_plugins.prompts.resample import Window
from vpp_plugins.testing import (
    BrokenPromises,
    ToyGenerator,
    assert_same,
    check_adapter,
    fingerprint,
    sample_pixels,
    toy_generator,
)
from vpp_plugins.testing.check import PROMISES
from vpp_plugins.testing.fixture import Fixture
from vpp_plugins.testing.promises import Skipped, reference_answer
from vpp_plugins.testing.reference_host import ReferenceHost

Layout = Callable[[Tensor, Overlay, Sequence[Window] | None, Mapping[str, Any]], Tensor]


def broken(adapter: Backbone | None = None, **arguments: Any) -> dict[str, str]:
    """What the suite finds broken of a tiny LLaVA that is described in this way."""
    with pytest.raises(BrokenPromises) as caught:
        check_adapter(tiny_llava(), tiny_processor(), adapter=adapter, **arguments)
    return caught.value.report.broken


def described(**changes: Any) -> Backbone:
    return replace(describe(tiny_llava()), **changes)


class TestHonest:
    @pytest.mark.parametrize("side", [{}, {"tied": True}, {"seed": 5}], ids=str)
    def test_every_promise_holds(self, side: dict[str, Any]) -> None:
        report = check_adapter(tiny_llava(**side), tiny_processor())

        assert report.held == list(PROMISES)
        assert (report.host, report.adapter) == ("LlavaForConditionalGeneration", "llava")
        assert not report.skipped
        assert not report.broken
        assert str(report) == "LlavaForConditionalGeneration with the adapter 'llava': 14 promises hold"

    def test_a_vocabulary_that_has_to_grow(self) -> None:
        """Its size is what the tokenizer counts to, so that the placeholder finds no spare row."""
        model, processor = tiny_llava(vocabulary=FULL + 20), tiny_processor()
        processor.tokenizer.add_tokens([f"word{i}" for i in range(20)])

        assert check_adapter(model, processor).held == list(PROMISES)

    def test_the_model_and_the_processor_stay_as_they_are(self) -> None:
        model, processor = tiny_llava().train(), tiny_processor()
        before, words = fingerprint(model), len(processor.tokenizer)
        state = torch.get_rng_state()

        check_adapter(model, processor)

        assert_same(fingerprint(model), before)
        assert len(processor.tokenizer) == words
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
        assert not [name for name, _ in manager().list_name_plugin() if "toy" in name]

    def test_bfloat16(self) -> None:
        model = tiny_llava().to(torch.bfloat16)
        with toy_generator() as name:
            inputs = ready_inputs(name)
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)

        report = check_adapter(model, inputs=inputs, token_id=13)

        assert set(PROMISES) - set(report.held) == {"processor"}

    def test_ready_inputs(self) -> None:
        """For hosts without a processor at hand; how many placeholders an image has is counted."""
        with toy_generator() as name:
            inputs = ready_inputs(name, queries=3)

        report = check_adapter(tiny_llava(), inputs=inputs, token_id=13)

        assert report.skipped == {"processor": "ready inputs were given instead of a processor"}
        assert len(report.held) == len(PROMISES) - 1

    @pytest.mark.parametrize("kept", ["global_vpp", "local_vpp"])
    def test_one_prompt_alone(self, kept: str) -> None:
        local = LocalVPPConfig(num_queries=2, generator="toy for tests", image_size=64)
        prompts = {"global_vpp": GlobalVPPConfig(size=32, border=4), "local_vpp": local}
        config = VPPConfig(**{name: prompt if name == kept else None for name, prompt in prompts.items()})

        report = check_adapter(tiny_llava(), tiny_processor(), config=config, generate=False)

        assert ("axes on the pixels" in report.skipped) == (kept == "local_vpp")

    def test_a_host_on_whose_pixels_the_axes_cannot_act(self) -> None:
        report = check_adapter(tiny_llava(), tiny_processor(), adapter=described(vision_encoders=()))

        assert report.skipped == {"axes on the pixels": "the adapter names no vision encoder"}

    def test_without_generate(self) -> None:
        report = check_adapter(tiny_llava(), tiny_processor(), generate=False)

        assert set(report.skipped) == {name for name in PROMISES if name.startswith("generate")}
        assert "skipped: generate, greedy (not asked for)" in str(report)

    def test_what_the_host_cannot_do_itself_is_skipped(self) -> None:
        class NoBeams(type(tiny_llava())):  # type: ignore[misc]
            def generate(self, *args: Any, num_beams: int = 1, **kwargs: Any) -> Any:
                if num_beams > 1:
                    raise NotImplementedError("no beams here\nand a long story")
                return super().generate(*args, **kwargs)

        model = tiny_llava()
        model.__class__ = NoBeams

        report = check_adapter(model, tiny_processor())

        assert report.skipped["generate, beam search"] == (
            "the bare host itself fails: NotImplementedError: no beams here"
        )
        assert "does not pickle" in report.skipped["copies"]  # a class that is written inside a function


def ready_inputs(generator: str, queries: int = 2) -> dict[str, Tensor]:
    local = LocalVPPConfig(num_queries=queries, generator=generator, image_size=64)
    model, processor = attached(config=VPPConfig(global_vpp=None, local_vpp=local))
    assert model.vpp.token_id == 13
    return {**inputs_for(processor, [2, 1]), "vpp_pixel_values": sample_pixels(3)}


def no_axes(pixels: Tensor, overlay: Overlay, windows: Sequence[Window] | None, call: Mapping[str, Any]) -> Tensor:
    return pixels


def wider(pixels: Tensor, overlay: Overlay, windows: Sequence[Window] | None, call: Mapping[str, Any]) -> Tensor:
    return overlay.blend(pixels, windows).double()


class TestMistaken:
    @pytest.mark.parametrize(
        ("changes", "promise", "sentence"),
        [
            ({"projectors": ("model.merger",)}, "description", "projectors names 'model.merger', which the host does"),
            (
                {"frame": "image"},
                "description",
                "frame is 'image', but the format 'llava' measures boxes on",
            ),
            ({"box_format": "lava"}, "description", r"no box codec is called 'lava'. Did you mean 'llava'"),
            ({"image_arguments": ("pictures",)}, "description", r"none of image_arguments ['pictures'] is among"),
            ({"never_ids": (-3,)}, "description", "never_ids holds -3"),
            (
                {"defaults": VPPConfig(global_vpp=GlobalVPPConfig(unit="0-1000"))},
                "description",
                "the default axes count in another unit than boxes of the format 'llava', which is 0-1",
            ),
            ({"pixel_layout": no_axes}, "axes on the pixels", "the layout left the pixels as they were"),
            ({"pixel_layout": wider}, "axes on the pixels", "the layout made torch.float64"),
            (
                {"vision_encoders": ("model.vision_tower.unused",)},
                "axes on the pixels",
                "were not called",
            ),
        ],
    )
    def test_a_description_that_is_not_so(self, changes: dict[str, Any], promise: str, sentence: str) -> None:
        model, adapter = tiny_llava(), described(**changes)
        model.model.vision_tower.unused = nn.Identity()

        with pytest.raises(BrokenPromises) as caught:
            check_adapter(model, tiny_processor(), adapter=adapter, generate=False)

        assert sentence in caught.value.report.broken[promise]
        assert f"BROKEN: {promise}: " in str(caught.value)

    def test_a_width_that_is_not_the_embeddings(self) -> None:
        found = broken(described(hidden_size=20), generate=False)

        assert found["description"] == "hidden_size is 20, but tokens embed to 24"
        assert "forward" in found

    def test_an_encoder_that_the_host_does_not_have_cannot_be_attached(self) -> None:
        with pytest.raises(VPPError, match=r"names the vision encoder 'model\.tower', which this Llava"):
            check_adapter(tiny_llava(), tiny_processor(), adapter=described(vision_encoders=("model.tower",)))

    def test_a_layout_that_is_a_closure_does_not_pickle(self) -> None:
        layout: Layout = lambda pixels, overlay, windows, call: overlay.blend(pixels, windows)  # noqa: E731

        assert list(broken(described(pixel_layout=layout), generate=False)) == ["copies"]

    def test_features_in_the_wrong_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = hooks._feature_index
        monkeypatch.setattr(hooks, "_feature_index", lambda mask, rows, count: count - 1 - right(mask, rows, count))

        found = broken()

        assert {"forward", "forward with labels", "generate, greedy"} <= set(found)
        assert "logits of the batch padded on the left differ at" in found["forward"]

    def test_axes_that_are_missing_in_the_attached_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hooks, "overlay", lambda encoder, args, kwargs: None)

        found = broken(generate=False)

        assert {"forward", "gradients"} <= set(found)
        assert "so the global prompt did not count" in found["gradients"]

    def test_a_generator_without_gradients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = ToyGenerator.forward
        monkeypatch.setattr(ToyGenerator, "forward", lambda self, pixels, mask=None: right(self, pixels, mask).detach())

        assert list(broken(generate=False)) == ["gradients"]

    def test_a_host_that_is_not_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = hooks.remove

        def forgets(host: Any) -> None:
            right(host)
            host.get_input_embeddings().left_behind = 1

        monkeypatch.setattr(hooks, "remove", forgets)

        assert "attributes" in broken(generate=False)["detached"]


class TestArguments:
    def test_an_attached_model(self) -> None:
        with toy_generator() as name:
            model = attach_vpp(tiny_llava(), VPPConfig(local_vpp=LocalVPPConfig(generator=name)))

            with pytest.raises(VPPError, match="check_adapter attaches by itself: give it the bare host"):
                check_adapter(model, tiny_processor())

    @pytest.mark.parametrize("arguments", [{}, {"processor": tiny_processor(), "inputs": {}}], ids=["neither", "both"])
    def test_processor_or_inputs(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(VPPError, match="needs either the host's processor or ready inputs, and not both"):
            check_adapter(tiny_llava(), **arguments)

    def test_too_few_free_ids(self) -> None:
        with toy_generator() as name:
            inputs = ready_inputs(name, queries=9)

        with pytest.raises(AssertionError, match=r"needs 27 token ids that mean nothing to the model, but only \d+ of"):
            check_adapter(tiny_llava(), inputs=inputs, token_id=13)


class TestFingerprint:
    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda m: m.lm_head.weight.data.add_(1), "the weight 'lm_head.weight' differs"),
            (lambda m: m.lm_head.register_forward_hook(print), "modules of 'lm_head'"),
            (lambda m: m.lm_head.weight.requires_grad_(False), "trainable of 'lm_head.weight'"),
            (lambda m: m.add_module("more", nn.Identity()), "modules that only one of the two has: more"),
            (lambda m: setattr(m.config, "image_token_id", 9), "the configurations differ"),
        ],
    )
    def test_sees_every_kind_of_change(self, change: Callable[[Any], Any], sentence: str) -> None:
        model = tiny_llava()
        before = fingerprint(model)
        assert_same(fingerprint(copy.deepcopy(model)), before)

        change(model)

        with pytest.raises(AssertionError, match=sentence):
            assert_same(fingerprint(model), before)


@pytest.mark.parametrize(("vpp_refuses", "becomes"), [(True, Skipped), (False, VPPError)])
def test_a_refusal_is_skipped_only_where_vpp_refuses_too(vpp_refuses: bool, becomes: type[Exception]) -> None:
    def refuse(*_: Any) -> None:
        raise VPPError("the windows cannot be told apart.")

    fixture, reference = object.__new__(Fixture), object.__new__(ReferenceHost)
    reference.model = nn.Identity()
    with pytest.raises(becomes, match="told apart"):
        reference_answer(fixture, reference, refuse, refuse if vpp_refuses else lambda: "an answer")
