from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run, is_one_sentence


class TestConvert:
    """What is written, and every kind of bad checkpoint, is tested with the converter itself."""

    @pytest.mark.parametrize(("option", "dtype"), [((), torch.float16), (("--dtype", "float32"), torch.float32)])
    def test_writes_a_folder_that_loads(
        self, vpp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        from tests.reference import FOLDER, resnet
        from vpp_adapters.vpp_llava import config as vpp_llava_config

        monkeypatch.setitem(vpp_llava_config.RESNETS, (resnet.STEM, resnet.DEPTHS), resnet.NAME)

        code, out, _ = vpp("convert", FOLDER / "checkpoint", tmp_path / "new", *option)

        assert code == 0
        assert f"written to {tmp_path / 'new'}" in out
        assert load_file(tmp_path / "new" / "vpp.safetensors")["global_prompt.prompt"].dtype == dtype

    def test_what_no_plugin_knows(self, vpp: Run, tmp_path: Path) -> None:
        for source in (tmp_path, tmp_path / "missing"):
            code, out, err = vpp("convert", source, tmp_path / "new")

            assert (code, out) == (1, "")
            assert is_one_sentence(err)
            assert not (tmp_path / "new").exists()
