"""VPP on every architecture that transformers has for images and text: the second half, for one of two workers."""

from typing import Any

import pytest

from tests.zoo.coverage import check_coverage
from tests.zoo.hosts import ARCHITECTURES

pytestmark = [
    pytest.mark.slow,
    # what hosts do themselves: DiffusionGemma, and Mllama in transformers 5.17
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.hidden_state. is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES)[1::2])
def test_vpp_does_what_it_promises(model_type: str, record_property: Any) -> None:
    check_coverage(model_type, record_property)
