"""QLoRA: the host in 4 bits, LoRA on it, and what learns whole in full precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.families import FAMILIES
from tests.train.runs import recipe, samples, write_data
from vpp_plugins.attach.attach import unwrap
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.train import run

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytestmark = [pytest.mark.usefixtures("toy"), pytest.mark.slow]

FOUR_BITS = {
    "load_in_4bit": True,
    "dtype": "bfloat16",
    "bf16": True,
    "gradient_checkpointing": True,
    "lora_scope": "llm",
    "lora_r": 4,
    "global_vpp": {"size": 32, "border": 4},
    "local_vpp": {"generator": "toy", "num_queries": 2, "image_size": 64, "projector_size": 16},
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_host_in_four_bits_is_trained_and_resumed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The projector learns whole, so it must not be quantised: numbers of 4 bits have no gradient."""
    FAMILIES[family].model().save_pretrained(tmp_path / "host")
    FAMILIES[family].processor().save_pretrained(tmp_path / "host")
    data = write_data(tmp_path / "data", samples(12, text_only=[1, 2]))
    settings = {**FOUR_BITS, "model": str(tmp_path / "host"), "save_total_limit": 1}
    hosts: list[Any] = []
    load = run.load_host

    def seen(asked: Any) -> tuple[Any, Any]:
        host, processor = load(asked)
        hosts.append(host)
        return host, processor

    monkeypatch.setattr(run, "load_host", seen)
    trained = run.train(recipe(data, tmp_path / "run", **settings, max_steps=2))

    host = unwrap(hosts[0])
    quantised = {name for name, module in host.named_modules() if type(module).__name__ == "Linear4bit"}
    assert any("language_model" in name for name in quantised)
    assert not [name for name in quantised if "vpp" in name or "multi_modal_projector" in name or "merger" in name]
    assert isinstance(host.get_output_embeddings(), nn.Linear)
    assert host.get_output_embeddings().weight.is_floating_point()
    assert all(value.dtype == torch.float32 for value in active_vpp(host).parameters())
    assert (trained.folder / "adapter_model.safetensors").is_file()
    (trained.folder / "vpp.safetensors").unlink()
    again = run.train(recipe(data, tmp_path / "run", **settings, max_steps=3, resume_from_checkpoint="auto"))
    assert again.steps == 3
