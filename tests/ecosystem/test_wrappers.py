"""VPP inside DistributedDataParallel, in one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel

from tests.attach.reference_host import twin_of
from tests.ecosystem.hosts import logits
from tests.tiny import attached, inputs_for, tiny_llava, toy_config
from vpp_plugins import attach_vpp, detach_vpp, is_attached, load_vpp, save_vpp, vpp_disabled
from vpp_plugins.attach.attach import unwrap

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TestWrappers:
    def test_distributed_data_parallel(self, one_process_group: None, tmp_path: Path) -> None:
        reference, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        model, processor = attached()
        wrapped = DistributedDataParallel(model)

        loss = wrapped(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()

        assert unwrap(wrapped) is model
        assert is_attached(wrapped)
        assert torch.equal(loss, reference(**inputs, labels=inputs["input_ids"]).loss)
        assert all(parameter.grad.any() for parameter in model.vpp.parameters())
        save_vpp(wrapped, tmp_path)
        load_vpp(wrapped, tmp_path)
        with vpp_disabled(wrapped):
            bare = inputs_for(processor, [1])
            assert torch.equal(logits(wrapped, bare), logits(tiny_llava(), bare))
        assert detach_vpp(wrapped) is wrapped
        assert not is_attached(model)

    def test_attach_to_a_wrapped_model(self, one_process_group: None) -> None:
        wrapped = DistributedDataParallel(tiny_llava())

        assert attach_vpp(wrapped, toy_config()) is wrapped
        assert is_attached(wrapped.module)

    def test_wrappers_in_wrappers(self, one_process_group: None) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        twin, theirs = twin_of(model, inputs)
        peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"]))
        wrapped = DistributedDataParallel(peft)

        assert unwrap(wrapped) is model
        assert torch.equal(logits(wrapped, inputs), logits(twin, theirs))
