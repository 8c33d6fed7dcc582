"""How many of our files a reader opens to follow the three ways through the library; each number may only fall.

Counted are Python files of the core of which a function runs; errors.py, config.py and the tests' own generator are
left out, and so are the templates of pages.
In 0.1.0 the three ways had 13, 37 and 34.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import vpp_plugins
from tests.evaluate.conftest import Stub
from tests.tiny import tiny_llava
from tests.train.runs import recipe, samples, toy_prompts, write_data
from vpp_plugins import attach_vpp

CORE = Path(vpp_plugins.__file__).parent
LEFT_OUT = {"errors.py", "config.py"}


def files_that_run(way: Callable[[], Any], *, counts: Callable[[str], bool] = lambda file: True) -> set[str]:
    """Return our files in which a function runs on the way; imports do not count."""
    found: set[str] = set()

    def see(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(str(CORE)) or not code.co_filename.endswith(".py"):
            return  # at once: importing scipy.stats alone comes here a million times
        path = Path(code.co_filename)
        ours = code.co_name != "<module>" and path.parent.name != "testing"
        if event == "call" and ours and path.name not in LEFT_OUT and counts(str(path)):
            found.add(str(path.relative_to(CORE.parent)))

    sys.setprofile(see)
    try:
        way()
    finally:
        sys.setprofile(None)
    return found


pytestmark = pytest.mark.usefixtures("toy")


def test_attaching() -> None:
    model = tiny_llava()
    attach_vpp(tiny_llava(), toy_prompts())  # what is read once and kept
    ran = files_that_run(lambda: attach_vpp(model, toy_prompts()))
    assert len(ran) <= 7, "\n".join(sorted(ran))


def test_a_training_sample_from_file_to_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data._utils.fetch import _MapDatasetFetcher
    from transformers import Trainer

    from examples.families.tiny_hosts import FAMILIES
    from vpp_plugins.train import train

    on_the_way = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal on_the_way
            on_the_way += 1
            try:
                return function(*args, **kwargs)
            finally:
                on_the_way -= 1

        return run

    monkeypatch.setattr(_MapDatasetFetcher, "fetch", counted(_MapDatasetFetcher.fetch))
    monkeypatch.setattr(Trainer, "training_step", counted(Trainer.training_step))
    data = write_data(tmp_path / "data", samples(4))
    family = FAMILIES["llava"]
    settings = recipe(data, tmp_path / "run", max_steps=1, save_steps=1)
    model, processor = attach_vpp(family.model(), toy_prompts()), family.processor()
    ran = files_that_run(
        lambda: train(settings, model=model, processor=processor),
        counts=lambda file: on_the_way > 0 or f"{CORE}/data/" in file,
    )
    assert len(ran) <= 24, "\n".join(sorted(ran))


def test_an_evaluation_row_from_file_to_report(tmp_path: Path) -> None:
    from vpp_plugins.evaluate.benchmark import load_rows, measure
    from vpp_plugins.evaluate.protocol import protocol

    data = write_data(tmp_path / "data", [])
    turn = {"locate": "the cup", "boxes": [[1, 2, 20, 20]]}
    data.write_text(json.dumps({"id": "a", "image": "0.png", "width": 40, "height": 24, "turns": [turn]}) + "\n")

    def way() -> None:
        rows = load_rows(str(data), data_format="neutral")
        measure(
            Stub(lambda *_: "[0.1, 0.2, 0.5, 0.6]"), rows, protocol("vpp-llava"), tmp_path / "out", model="m", data="d"
        )

    ran = files_that_run(way)
    assert len(ran) <= 22, "\n".join(sorted(ran))
