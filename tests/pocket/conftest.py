"""One untrained, tiny pocket model for all tests of this folder."""

import pytest
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins.pocket import build_pocket


@pytest.fixture(scope="module")
def pocket() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Untrained; images of 64 pixels, so four image tokens."""
    return build_pocket(image_size=64, hidden_size=32, layers=2, heads=2, intermediate_size=48)
