"""What the hooks do with the prompts of a session, and that sessions of several threads do not meet."""

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.attach.reference_host import twin_of
from tests.tiny import TOY_GLOBAL, attached, cached, inputs_for, tiny_llava, toy_config
from vpp_plugins import VPPError, detach_vpp, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.hooks import SLOT, Slot, close_session, inject, install, open_session, overlay, remove
from vpp_plugins.attach.windows import EncoderWindows
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.prompts.global_vpp import GlobalVPP
from vpp_plugins.prompts.vpp import Prompts

PLACEHOLDER = 9
BACKBONE = Backbone(adapter="mine", hidden_size=3, vision_encoders=(), box_format="llava", frame="square")


def hooked(features: torch.Tensor | None, rows: int) -> nn.Embedding:
    """A bare embedding with a slot of its own, filled as a session fills it."""
    embedding, slot = nn.Embedding(12, 3), Slot(BACKBONE.pixel_layout, BACKBONE.pixel_argument)
    install(embedding, [], slot)
    slot.prompts, slot.token_id, slot.rows = Prompts(features, None), PLACEHOLDER, rows
    return embedding


class TestInject:
    def test_puts_features_where_placeholders_stand_in_reading_order(self) -> None:
        features = torch.randn(3, 3)
        ids = torch.tensor([[0, PLACEHOLDER, 5, PLACEHOLDER], [PLACEHOLDER, 1, 2, 0], [1, 2, 3, 4]])
        embedding = hooked(features, rows=3)

        found = embedding(ids)

        expected = embedding.weight[ids].clone()
        expected[0, 1], expected[0, 3], expected[1, 0] = features
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("repeats", [1, 2, 3])
    def test_repeated_rows_share_their_prompts_features(self, repeats: int) -> None:
        """generate repeats every row next to itself for beams and several returns, whatever each has decoded since."""
        features = torch.randn(3, 3)
        ids = torch.tensor([[PLACEHOLDER, 5, PLACEHOLDER, 0], [0, 4, 0, PLACEHOLDER]])
        embedding = hooked(features, rows=2)

        found = embedding(ids.repeat_interleave(repeats, 0))

        assert torch.equal(found, embedding(ids).repeat_interleave(repeats, 0))

    def test_takes_ids_by_keyword(self) -> None:
        embedding = hooked(torch.randn(1, 3), rows=1)
        ids = torch.tensor([[0, PLACEHOLDER]])

        assert torch.equal(embedding(input=ids), embedding(ids))

    @pytest.mark.parametrize(
        "ids",
        [
            torch.tensor(PLACEHOLDER),
            torch.tensor([PLACEHOLDER, 1]),
            torch.tensor([[PLACEHOLDER], [3]]),
            torch.ones(3, 4).long(),
        ],
        ids=["one id", "a list of ids", "a step of decoding", "rows that are no multiple of the prompts"],
    )
    def test_leaves_other_look_ups_alone(self, ids: torch.Tensor) -> None:
        embedding = hooked(torch.randn(1, 3), rows=2)

        assert torch.equal(embedding(ids), embedding.weight[ids])

    def test_an_empty_slot_does_nothing(self) -> None:
        embedding = hooked(None, rows=1)
        ids = torch.tensor([[0, PLACEHOLDER]])

        assert torch.equal(embedding(ids), embedding.weight[ids])

    def test_gradients_flow_to_the_features_and_not_to_the_placeholders_row(self) -> None:
        features = torch.randn(2, 3, requires_grad=True)
        embedding = hooked(features, rows=1)

        embedding(torch.tensor([[1, PLACEHOLDER, PLACEHOLDER]])).sum().backward()

        assert torch.equal(features.grad, torch.ones(2, 3))
        assert not embedding.weight.grad[PLACEHOLDER].any()
        assert embedding.weight.grad[1].any()


def pixels_seen(model: Any) -> list[torch.Tensor]:
    """Record what reaches the vision encoder, behind the overlay."""
    seen: list[torch.Tensor] = []
    model.model.vision_tower.embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen


@pytest.mark.usefixtures("toy")
class TestOverlay:
    @pytest.mark.parametrize("how", ["forward", "generate", "beams", "no cache"])
    def test_lies_on_the_encoders_pixels(self, how: str) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        seen = pixels_seen(model)
        expected = model.vpp(None).overlay.blend(inputs["pixel_values"])
        calls: dict[str, Callable[[], Any]] = {
            "forward": lambda: model(**inputs),
            "generate": lambda: model.generate(**inputs, max_new_tokens=3),
            "beams": lambda: model.generate(**inputs, max_new_tokens=3, num_beams=2),
            "no cache": lambda: model.generate(**inputs, max_new_tokens=3, use_cache=False),
        }

        calls[how]()

        assert not torch.equal(expected, inputs["pixel_values"])
        assert seen
        for pixels in seen:  # transformers before 5.23 repeats the images for beams
            assert torch.equal(pixels, expected.repeat_interleave(len(pixels) // len(expected), 0))

    @pytest.mark.parametrize("size", [32, 48], ids=["at its size", "resampled"])
    @pytest.mark.parametrize("alone", [True, False], ids=["global alone", "both"])
    def test_gradient_is_zero_outside_the_band(self, size: int, alone: bool) -> None:
        parts: dict[str, Any] = {"local_vpp": None} if alone else {}
        model, processor = attached(
            config=toy_config(global_vpp=replace(TOY_GLOBAL, size=size, border=size // 8), **parts)
        )
        inputs = inputs_for(processor, [2, 1])

        model(**inputs, labels=inputs["input_ids"]).loss.backward()

        prompt = model.vpp.global_vpp
        band = prompt.mask.bool().expand_as(prompt.prompt)
        assert not prompt.prompt.grad[~band].any()
        assert prompt.prompt.grad[band].ne(0).float().mean() > 0.9

    def test_pixels_by_keyword(self) -> None:
        model, processor = attached()
        tower, inputs = model.model.vision_tower, inputs_for(processor, [1])
        state = host_state(model)
        state.slot.prompts = model.vpp(None)

        assert torch.equal(
            tower(pixel_values=inputs["pixel_values"]).last_hidden_state,
            tower(inputs["pixel_values"]).last_hidden_state,
        )

    def test_is_gone_between_sessions(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        model(**inputs)
        with pytest.raises(AttributeError):
            model(**inputs, **cached("nonsense"))
        seen = pixels_seen(model)

        with vpp_disabled(model):
            model.model.vision_tower(inputs["pixel_values"])

        assert torch.equal(seen[0], inputs["pixel_values"])
        assert host_state(model).slot.prompts == Prompts(None, None)


def hooks_of(model: nn.Module) -> list[Any]:
    both = (hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))
    return [hook for hooks in both for hook in hooks.values()]


@pytest.mark.usefixtures("toy")
class TestHooksMove:
    """PEFT and resizing put other modules where the hooked ones were; copies bring hooks and slots of their own."""

    @pytest.mark.parametrize("place", ["embedding", "encoder"])
    def test_to_a_copy_that_took_the_place(self, place: str) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        expected = model(**inputs).logits

        if place == "embedding":
            model.set_input_embeddings(copy.deepcopy(model.get_input_embeddings()))
        else:
            model.model.vision_tower = copy.deepcopy(model.model.vision_tower)

        assert torch.equal(model(**inputs).logits, expected)

    def test_to_a_resized_embedding(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        expected = model(**inputs).logits

        model.resize_token_embeddings(40, mean_resizing=False)

        torch.testing.assert_close(model(**inputs).logits[..., :32], expected)

    def test_leaving_nothing_where_they_were(self) -> None:
        model, processor = attached()
        old = model.get_input_embeddings()
        model.set_input_embeddings(nn.Sequential(old))
        model(**inputs_for(processor, [1]))

        assert inject not in old._forward_hooks.values()
        assert SLOT not in old.__dict__
        detach_vpp(model)
        for module in model.modules():
            assert SLOT not in module.__dict__
            assert inject not in module._forward_hooks.values()
            assert overlay not in module._forward_pre_hooks.values()
            assert not module._forward_hooks_with_kwargs
            assert not module._forward_pre_hooks_with_kwargs

    def test_remove_takes_no_other_hook(self) -> None:
        model, _ = attached()
        mine = model.lm_head.register_forward_hook(lambda *_: None)
        others = [hook for hook in hooks_of(model) if hook not in (inject, overlay, open_session, close_session)]

        remove(model)

        assert mine.id in model.lm_head._forward_hooks
        assert hooks_of(model) == others


class Gate:
    """Holds the first call that reaches the language model until it is opened, and counts the calls that got there."""

    def __init__(self, model: Any) -> None:
        self.entered, self.opened, self.second = threading.Event(), threading.Event(), threading.Event()
        model.model.language_model.register_forward_pre_hook(self._pass)

    def _pass(self, *_: Any) -> None:
        if self.entered.is_set():
            self.second.set()
            return
        self.entered.set()
        assert self.opened.wait(10)


class Caller(threading.Thread):
    """Runs a call, keeps what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call, self.result, self.error = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except VPPError as error:
            self.error = error

    def outcome(self) -> Any:
        self.join(10)
        assert not self.is_alive()
        return self.result


@pytest.mark.usefixtures("toy")
def test_a_copy_made_in_the_middle_of_a_run_is_in_none() -> None:
    """It kept the run's axes, and laid them over the images of its first call in a disabled block."""
    model, processor = attached()
    inputs = inputs_for(processor, [1])
    copies: list[Any] = []
    watch = model.model.language_model.register_forward_pre_hook(lambda *_: copies.append(copy.deepcopy(model)))
    expected = model(**inputs).logits
    watch.remove()

    (twin,) = copies
    twin.model.language_model._forward_pre_hooks.clear()

    assert not host_state(twin).slot.in_use()
    assert not host_state(twin).inside()
    assert torch.equal(twin(**inputs).logits, expected)


@pytest.mark.usefixtures("toy")
class TestThreads:
    def test_a_second_forward_waits_for_the_first(self) -> None:
        model, processor = attached()
        inputs = [inputs_for(processor, layout) for layout in ([1], [2, 1])]
        expected = [model(**each).logits for each in inputs]
        gate = Gate(model)

        first = Caller(lambda: model(**inputs[0]).logits)
        assert gate.entered.wait(10)
        second = Caller(lambda: model(**inputs[1]).logits)

        assert not gate.second.wait(0.15)
        gate.opened.set()
        assert torch.equal(first.outcome(), expected[0])
        assert torch.equal(second.outcome(), expected[1])

    def test_a_forward_waits_for_a_generate(self) -> None:
        model, processor = attached()
        inputs = [inputs_for(processor, layout) for layout in ([1], [2, 1])]
        expected = model.generate(**inputs[0], max_new_tokens=4), model(**inputs[1]).logits
        gate = Gate(model)

        first = Caller(lambda: model.generate(**inputs[0], max_new_tokens=4))
        assert gate.entered.wait(10)
        second = Caller(lambda: model(**inputs[1]).logits)
        gate.opened.set()

        assert torch.equal(first.outcome(), expected[0])
        assert torch.equal(second.outcome(), expected[1])

    def test_text_alone_need_not_wait_and_is_not_touched(self) -> None:
        model, processor = attached()
        inputs, text = inputs_for(processor, [1]), inputs_for(processor, [0])
        expected = model(**text).logits
        gate = Gate(model)

        first = Caller(lambda: model(**inputs).logits)
        assert gate.entered.wait(10)

        assert torch.equal(model(**text).logits, expected)
        gate.opened.set()
        first.outcome()

    def test_a_failed_session_lets_the_next_one_in(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        wrong = inputs | {"vpp_pixel_values": inputs["vpp_pixel_values"].repeat(2, 1, 1, 1)}

        failed = Caller(lambda: model(**wrong))
        failed.join(10)

        assert "hold 2 images" in str(failed.error)
        assert Caller(lambda: model(**inputs).logits).outcome().isfinite().all()

    def test_disabling_waits_for_a_session_and_a_session_behind_it_is_refused(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits
        gate, disabled, done = Gate(model), threading.Event(), threading.Event()

        def disable() -> None:
            with vpp_disabled(model):
                disabled.set()
                assert done.wait(10)

        first = Caller(lambda: model(**inputs).logits)
        assert gate.entered.wait(10)
        second = Caller(disable)
        assert not disabled.wait(0.15)
        gate.opened.set()
        assert torch.equal(first.outcome(), expected)
        assert disabled.wait(10)
        third = Caller(lambda: model(**inputs))
        third.join(10)
        done.set()
        second.join(10)

        assert "VPP is disabled" in str(third.error)
        assert torch.equal(model(**inputs).logits, expected)

    def test_two_threads_in_disabled_blocks_leave_in_any_order(self) -> None:
        model, processor = attached(tiny_llava(vocabulary=13))
        inside, leave = threading.Event(), threading.Event()

        def disable() -> None:
            with vpp_disabled(model):
                inside.set()
                assert leave.wait(10)

        with vpp_disabled(model):
            other = Caller(disable)
            assert inside.wait(10)
        assert model.lm_head.weight.shape[0] == 13  # the other block is still open
        leave.set()
        other.join(10)

        assert model.lm_head.weight.shape[0] == 14
        inputs = inputs_for(processor, [1])
        twin, theirs = twin_of(model, inputs)
        assert torch.equal(model(**inputs).logits, twin(**theirs).logits)


class Encoder(nn.Module):
    """A vision encoder with arguments beside its pixels."""

    def forward(self, pixels: torch.Tensor, grid: int = 0, *, scale: int = 1) -> torch.Tensor:
        return pixels * scale + grid


class Spy:
    """A layout that notes what it is called with."""

    def __init__(self) -> None:
        self.windows: list[Any] = []
        self.calls: list[Any] = []

    def __call__(self, pixels: torch.Tensor, overlay: Any, windows: Any, call: Any) -> torch.Tensor:
        self.windows.append(windows)
        self.calls.append(dict(call))
        return pixels + 1


def spied(*encoders: nn.Module, **filled: Any) -> tuple[Spy, Slot]:
    """Hook encoders to one slot, filled as a session fills it."""
    spy = Spy()
    slot = Slot(spy, "pixels")
    install(nn.Embedding(2, 2), list(encoders), slot)
    slot.prompts = Prompts(None, GlobalVPP(32, border=4).overlay())
    for name, value in filled.items():
        setattr(slot, name, value)
    return spy, slot


class TestLayoutIsCalled:
    def test_with_the_encoders_arguments_by_name_over_the_models(self) -> None:
        encoder = Encoder()
        spy, _ = spied(encoder, host_call={"grid": 7, "sizes": 8})

        found = encoder(torch.zeros(2), 3, scale=5)

        assert spy.calls == [{"grid": 3, "scale": 5, "sizes": 8}]
        assert torch.equal(found, torch.full((2,), 8.0))
        assert torch.equal(encoder(scale=5, grid=3, pixels=torch.zeros(2)), found)
        assert spy.calls[0] == spy.calls[1]

    def test_with_the_windows_of_each_of_its_calls(self) -> None:
        whole, near = [(0.0, 0.0, 1.0, 1.0)], [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
        encoder = Encoder()
        spy, _ = spied(encoder, windows=EncoderWindows([whole, near]))

        for _ in range(2):
            encoder(torch.zeros(2))

        assert spy.windows == [whole, near]

    def test_without_windows_where_every_call_shows_whole_images(self) -> None:
        encoder = Encoder()
        spy, _ = spied(encoder, repeats=2)

        for _ in range(2):
            encoder(torch.zeros(2))

        assert spy.windows == [None, None]
