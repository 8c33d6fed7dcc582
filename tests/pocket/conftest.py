"""What the tests of this folder share: an untrained, tiny pocket model, and a tokenizer like SmolLM2's."""

import pytest
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from tests.pocket.little_smollm2 import byte_tokenizer
from vpp_plugins.pocket import build_pocket


@pytest.fixture(scope="module")
def pocket() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Untrained; images of 64 pixels, so four image tokens."""
    return build_pocket(image_size=64, hidden_size=32, layers=2, heads=2, intermediate_size=48)


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    return byte_tokenizer()
