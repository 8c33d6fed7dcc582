"""PEFT's own way: save an adapter with the prompts, and load both in a process that knows nothing of this one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny import attached, inputs_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("toy")]

SCRIPT = """
import sys
import torch
from peft import PeftModel
from tests.tiny import ToyPlugin, attached
from vpp_plugins.plugins.registry import manager

manager().register(ToyPlugin(), "toy")
model, _ = attached()
model = PeftModel.from_pretrained(model, sys.argv[1]).eval()
inputs = torch.load(sys.argv[1] + "/inputs.pt")
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[1] + "/logits.pt")
"""


def test_an_adapter_and_its_prompts_come_back_in_a_fresh_process(tmp_path: Path) -> None:
    model, processor = attached()
    inputs = dict(inputs_for(processor, [2, 1]))
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=["vpp"]))
    torch.manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    tuned.eval().save_pretrained(str(tmp_path))
    torch.save(inputs, tmp_path / "inputs.pt")

    finished = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr[-4000:]
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), tuned(**inputs).logits)
        with tuned.disable_adapter():
            assert not torch.equal(torch.load(tmp_path / "logits.pt"), tuned(**inputs).logits)
