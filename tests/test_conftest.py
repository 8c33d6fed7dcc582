"""The settings of conftest.py are really on: each of them could be lost without any other test noticing."""

import gc
import os

import pytest
import torch
from jaxtyping import TypeCheckError

from vpp_plugins.errors import nearest


def test_signatures_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        nearest(3, ["x"])  # type: ignore[arg-type]


def test_one_thread_and_no_network() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_garbage_is_collected_among_what_tests_make_alone() -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 100_000


@pytest.mark.parametrize("run", ["first", "second"])
def test_torch_starts_every_test_from_the_same_seed(run: str) -> None:
    assert torch.initial_seed() == 0
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))
