import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vpp_plugins.prompts.inference_cache import InferenceCache


class Counted:
    """A module, its cache, and how often the cached value had to be made."""

    def __init__(self) -> None:
        self.module = nn.Sequential(nn.Linear(30, 3), nn.BatchNorm1d(3)).eval()
        self.cache: InferenceCache[int] = InferenceCache()
        self.made = 0

    def get(self, key: object = "key") -> int | None:
        with torch.no_grad():
            return self.cache.get(self.module, key, self.make)

    def make(self) -> int:
        self.made += 1
        return self.made


def write(module: nn.Module) -> None:
    with torch.no_grad():
        module[0].weight[0, 1] += 1


def write_past_the_version(module: nn.Module) -> None:
    module[0].weight.data.mul_(2)


def write_one_number_past_the_version(module: nn.Module) -> None:
    module[0].weight.data[1, 7] += 1e-6


def write_one_number_by_numpy(module: nn.Module) -> None:
    module[0].weight.detach().numpy()[2, 11] += 1e-6


def exchange_two_numbers(module: nn.Module) -> None:
    """No sum over the bytes would tell."""
    weight = module[0].weight.detach().numpy()
    weight[0, 3], weight[0, 4] = float(weight[0, 4]), float(weight[0, 3])


def turn_a_sign(module: nn.Module) -> None:
    """0 and -0 are equal as numbers."""
    module[1].running_mean.numpy()[1] = -0.0


def other_memory(module: nn.Module) -> None:
    module[0].weight.data = torch.randn(3, 30)


def load(module: nn.Module) -> None:
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})


def assign(module: nn.Module) -> None:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)


def train(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(2, 30)).square().sum().backward()
    optimizer.step()


def move_statistics(module: nn.Module) -> None:
    module[1].running_mean += 1


CHANGES = [
    write,
    write_past_the_version,
    write_one_number_past_the_version,
    write_one_number_by_numpy,
    exchange_two_numbers,
    turn_a_sign,
    other_memory,
    load,
    assign,
    train,
    move_statistics,
    lambda module: module.to(torch.bfloat16),
    lambda module: module.append(nn.Linear(3, 3)),
    lambda module: nn.init.ones_(module[0].bias),
]


def test_a_value_is_made_once() -> None:
    counted = Counted()
    assert [counted.get() for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_forgets(change: Callable[[nn.Module], object]) -> None:
    counted = Counted()
    counted.get()
    change(counted.module)
    assert counted.get() == 2
    assert counted.get() == 2


def test_weights_that_are_no_numbers_are_weights_too() -> None:
    counted = Counted()
    counted.module[0].weight.data[0, 0] = torch.nan
    assert [counted.get(), counted.get()] == [1, 1]


def test_weights_that_lie_in_pieces() -> None:
    counted = Counted()
    counted.module[0].weight.data = torch.randn(30, 3).T
    assert [counted.get(), counted.get()] == [1, 1]
    counted.module[0].weight.data[2, 29] += 1
    assert counted.get() == 2


def test_weights_made_in_inference_mode() -> None:
    """They have no version that would tell of a write."""
    counted = Counted()
    with torch.inference_mode():
        counted.module = nn.Sequential(nn.Linear(3, 3))
        assert [counted.get(), counted.get()] == [1, 1]
        counted.module[0].weight[2, 2] += 1
    assert counted.get() == 2


def test_the_last_key_is_kept() -> None:
    counted = Counted()
    assert [counted.get(key) for key in "aabba"] == [1, 1, 2, 2, 3]


def test_copies_and_pickles_start_empty() -> None:
    counted = Counted()
    counted.get()
    for other in (copy.deepcopy(counted.cache), pickle.loads(pickle.dumps(counted.cache))):
        with torch.no_grad():
            assert other.get(counted.module, "key", lambda: 7) == 7
    assert counted.get() == 1


def test_what_is_made_in_inference_mode_serves_outside_of_it() -> None:
    module, cache = nn.Linear(2, 2), InferenceCache[torch.Tensor]()
    with torch.inference_mode():
        made = cache.get(module, "key", lambda: module.weight * 2)
    assert made is not None
    assert not made.is_inference()
    assert not made.requires_grad


class TestTheModuleRunsItself:
    def test_with_gradients(self) -> None:
        counted = Counted()
        assert counted.cache.get(counted.module, "key", counted.make) is None

    def test_under_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert Counted().get() is None

    @pytest.mark.parametrize("asked", ["torch.compiler.is_compiling", "torch.jit.is_tracing"])
    def test_while_it_is_traced(self, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
        counted = Counted()
        monkeypatch.setattr(asked, lambda: True)
        assert counted.get() is None

    @pytest.mark.parametrize(
        "hang",
        [
            lambda part: part.register_forward_hook(lambda *_: None),
            lambda part: part.register_forward_pre_hook(lambda *_: None),
            lambda part: setattr(part, "forward", part.forward),
            lambda part: setattr(part, "_hf_hook", object()),
        ],
        ids=["hook", "pre-hook", "patched forward", "offload"],
    )
    def test_with_something_hanging_on_a_part(self, hang: Callable[[nn.Module], object]) -> None:
        counted = Counted()
        counted.get()
        hang(counted.module[0])
        assert counted.get() is None

    def test_on_another_device(self) -> None:
        counted = Counted()
        counted.module.to("meta")
        assert counted.get() is None

    def test_where_weights_may_be_sharded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        assert Counted().get() is None
