"""No work is lost: a run that is killed, at any point and however often, ends with the weights of one that is not."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.families import attached_family
from tests.forks import in_a_child
from tests.tiny import FULL, ToyPlugin, attached, tiny_llava
from tests.train.runs import recipe, samples, write_data, write_shards
from vpp_plugins import VPPError, files
from vpp_plugins.plugins.registry import manager
from vpp_plugins.train import trainer
from vpp_plugins.train.checkpoints import last_checkpoint
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")

TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}{{ '<image> ' if p.type == 'image' else p.text + ' ' }}{% endfor %}"
    "{% if m.role == 'user' %}{{ 'ASSISTANT: ' if not loop.last or add_generation_prompt }}{% else %}{{ '</s> ' }}"
    "{% endif %}{% endfor %}"
)


def host(kind: str) -> tuple[Any, Any]:
    if kind == "grown":
        model, processor = attached(tiny_llava(vocabulary=FULL, tied=False))
        processor.chat_template = TEMPLATE
        return model, processor
    return attached_family("llava")


LORA: dict[str, Any] = {"lora_scope": "llm", "lora_r": 2, "lora_dropout": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"gradient_accumulation_steps": 2},
    "lora": LORA,
    "shards": {**LORA, "data_format": "webdataset", "dataloader_num_workers": 2},
    "prompts": {"freeze": ["llm", "vision", "projector"]},
    "grown": {"gradient_accumulation_steps": 2},
}
STEPS = 5


class Killer:
    """Counts what a run does, and kills its process at one of these: some writes then leave half a file."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def install(self) -> None:
        for module, name in (
            (torch, "save"),
            (safetensors.torch, "save_file"),
            (trainer, "save_file"),
            (trainer, "write_vpp"),
            (trainer, "write_card"),
            (trainer.VPPTrainer, "training_step"),
            (trainer.VPPTrainer, "_save_checkpoint"),
            (files, "_to_disk"),
            (files.shutil, "rmtree"),
        ):
            setattr(module, name, self.counting(getattr(module, name)))

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if function.__name__ in ("save", "save_file"):
                    function(*args, **kwargs)
                    path = Path(args[1])
                    os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def run(kind: str, data: Path, out: Path, killer: Killer | None = None) -> None:
    model, processor = host(kind)
    if killer is not None:
        killer.install()
    train(
        recipe(
            data, out, max_steps=STEPS, save_steps=2, save_total_limit=1, resume_from_checkpoint="auto", **KINDS[kind]
        ),
        model=model,
        processor=processor,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {f"{path.name}/{name}": value for name, value in safetensors.torch.load_file(path).items()}
    return found


def check_killed_runs(kinds: Sequence[str], folder: Path, seed: str, deaths: int) -> None:
    """Do what follows in a process that never trains itself: threads of autograd do not survive a fork."""
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [sys.executable, "-m", "tests.train.test_resume", str(folder), seed, str(deaths), *kinds],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'adapters'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]


def kill_and_compare(kind: str, folder: Path, points: random.Random, deaths: int) -> None:
    """Kill a run so often, or until it comes through, but not before it has gone on from a checkpoint."""
    data = write_data(folder / "data", samples(10, text_only=[3, 4]))
    if KINDS[kind].get("data_format") == "webdataset":
        data = write_shards(folder / "shards", samples(10, text_only=[3, 4]), images=data.parent)
    assert in_a_child(lambda: run(kind, data, folder / "whole")) == 0
    died, resumed = 0, False
    while died < deaths or not resumed:
        killer = Killer(points.randint(1, 24))  # drawn here: a child's draws are lost with it
        code = in_a_child(lambda killer=killer: run(kind, data, folder / "killed", killer))
        assert code in (0, -signal.SIGKILL)
        if code == 0 and resumed:
            break
        if code == 0:
            shutil.rmtree(folder / "killed")  # never killed after its first checkpoint: from the beginning
            continue
        died += 1
        last = last_checkpoint(folder / "killed")
        assert last is None or (last / "vpp.safetensors").is_file()
        resumed = resumed or last is not None
    if not (folder / "killed/final").exists():
        assert in_a_child(lambda: run(kind, data, folder / "killed")) == 0

    expected, found = weights(folder / "whole/final"), weights(folder / "killed/final")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == [], kind


@pytest.mark.timeout(300)
def test_killed_runs_end_with_the_same_weights(tmp_path: Path) -> None:
    """All in one process, since importing takes longer than a run."""
    check_killed_runs(["shards"], tmp_path, "0", deaths=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_that_is_killed_often_ends_with_the_same_weights(kind: str, seed: int, tmp_path: Path) -> None:
    check_killed_runs([kind], tmp_path, f"{kind} {seed}", deaths=8)


@pytest.mark.parametrize("kind", ["prompts", "whole"])
def test_a_finished_run_is_not_trained_again(kind: str, tmp_path: Path) -> None:
    """One that was killed between its last checkpoint and its end stopped at other tokens: they were not aligned."""
    data = write_data(tmp_path / "data", samples(10))
    run(kind, data, tmp_path / "run")
    timed = ("cost.json", "manifest.json")  # the seconds, and their SHA-256
    expected = {path.name: path.read_bytes() for path in (tmp_path / "run/final").iterdir() if path.name not in timed}

    run(kind, data, tmp_path / "run")

    found = {path.name: path.read_bytes() for path in (tmp_path / "run/final").iterdir() if path.name not in timed}
    assert [name for name in expected | found if expected.get(name) != found.get(name)] == []


def test_a_checkpoint_without_prompts_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(10))
    run("whole", data, tmp_path / "run")
    (tmp_path / "run/checkpoint-5/vpp.safetensors").unlink()

    with pytest.raises(VPPError, match=r"checkpoint-5' holds no vpp\.safetensors"):
        run("whole", data, tmp_path / "run")


def test_an_earlier_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(10))
    run("prompts", data, tmp_path / "run")
    model, processor = host("prompts")

    with pytest.raises(VPPError, match="holds an earlier run"):
        train(recipe(data, tmp_path / "run"), model=model, processor=processor)


def test_other_data_are_refused(tmp_path: Path) -> None:
    run("prompts", write_data(tmp_path / "data", samples(10)), tmp_path / "run")

    with pytest.raises(VPPError, match="begun with other data"):
        run("prompts", write_data(tmp_path / "data", samples(11)), tmp_path / "run")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data", samples(10))
    saved: list[str] = []

    def save(*args: Any, **kwargs: Any) -> None:
        if len(saved) == 4:
            raise OSError(28, "No space left on device")
        saved.append(str(args[1]))
        real(*args, **kwargs)

    real = torch.save
    monkeypatch.setattr(torch, "save", save)

    with pytest.raises(VPPError, match=r"is full, so checkpoint-\d was not saved"):
        run("whole", data, tmp_path / "run")

    monkeypatch.undo()
    assert last_checkpoint(tmp_path / "run") is not None
    assert not list((tmp_path / "run").glob(".*.part"))
    run("whole", data, tmp_path / "run")
    run("whole", data, tmp_path / "other")
    expected = weights(tmp_path / "other/final")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "run/final").items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    manager().register(ToyPlugin(), "toy")
    gc.freeze()  # else every child looks through, and so copies, all that was imported
    chosen = random.Random(sys.argv[2])
    for each in sys.argv[4:]:
        kind_folder = Path(sys.argv[1]) / each
        kind_folder.mkdir()
        kill_and_compare(each, kind_folder, chosen, int(sys.argv[3]))
