import pytest
import torch
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.local_vpp import LocalVPP


class Generator(nn.Module):
    """Queries that are scaled by the mean of what the mask leaves of the image."""

    def __init__(self, num_queries: int = 5, width: int = 6) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width))

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        if pixel_mask is not None:
            pixel_values = pixel_values * pixel_mask[:, None]
        return self.queries * pixel_values.mean((1, 2, 3))[:, None, None]


def prompt(generator: nn.Module | None = None) -> LocalVPP:
    return LocalVPP(generator or Generator(), num_queries=5, query_width=6, hidden_size=8, projector_size=7)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_queries_come_out_at_the_language_models_width(images: int) -> None:
    assert prompt()(torch.randn(images, 3, 32, 64)).shape == (images, 5, 8)


def test_a_gain_multiplies_the_projected_queries() -> None:
    local, pixels = prompt(), torch.randn(2, 3, 32, 32)
    quiet = local(pixels)
    local.gain = 64.0

    assert torch.equal(local(pixels), 64 * quiet)


def test_the_projector_is_linear_gelu_linear() -> None:
    """As VPP-LLaVA's grd_projector, whose published keys are 0 and 2."""
    local, pixels = prompt(), torch.randn(2, 3, 32, 32)

    assert {name: tuple(value.shape) for name, value in local.projector.state_dict().items()} == {
        "0.weight": (7, 6),
        "0.bias": (7,),
        "2.weight": (8, 7),
        "2.bias": (8,),
    }
    first, _, second = local.projector
    expected = second(nn.functional.gelu(first(local.generator(pixels))))
    torch.testing.assert_close(local(pixels), expected)


def test_the_mask_reaches_the_generator() -> None:
    local, pixels = prompt(), torch.randn(1, 3, 32, 32)
    left = torch.zeros(1, 32, 32, dtype=torch.bool)
    left[..., :16] = True

    assert torch.equal(local(pixels, torch.ones_like(left)), local(pixels))
    assert not torch.equal(local(pixels, left), local(pixels))


def test_gradients_reach_projector_generator_and_image() -> None:
    local, pixels = prompt(), torch.randn(2, 3, 32, 32, requires_grad=True)

    local(pixels).square().sum().backward()

    assert all(p.grad is not None and p.grad.any() for p in local.parameters())
    assert pixels.grad is not None
    assert pixels.grad.any()


@pytest.mark.parametrize("generator", [Generator(num_queries=4), Generator(width=3)])
def test_a_generator_that_makes_something_else_is_refused(generator: Generator) -> None:
    """Too few queries would silently repeat the last one at the placeholders that are left."""
    with pytest.raises(VPPError, match=r"the generator Generator returned \(1, \d, \d\), but .* = \(1, 5, 6\)"):
        prompt(generator)(torch.randn(1, 3, 32, 32))
