"""VPP-LLaVA's recorded checkpoint, converted once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reference import FOLDER


@pytest.fixture(scope="session")
def small_resnet() -> Iterator[None]:
    """Let a conversion know the recorded checkpoint's ResNet, which is none of the published ones."""
    from tests.reference import resnet
    from vpp_adapters.vpp_llava.config import RESNETS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNETS, (resnet.STEM, resnet.DEPTHS), resnet.NAME)
        yield


@pytest.fixture(scope="session")
def converted(small_resnet: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded checkpoint in transformers' layout; not to be written to."""
    from vpp_adapters.vpp_llava.convert import convert

    folder = tmp_path_factory.mktemp("vpp-llava") / "converted"
    convert(FOLDER / "checkpoint", folder)
    return folder
