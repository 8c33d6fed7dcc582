"""What holds for every test: one thread, no network, a fixed seed, and signatures that are checked as the code runs."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

# Read by huggingface_hub and tokenizers when they are first imported, and by subprocesses that tests start.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

# Two test workers share two cores: more threads would only wait for each other.
torch.set_num_threads(1)

# Must come before any test module imports the library: from here on a wrong shape, dtype or type raises at the call.
install_import_hook(["vpp_plugins", "vpp_adapters"], "beartype.beartype")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests run in random order; torch's numbers must not depend on it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    without_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(without_gpu)
