"""A prompt that was counted in is consumed, or the call is refused: no way round the hooks goes unseen."""

import copy
import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionModel

from tests.families import FAMILIES, attached_family, family_inputs
from tests.tiny import FULL, attached, inputs_for, tiny_llava, toy_config
from vpp_plugins import VPPError, detach_vpp, vpp_disabled
from vpp_plugins.attach import host_state

pytestmark = pytest.mark.usefixtures("toy")
GREEDY = {"max_new_tokens": 2, "do_sample": False}


@contextmanager
def another_embedding(model: Any, *, parts: int = 1) -> Iterator[None]:
    """A host that looks its ids up by itself (`parts` = 1), or a few at a time."""
    embedding, hooked = model.get_input_embeddings(), type(model.get_input_embeddings()).__call__

    def look_up(self: Any, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self is not embedding:
            return hooked(self, ids, *args, **kwargs)
        if parts == 1:
            return F.embedding(ids, self.weight)
        return torch.cat([hooked(self, part) for part in ids.chunk(parts, dim=1)], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(embedding), "__call__", look_up)
        yield


class TestEmbeddings:
    @pytest.mark.parametrize("family", list(FAMILIES))
    def test_ids_and_embeddings_together_are_refused(self, family: str) -> None:
        """The reported case; forward, and the inner model, alike."""
        model, processor = attached_family(family)
        inputs = family_inputs(processor, [1])
        embeddings = model.get_input_embeddings()(inputs["input_ids"])

        for call in (lambda **kw: model.generate(**kw, **GREEDY), model, model.model):
            with pytest.raises(VPPError, match=r"vpp_pixel_values need input_ids, .* inputs_embeds have none"):
                call(**inputs, inputs_embeds=embeddings)
        assert not host_state(model).slot.in_use()
        model.generate(**inputs, **GREEDY)

    def test_a_global_prompt_alone_takes_embeddings(self) -> None:
        """It acts where images are encoded; what the text is made of is nothing to it."""
        model, processor = attached(config=toy_config(local_vpp=None))
        inputs = inputs_for(processor, [1])
        embeddings = model.get_input_embeddings()(inputs["input_ids"])

        found = model.generate(**inputs, inputs_embeds=embeddings, **GREEDY)
        assert torch.equal(found[:, -2:], model.generate(**inputs, **GREEDY)[:, -2:])


@pytest.mark.parametrize("vocabulary", [32, FULL])
@pytest.mark.parametrize("way", ["forward", "generate"])
def test_embeddings_of_placeholders_are_refused(way: str, vocabulary: int) -> None:
    """Looked up by hand, they hold the placeholder's bare row; 0 where the vocabulary grew, as padding may be."""
    model, processor = attached(tiny_llava(vocabulary=vocabulary))
    inputs = inputs_for(processor, [2, 0])
    embeddings, mask = model.get_input_embeddings()(inputs["input_ids"]), inputs["attention_mask"]
    call = {"forward": model, "generate": lambda **kw: model.generate(**kw, **GREEDY)}[way]

    with pytest.raises(VPPError, match=r"inputs_embeds hold 8 rows of <\|vpp\|> as the embedding has it"):
        call(inputs_embeds=embeddings, attention_mask=mask)
    call(inputs_embeds=embeddings[1:], attention_mask=mask[1:])
    with vpp_disabled(model):
        call(inputs_embeds=embeddings, attention_mask=mask)


class TestTheEncoderAlone:
    @pytest.mark.parametrize("family", list(FAMILIES))
    def test_is_refused(self, family: str) -> None:
        """By `get_image_features` it saw no axes, and what it made could be passed on as embeddings."""
        model, processor = attached_family(family)
        with vpp_disabled(model):
            inputs = family_inputs(processor, [1])
        wanted = inspect.signature(model.get_image_features).parameters
        bare = {name: value for name, value in inputs.items() if name in wanted}
        for part in (model, model.model):
            with pytest.raises(VPPError, match=r"vision encoder was called by itself.* within vpp_disabled\(model\)"):
                part.get_image_features(**bare)
        with vpp_disabled(model):
            model.get_image_features(**bare)
        copied = copy.deepcopy(model)
        model(**family_inputs(processor, [1]))
        copied(**family_inputs(processor, [1]))
        with pytest.raises(VPPError, match="called by itself"):
            copied.get_image_features(**bare)
        detach_vpp(model).get_image_features(**bare)

    def test_is_refused_in_the_backward_pass_too(self) -> None:
        """A user's checkpointing of the encoder computes it again after the call, then without the axes."""
        model, processor = attached()
        tower = model.model.vision_tower
        inner = tower.forward
        tower.forward = lambda *args, **kwargs: checkpoint(inner, *args, use_reentrant=False, **kwargs)
        inputs = inputs_for(processor, [1])
        expected = torch.autograd.grad(model(**inputs, labels=inputs["input_ids"]).loss, model.vpp.global_vpp.prompt)
        tower.forward = inner
        found = torch.autograd.grad(model(**inputs, labels=inputs["input_ids"]).loss, model.vpp.global_vpp.prompt)

        assert torch.allclose(*expected, *found)
        features = type(model.model).get_image_features
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                type(model.model),
                "get_image_features",
                lambda self, *a, **k: checkpoint(lambda: features(self, *a, **k), use_reentrant=False),
            )
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            with pytest.raises(VPPError, match="called by itself"):
                loss.backward()


class TestPathsRoundTheEmbedding:
    @pytest.mark.parametrize("parts", [1, 2, 5])
    @pytest.mark.parametrize("way", ["forward", "generate", "inner model"])
    def test_are_refused_after_the_call(self, way: str, parts: int) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        call = {"forward": model, "generate": model.generate, "inner model": model.model}[way]

        with another_embedding(model, parts=parts), pytest.raises(VPPError, match=r"embedded \d of 12 <\|vpp\|>"):
            call(**inputs, **(GREEDY if way == "generate" else {}))
        assert not host_state(model).slot.in_use()
        assert not host_state(model).inside()
        call(**inputs, **(GREEDY if way == "generate" else {}))

    def test_beams_and_repeated_rows_are_no_alarm(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])

        model.generate(**inputs, **GREEDY, num_beams=3, num_return_sequences=2)
        model.generate(**inputs, max_new_tokens=2, do_sample=True, num_return_sequences=3)
        model.generate(**inputs, **GREEDY, use_cache=False)
        model.generate(**inputs_for(processor, [1]), **GREEDY, prompt_lookup_num_tokens=2)

    def test_an_error_of_the_host_stays_the_hosts(self) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])

        def failing(*args: Any, **kwargs: Any) -> None:
            raise ValueError("the host's own")

        handle = model.get_input_embeddings().register_forward_pre_hook(failing)
        for call in (model, model.model):
            with pytest.raises(ValueError, match="the host's own"):
                call(**inputs)
        handle.remove()
        model.model(**inputs)


class TestPathsRoundTheEncoder:
    @pytest.fixture
    def unhooked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host that calls its encoder's forward, which runs no hook."""
        monkeypatch.setattr(CLIPVisionModel, "__call__", CLIPVisionModel.forward)

    @pytest.mark.parametrize("local", [True, False])
    @pytest.mark.usefixtures("unhooked")
    def test_are_refused_after_the_call(self, local: bool) -> None:
        model, processor = attached(config=toy_config(**({} if local else {"local_vpp": None})))
        inputs = inputs_for(processor, [2, 1])

        for call in (model, model.model, lambda **kw: model.generate(**kw, **GREEDY)):
            with pytest.raises(VPPError, match=r"did not call its vision encoder .* the global prompt did not count"):
                call(**inputs)
        assert not host_state(model).slot.in_use()

    @pytest.mark.usefixtures("unhooked")
    def test_a_local_prompt_alone_needs_no_encoder(self) -> None:
        model, processor = attached(config=toy_config(global_vpp=None))

        model(**inputs_for(processor, [2, 1]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_calls_are_watched_too_and_break_no_graph() -> None:
    """What counts without compiling is above, and that compiling changes no answer in tests/ecosystem."""
    finished = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr[-3000:]


COMPILED = """
import torch
import torch._dynamo

from tests.tiny import ToyPlugin, attached, inputs_for
from vpp_plugins import VPPError
from vpp_plugins.attach import hooks
from vpp_plugins.plugins import manager

manager().register(ToyPlugin(), "toy")
torch.set_num_threads(1)
model, processor = attached()
inputs = inputs_for(processor, [2, 1])
with torch.no_grad():
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(**inputs).logits, expected)
    assert model._vpp_state.slot.placed is False

    torch._dynamo.reset()
    hooks.remove(model)
    hooks.update = lambda *args: None  # or it would put them back
    for call in (model, torch.compile(model, backend="eager")):
        try:
            call(**inputs)
        except VPPError as error:
            assert "placeholders" in str(error), error
        else:
            raise SystemExit("it went unseen")
"""
