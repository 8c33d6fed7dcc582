"""Calls of the host's inner model have the prompts in place, wherever the host's own forward is passed by."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.attach.reference_host import twin_of
from tests.tiny import attached, inputs_for, tiny_llava, toy_config
from vpp_plugins import VPPError, attach_vpp, detach_vpp, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.hooks import HOST

pytestmark = pytest.mark.usefixtures("toy")


@torch.no_grad()
def hidden(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the inner model says, asked directly."""
    return model.model(**inputs).last_hidden_state


def called(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    return model(**inputs)


def detached(model: Any, _: dict[str, torch.Tensor]) -> Any:
    return detach_vpp(model)


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


class TestInnerModel:
    def test_equals_the_twins(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        twin, theirs = twin_of(model, inputs)
        real = inputs["attention_mask"].bool()

        assert torch.equal(hidden(model, inputs)[real], hidden(twin, theirs)[real])
        assert not host_state(model).slot.in_use()
        assert not host_state(model).inside()

    def test_a_text_needs_no_prompts(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [0, 0])

        assert torch.equal(hidden(model, inputs), hidden(tiny_llava(), inputs))

    def test_axes_alone_are_laid_too(self) -> None:
        model, processor = attached(config=toy_config(local_vpp=None))
        inputs = inputs_for(processor, [1])
        twin, theirs = twin_of(model, inputs)

        assert torch.equal(hidden(model, inputs), hidden(twin, theirs))

    def test_disabled(self) -> None:
        model, processor = attached()

        with vpp_disabled(model):
            inputs = inputs_for(processor, [2, 1])
            assert torch.equal(hidden(model, inputs), hidden(tiny_llava(), inputs))

    def test_images_without_their_prompts_are_refused(self) -> None:
        model, processor = attached()
        with vpp_disabled(model):
            inputs = inputs_for(processor, [1])

        with pytest.raises(VPPError, match="images came without vpp_pixel_values"):
            hidden(model, inputs)
        assert hidden(model, inputs_for(processor, [1])).isfinite().all()

    def test_an_error_inside_ends_the_session(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        wrong = {**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}

        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            hidden(model, wrong)
        assert not host_state(model).inside()
        assert hidden(model, inputs).isfinite().all()

    @pytest.mark.parametrize(
        "then", [hidden, lambda model, inputs: model(**inputs), lambda model, _: detach_vpp(model)]
    )
    def test_an_interrupt_inside_does_not_outlive_it(self, then: Callable[[Any, Any], Any]) -> None:
        """torch calls no hook after a KeyboardInterrupt, so the session stayed open, and every later call was refused
        as a call within another.
        """
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        expected = hidden(model, inputs)
        stop = model.model.language_model.register_forward_pre_hook(interrupted)
        with pytest.raises(KeyboardInterrupt):
            hidden(model, inputs)
        stop.remove()
        assert host_state(model).inside()

        then(model, inputs)

        assert not model.model.__dict__.get(HOST) or torch.equal(hidden(model, inputs), expected)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_lead_to_their_own_host(self, copied: Any) -> None:
        model, processor = attached()

        twin = copied(model)

        assert twin.model.__dict__[HOST] is twin
        inputs = inputs_for(processor, [1])
        assert torch.equal(hidden(twin, inputs), hidden(model, inputs))

    def test_detached(self) -> None:
        model = detach_vpp(attach_vpp(tiny_llava(), toy_config()))

        assert not [module for module in model.modules() if HOST in module.__dict__]
        assert not model.model._forward_pre_hooks
        assert not model.model._forward_hooks
        assert not model.model._forward_hooks_always_called
