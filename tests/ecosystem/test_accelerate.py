"""VPP under accelerate's offloading, which moves weights in and out around each module's forward."""

import inspect
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from safetensors.torch import load_file

from tests.ecosystem.hosts import four_families, logits
from tests.families import attached_family, family_inputs
from tests.tiny import FULL, attached, inputs_for, tiny_llava, tiny_processor, toy_config
from vpp_plugins import VPPError, VPPProcessor, attach_vpp, detach_vpp, load_vpp, save_vpp
from vpp_plugins.testing import assert_same, fingerprint

pytestmark = pytest.mark.usefixtures("toy")


class TestAccelerate:
    @pytest.mark.filterwarnings(
        "ignore:.*whereas the model is on meta"
    )  # transformers before 5.23, of any offloaded host
    @pytest.mark.parametrize("order", ["attach first", "offload first"])
    def test_cpu_offload(self, order: str, tmp_path: Path) -> None:
        reference, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        expected, answer = logits(reference, inputs), reference.generate(**inputs, max_new_tokens=3)
        model = tiny_llava()
        if order == "offload first":
            cpu_offload(model, execution_device=torch.device("cpu"))
        attach_vpp(model, toy_config())
        VPPProcessor(tiny_processor(), model)
        model.vpp.trained = True
        if order == "attach first":
            cpu_offload(model, execution_device=torch.device("cpu"))

        with torch.no_grad():
            assert torch.equal(logits(model, inputs), expected)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), answer)
        save_vpp(model, tmp_path)
        written = load_file(tmp_path / "vpp.safetensors")
        assert all(torch.equal(value, written[name]) for name, value in reference.vpp.state_dict().items())

    def test_the_signature_survives_offloading(self) -> None:
        """accelerate puts its own forward on the instance; Trainer must still see VPP's arguments, and never `self`."""
        offloaded_first = tiny_llava()
        cpu_offload(offloaded_first, execution_device=torch.device("cpu"))
        attach_vpp(offloaded_first, toy_config())
        attached_first = attach_vpp(tiny_llava(), toy_config())
        cpu_offload(attached_first, execution_device=torch.device("cpu"))
        expected = list(inspect.signature(attach_vpp(tiny_llava(), toy_config()).forward).parameters)

        assert list(inspect.signature(offloaded_first.forward).parameters) == expected
        assert "vpp_pixel_values" in inspect.signature(attached_first.forward).parameters

    @pytest.mark.parametrize("order", ["attach first", "offload first"])
    def test_detach_and_remove_the_hooks_in_either_order(self, order: str) -> None:
        bare = tiny_llava()
        cpu_offload(bare, execution_device=torch.device("cpu"))
        inputs = inputs_for(tiny_processor(), [2, 1])
        expected = logits(bare, inputs)
        model = tiny_llava()
        if order == "offload first":
            cpu_offload(model, execution_device=torch.device("cpu"))
        attach_vpp(model, toy_config())
        if order == "attach first":
            cpu_offload(model, execution_device=torch.device("cpu"))

        detach_vpp(model)

        assert torch.equal(logits(model, inputs), expected)
        assert inspect.signature(model.forward) == inspect.signature(bare.forward)
        remove_hook_from_submodules(model)
        remove_hook_from_submodules(bare)
        assert_same(fingerprint(model), fingerprint(bare))

    def test_loading_into_offloaded_prompts_is_refused(self, tmp_path: Path) -> None:
        model, _ = attached()
        save_vpp(model, tmp_path)
        cpu_offload(model, execution_device=torch.device("cpu"))

        with pytest.raises(VPPError, match=r"the prompts are offloaded.* call load_vpp before dispatching"):
            load_vpp(model, tmp_path)

    def test_the_vocabulary_cannot_grow_while_offloaded(self) -> None:
        model = tiny_llava(vocabulary=FULL)
        cpu_offload(model, execution_device=torch.device("cpu"))
        attach_vpp(model, toy_config())

        with pytest.raises(
            VPPError, match="while accelerate offloads its weights: make the VPPProcessor before dispatching"
        ):
            VPPProcessor(tiny_processor(), model)


@pytest.mark.filterwarnings("ignore:.*whereas the model is on meta")  # transformers before 5.23, of any offloaded host
class TestEveryFamily:
    @four_families
    def test_cpu_offload(self, family: str) -> None:
        reference, processor = attached_family(family)
        inputs = family_inputs(processor, [2, 1])
        model, _ = attached_family(family)

        cpu_offload(model, execution_device=torch.device("cpu"))

        assert torch.equal(logits(model, inputs), logits(reference, inputs))
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), reference.generate(**inputs, max_new_tokens=3))
