import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vpp_plugins.prompts.generators import build_detr
from vpp_plugins.prompts.generators import cpu as folded
from vpp_plugins.prompts.generators.backbone import TimmBackbone
from vpp_plugins.prompts.generators.cpu import FoldedResNet, fold_resnet

BODIES = {
    "bottlenecks": ("resnet26", {"channels": (8, 8, 16, 16), "layers": (1, 2, 1, 1)}),
    "basic blocks": ("resnet18", {"channels": (8, 8, 16, 16), "layers": (2, 1, 1, 1)}),
    "deep stem, pooled shortcuts": ("resnet10t", {"channels": (8, 8, 16, 16)}),
    "dilated": ("resnet26", {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 2), "output_stride": 16}),
    "Winograd": ("resnet18", {"channels": (8, 128, 128, 128), "layers": (1, 2, 1, 1)}),
}
every_body = pytest.mark.parametrize("body", BODIES)


def shaken(module: nn.Module) -> nn.Module:
    """Norms away from one and zero, of a size that keeps the features calm."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1 and name.endswith(("weight", "running_var")):
            nn.init.uniform_(tensor, 0.5, 1.2)
        elif tensor.dim() == 1:
            nn.init.normal_(tensor, std=0.2)
    return module.eval()


def backbone(body: str = "bottlenecks", **options: bool) -> TimmBackbone:
    name, sizes = BODIES[body]
    net = TimmBackbone(name, **sizes, **options)
    shaken(net)
    return net


def images(images: int = 2, size: tuple[int, int] = (160, 192)) -> Tensor:
    return torch.randn(images, 3, *size)


def plain(net: TimmBackbone, pixels: Tensor) -> Tensor:
    features: Tensor = net.body(pixels)[-1]
    return features


def assert_close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= tolerance * other.abs().max()


@every_body
def test_the_twin_equals_the_module(body: str) -> None:
    net, pixels = backbone(body), images()

    twin = fold_resnet(net.body)

    assert isinstance(twin, FoldedResNet)
    with torch.no_grad():
        expected = plain(net, pixels)
        assert expected.std() > 1e-3
        assert_close(twin(pixels), expected)
        for other in (images(1, (160, 192)), images(1, (96, 64)), images(0, (64, 64))):
            if len(other):
                assert_close(twin(other), plain(net, other))
            else:
                assert twin(other).shape == plain(net, other).shape


@every_body
def test_the_twin_equals_the_module_without_onednn(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, pixels = backbone(body), images()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.no_grad():
        twin = fold_resnet(net.body)
        assert twin is not None
        assert_close(twin(pixels), plain(net, pixels))


@every_body
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_twin_in_other_dtypes(body: str, dtype: torch.dtype) -> None:
    net, pixels = backbone(body), images(1, (128, 128))
    with torch.no_grad():
        exact = plain(copy.deepcopy(net).double(), pixels.double())
        net.to(dtype)
        twin = fold_resnet(net.body)
        assert twin is not None
        ours, theirs = twin(pixels.to(dtype)), plain(net, pixels.to(dtype))
    assert ours.dtype == dtype
    # as near to the exact result as the module itself is
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-12 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_convolutions_take_winograds_way(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    net, called, convolve = backbone("Winograd").to(dtype), [], folded.winograd_convolve

    def noted(features: Tensor, *args: Tensor, **options: bool) -> Tensor:
        called.append(tuple(features.shape))
        return convolve(features, *args, **options)

    monkeypatch.setattr(folded, "winograd_convolve", noted)
    with torch.no_grad():
        net(images(1, (160, 160)).to(dtype))
        assert called == 3 * [(1, 128, 20, 20)]
        net(images(1, (96, 96)).to(dtype))

    assert len(called) == 3


def test_images_in_a_batch_go_one_by_one() -> None:
    net, pixels = backbone("Winograd"), images(3, (160, 160))
    with torch.no_grad():
        together = net(pixels)
        assert torch.equal(together, torch.cat([net(image) for image in pixels.split(1)]))


class TestWhenItIsUsed:
    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The twins that ran."""
        ran: list[str] = []
        call = FoldedResNet.__call__
        monkeypatch.setattr(FoldedResNet, "__call__", lambda twin, pixels: ran.append("twin") or call(twin, pixels))
        return ran

    def test_in_inference(self, runs: list[str]) -> None:
        net, pixels = backbone(), images()
        with torch.no_grad():
            first = net(pixels)
        with torch.inference_mode():
            assert torch.equal(net(pixels), first)
        assert runs == ["twin", "twin"]

    def test_not_with_gradients(self, runs: list[str]) -> None:
        net = backbone()
        net(images()).sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        assert not runs

    def test_not_in_training_mode(self, runs: list[str]) -> None:
        with torch.no_grad():
            backbone().train()(images())
        assert not runs

    def test_not_where_it_is_switched_off(self, runs: list[str]) -> None:
        net, pixels = backbone(fold=False), images(1)
        with torch.no_grad():
            assert torch.equal(net(pixels), plain(net, pixels))
            assert not runs
            net.fold = True
            net(pixels)
        assert runs == ["twin"]

    def test_switching_off_frees_its_memory(self) -> None:
        net, pixels = backbone(), images()
        with torch.no_grad():
            net(pixels)
            assert net._twin._values
            net.fold = False
            net(pixels)
        assert not net._twin._values

    def test_an_option_of_the_detector(self) -> None:
        assert build_detr(backbone="resnet18").backbone.fold
        assert not build_detr(backbone="resnet18", fold=False).backbone.fold

    def test_pixels_of_another_dtype_meet_the_modules_own_complaint(self) -> None:
        net = backbone()
        with torch.no_grad(), pytest.raises(RuntimeError, match="type"):
            net(images().double())


def halve(net: TimmBackbone) -> None:
    with torch.no_grad():
        net.body["layer1"][0].conv2.weight.mul_(0.5)


def train(net: TimmBackbone) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net.train()(images()).square().mean().backward()
    optimizer.step()
    net.eval()


CHANGES: dict[str, Callable[[TimmBackbone], object]] = {
    "in place": halve,
    "past the version": lambda net: net.body["layer4"][0].conv3.weight.data.mul_(0.5),
    "one number by numpy": lambda net: net.body["conv1"].weight.detach().numpy().__setitem__((0, 1, 2, 3), 5.0),
    "norm": lambda net: net.body["bn1"].bias.add_(1),
    "load": lambda net: net.load_state_dict(backbone().state_dict()),
    "assign": lambda net: net.load_state_dict(backbone().state_dict(), assign=True),
    "train": train,
    "another module": lambda net: net.body.set_submodule("layer2.0.conv1", nn.Conv2d(32, 8, 1, bias=False)),
    "a hook": lambda net: net.body["layer3"].register_forward_hook(lambda *args: args[-1] * 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_never_answers_from_old_weights(change: str) -> None:
    net, pixels = backbone(), images()
    with torch.no_grad():
        before = net(pixels)
    CHANGES[change](net)
    with torch.no_grad():
        after = net(pixels)
        assert not torch.allclose(after, before, rtol=1e-3)
        assert_close(after, plain(net, pixels))


def test_another_dtype_and_back() -> None:
    net, pixels = backbone(), images()
    with torch.no_grad():
        before = net(pixels)
        assert net.bfloat16()(pixels.bfloat16()).dtype == torch.bfloat16
        net.float()
        assert_close(net(pixels), plain(net, pixels))
        assert not torch.equal(net(pixels), before)  # the weights were rounded


def test_copies_state_dicts_and_pickles_know_nothing_of_it() -> None:
    net, pixels = backbone(), images()
    names, size = list(net.state_dict()), len(pickle.dumps(net))
    with torch.no_grad():
        before = net(pixels)

    assert list(net.state_dict()) == names
    assert len(pickle.dumps(net)) == size
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not other._twin._values
        halve(other)
        with torch.no_grad():
            assert_close(other(pixels), plain(other, pixels))
            assert torch.equal(net(pixels), before)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("efficientnet_lite0", {}),
        ("resnetv2_50", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_chs": 8}),
        ("seresnet50", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}),
        ("resnetblur50", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}),
        ("resnet26", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "act_layer": "silu"}),
        ("resnet26", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "drop_path_rate": 0.1}),
    ],
)
def test_other_networks_run_as_they_are(name: str, options: dict[str, object]) -> None:
    net, pixels = TimmBackbone(name, **options).eval(), images(1, (64, 64))
    assert fold_resnet(net.body) is None
    with torch.no_grad():
        assert torch.equal(net(pixels), plain(net, pixels))


@pytest.mark.slow
def test_the_published_size_within_a_ten_thousandth() -> None:
    detr = shaken(build_detr())
    pixels = images(1, (320, 320))
    with torch.no_grad():
        queries, features = detr(pixels), detr.features(pixels)
        detr.backbone.fold = False
        assert_close(features, detr.features(pixels), tolerance=1e-4)
        assert_close(queries, detr(pixels), tolerance=1e-4)
