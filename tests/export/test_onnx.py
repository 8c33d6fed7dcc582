import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_config, tiny_llava, toy_config
from vpp_plugins import VPPConfig, VPPError, attach_vpp
from vpp_plugins.export.onnx import export_local_prompt

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Tracing counts images by a symbol, and checking a signature would pin it to a number."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def vpp_of(config: VPPConfig) -> Any:
    return attach_vpp(tiny_llava(), config).vpp


def letterboxed(images: int) -> Tensor:
    pixels = torch.randn(images, 3, 64, 64)
    pixels[0, :, :16] = 0
    return pixels


@needs_onnx
@pytest.mark.usefixtures("unchecked_shapes")
def test_onnx_runtime_returns_what_torch_does_for_any_number_of_images(tmp_path: Path) -> None:
    import onnxruntime

    vpp = vpp_of(tiny_config())
    before = {name: tensor.clone() for name, tensor in vpp.state_dict().items()}

    path = export_local_prompt(vpp, tmp_path / "local.onnx")

    assert [file.name for file in tmp_path.iterdir()] == ["local.onnx"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in vpp.state_dict().items())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images in (1, 2, 3):
        pixels = letterboxed(images)
        found = session.run(None, {"pixel_values": pixels.numpy()})[0]
        with torch.no_grad():
            expected = vpp(pixels).features.unflatten(0, (images, 4)).numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vpp = vpp_of(tiny_config())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(VPPError, match="needs onnx and onnxscript: pip install"):
        export_local_prompt(vpp, tmp_path / "local.onnx")


def test_without_a_local_prompt_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="no local prompt to export"):
        export_local_prompt(vpp_of(toy_config(local_vpp=None)), tmp_path / "local.onnx")


@needs_onnx
def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="missing' does not exist: make it first"):
        export_local_prompt(vpp_of(tiny_config()), tmp_path / "missing" / "local.onnx")
