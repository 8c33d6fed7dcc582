"""What the tests of this folder share: an untrained, tiny pocket model, and a tokenizer like SmolLM2's."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vpp_plugins.pocket import build_pocket


@pytest.fixture(scope="module")
def pocket() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Untrained; images of 64 pixels, so four image tokens."""
    return build_pocket(image_size=64, hidden_size=32, layers=2, heads=2, intermediate_size=48)


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of single bytes, with SmolLM2's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=special[0], bos_token=special[1], eos_token=special[2]
    )
