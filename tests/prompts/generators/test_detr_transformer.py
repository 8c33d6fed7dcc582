import math

import pytest
import torch
from torch import Tensor, nn

from vpp_plugins.prompts.generators import detr_transformer
from vpp_plugins.prompts.generators.detr_transformer import (
    DecoderLayer,
    EncoderLayer,
    MultiheadAttention,
    full_sine_encoding,
    sine_encoding,
)

CPU = torch.device("cpu")


def padding_mask() -> Tensor:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return mask


def shaken(module: nn.Module) -> nn.Module:
    """Norms and biases away from one and zero, or forgetting them would go unseen."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_parameters_and_the_result_of_torchs_own(masked: bool) -> None:
    theirs = shaken(nn.MultiheadAttention(16, 4, batch_first=True))
    ours = MultiheadAttention(16, 4).eval()
    ours.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    mask = padding_mask() if masked else None

    expected, _ = theirs(query, key, value, key_padding_mask=None if mask is None else ~mask)

    torch.testing.assert_close(ours(query, key, value, mask), expected)


def test_the_encoder_layer_without_positions_is_torchs_post_norm_layer() -> None:
    theirs = shaken(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True))
    ours = EncoderLayer(16, 4, 24, dropout=0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    # Position may be one for all images. Rows that are padding are nobody's business.
    tokens, mask = torch.randn(2, 6, 16), padding_mask()

    expected = theirs(tokens, src_key_padding_mask=~mask)

    torch.testing.assert_close(ours(tokens, torch.zeros(1, 6, 16), mask)[mask], expected[mask])


def test_the_decoder_layer_without_positions_is_torchs_post_norm_layer() -> None:
    theirs = shaken(nn.TransformerDecoderLayer(16, 4, 24, batch_first=True))
    ours = DecoderLayer(16, 4, 24, dropout=0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    queries, memory, mask = torch.randn(2, 5, 16), torch.randn(2, 6, 16), padding_mask()

    expected = theirs(queries, memory, memory_key_padding_mask=~mask)

    torch.testing.assert_close(ours(queries, torch.zeros(5, 16), memory, memory, mask), expected)


def test_dropout_works_in_training_only() -> None:
    layer = EncoderLayer(16, 4, 24, dropout=0.5)
    tokens, position = torch.randn(2, 6, 16), torch.randn(1, 6, 16)

    assert not torch.equal(layer(tokens, position), layer(tokens, position))
    layer.eval()
    assert torch.equal(layer(tokens, position), layer(tokens, position))


def test_the_sine_encoding_is_the_formula_of_detr() -> None:
    size, rows, columns = 8, 3, 5
    encoding = sine_encoding(torch.ones(1, rows, columns, dtype=torch.bool), size)[0].view(rows, columns, size)

    for row in range(rows):
        for column in range(columns):
            for half, place in enumerate(((row + 1) / (rows + 1e-6), (column + 1) / (columns + 1e-6))):
                for channel in range(size // 2):
                    angle = 2 * math.pi * place / 10000 ** (2 * (channel // 2) / (size // 2))
                    expected = math.cos(angle) if channel % 2 else math.sin(angle)
                    assert encoding[row, column, half * size // 2 + channel] == pytest.approx(expected, abs=1e-5)


def test_padding_does_not_move_the_encoding_of_the_image() -> None:
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, :3, :5] = mask[1, 1:, 1:] = True

    padded = sine_encoding(mask, 8).view(2, 4, 6, 8)

    whole = full_sine_encoding(3, 5, 8, device=CPU, dtype=torch.float32).view(3, 5, 8)
    torch.testing.assert_close(padded[0, :3, :5], whole)
    torch.testing.assert_close(padded[1, 1:, 1:], whole)
    assert padded.isfinite().all()


def test_the_encoding_of_whole_images_is_computed_once_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    detr_transformer._full_sine_encoding.cache_clear()
    computed = []

    def counted(mask: Tensor, size: int) -> Tensor:
        computed.append(mask.shape)
        return sine_encoding(mask, size)

    monkeypatch.setattr(detr_transformer, "sine_encoding", counted)
    for height, width in [(2, 3), (2, 3), (3, 2), (2, 3)]:
        full_sine_encoding(height, width, 8, device=CPU, dtype=torch.float32)

    assert computed == [(1, 2, 3), (1, 3, 2)]
    assert full_sine_encoding(2, 3, 8, device=CPU, dtype=torch.bfloat16).dtype is torch.bfloat16


def test_an_encoding_first_made_in_inference_mode_can_be_trained_with() -> None:
    detr_transformer._full_sine_encoding.cache_clear()
    with torch.inference_mode():
        full_sine_encoding(2, 2, 8, device=CPU, dtype=torch.float32)
    weight = torch.ones(8, requires_grad=True)

    (weight * full_sine_encoding(2, 2, 8, device=CPU, dtype=torch.float32)).sum().backward()

    assert weight.grad is not None
