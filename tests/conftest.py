"""What holds for every test: one thread, no network, a fixed seed, and signatures that are checked as the code runs."""

import gc
import os
from collections.abc import Iterator

import beartype.typing  # noqa: F401  (TYPE_CHECKER below is run as text, and names it)
import jaxtyping
import pytest
import torch

# Read by huggingface_hub and tokenizers when they are first imported, and by subprocesses that tests start.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

# A million objects are imported, and looking through all of them again and again took a third of the suite's time.
gc.disable()

# Two test workers share two cores: more threads would only wait for each other.
torch.set_num_threads(1)

# From here on a wrong shape, dtype or type raises at the call: must come before any test module imports the library.
# As for mypy, an int will do for a float. Functions are checked one by one, so what Self is cannot be known: it passes.
TYPE_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf("
    "is_pep484_tower=True, hint_overrides=beartype.FrozenDict({beartype.typing.Self: object})))"
)
jaxtyping.install_import_hook(["vpp_plugins", "vpp_adapters"], TYPE_CHECKER)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests run in random order; torch's numbers must not depend on it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave signatures unchecked, as where users call: what comes of a wrong type is the library's own sentence."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def toy() -> Iterator[None]:
    """The generator "toy", installed as a stranger's plugin would be."""
    from tests.tiny import ToyPlugin
    from vpp_plugins.plugins.registry import manager

    manager().register(ToyPlugin(), "toy")
    yield
    manager().unregister(name="toy")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Collect from here on what tests leave behind, and only that."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    without_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(without_gpu)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded, whatever worker they ran on."""
    show_coverage(terminalreporter)
    for title in ("fuzzing", "kills"):
        reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
        lines = [line for report in reports for name, line in report.user_properties if name == title]
        if lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)


def show_coverage(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the coverage table of the architectures that were tested."""
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "coverage"
    ]
    if not rows:
        return
    terminalreporter.section("VPP on transformers' architectures")
    for row in sorted(rows, key=lambda row: row["model_type"]):
        shown = (
            row["adapter"],
            row["layout"],
            row["box_format"],
            row["local_prompt"],
            row["global_prompt"],
            row["note"],
        )
        terminalreporter.line(f"{row['model_type']:24} " + " | ".join(shown))
    counts = [
        sum(row[prompt] == yes for row in rows) for prompt, yes in (("local_prompt", "exact"), ("global_prompt", "yes"))
    ]
    terminalreporter.line(f"local prompt exact on {counts[0]} of {len(rows)}, global prompt on {counts[1]}")
