import pytest
import torch

from vpp_plugins.pocket.vision import TOKEN_WIDTH, PocketVisionConfig, PocketVisionModel, merge_maps, sine_positions


@pytest.fixture(scope="module")
def tower() -> PocketVisionModel:
    return PocketVisionModel(PocketVisionConfig(image_size=96))


def test_a_token_covers_32_pixels_and_is_where_llava_looks(tower: PocketVisionModel) -> None:
    output = tower(torch.randn(2, 3, 96, 96), return_dict=True, output_hidden_states=True)

    assert output.hidden_states[-1].shape == (2, 9, TOKEN_WIDTH)
    assert output.last_hidden_state is output.hidden_states[-1]


def test_cached_features_give_the_same_tokens(tower: PocketVisionModel) -> None:
    pixels = torch.randn(1, 3, 96, 96)

    assert torch.equal(tower.embed(tower.features(pixels)), tower(pixels).last_hidden_state)


def test_the_backbone_stays_frozen_in_training_mode() -> None:
    tower = PocketVisionModel(PocketVisionConfig(image_size=64)).train()
    before = {name: value.clone() for name, value in tower.backbone.state_dict().items()}

    tower(torch.randn(2, 3, 64, 64)).last_hidden_state.sum().backward()

    assert all(torch.equal(before[name], value) for name, value in tower.backbone.state_dict().items())
    assert {name for name, p in tower.named_parameters() if p.grad is not None} == {
        "norm.weight",
        "norm.bias",
        "position",
    }


def test_merging_keeps_the_cells_of_a_token_together() -> None:
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    fine = torch.stack([rows, rows.T]).repeat(1, 56, 1, 1).view(1, 112, 4, 4)[:, :112]
    coarse = torch.arange(4.0).view(1, 1, 2, 2).expand(1, 320, 2, 2)

    tokens = merge_maps(fine, coarse)

    assert tokens.shape == (1, 4, TOKEN_WIDTH)
    assert tokens[0, :, 0].tolist() == [0, 1, 2, 3]  # row by row
    quads = tokens[0, 2, 320:].view(4, 112)  # the lower left token
    assert quads[:, 0].tolist() == [2, 2, 3, 3]  # rows of its four cells


def test_positions_tell_every_cell_apart() -> None:
    positions = sine_positions(10, TOKEN_WIDTH)

    assert positions.shape == (100, TOKEN_WIDTH)
    distances = torch.cdist(positions, positions) + 100 * torch.eye(100)
    assert distances.min() > 1
