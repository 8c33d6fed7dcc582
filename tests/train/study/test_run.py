"""Studies of tiny random hosts, from recipe to report."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.families import FAMILIES
from tests.forks import in_a_fork
from tests.train.runs import samples, write_data
from tests.train.study.conftest import Written
from vpp_plugins import VPPError
from vpp_plugins.cli import app
from vpp_plugins.files import only_one
from vpp_plugins.train.study import Study, run, run_study, write_study_report
from vpp_plugins.train.study.hits import read_hits
from vpp_plugins.train.study.runs import Task, runs

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {
    "seeds": [0],
    "arms": {"faint": {"global_vpp.alpha": 0.99}, "strong": {"global_vpp.alpha": 0.5}},
    "sets": {"photos": {"data": "photos", "limit": 4, "batch_size": 4}},
}
BASE = {"local_vpp": False, "global_vpp.size": 32, "global_vpp.border": 4, "save_total_limit": 1}


def write_host(family: str = "llava") -> None:
    """A host and its data, where the recipe looks for them."""
    FAMILIES[family].model().save_pretrained("host")
    FAMILIES[family].processor().save_pretrained("host")
    shutil.move(write_data(Path("data"), samples(8)), "data.jsonl")
    for image in Path("data").glob("*.png"):
        shutil.move(image, image.name)


@pytest.fixture
def tiny(written: Written) -> Callable[..., Study]:
    def load(**changes: Any) -> Study:
        file = written(**{"base": BASE, **SMALL, **changes})
        if not Path("host").exists():
            write_host()
        return Study.load(file)

    return load


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run commands in this process, which takes less than to start others; returns what was called."""
    words: list[str] = []

    def call(self: object, task: Task, log: Path) -> int:
        words.append(" ".join(task.words))
        result = CliRunner().invoke(app, task.words)
        said = "" if result.exception is None else f"vpp: {result.exception}\n"
        log.write_text(result.output + said)
        return result.exit_code

    monkeypatch.setattr(run._Children, "call", call)
    return words


def test_a_study_from_recipe_to_report(tiny: Callable[..., Study], called: list[str]) -> None:
    said: list[str] = []
    study = tiny(budgets=[1])

    run_study(study, say=said.append)

    assert said[0] == "2 arms x 1 seeds, 2 runs to do, 1 at a time."
    assert said[1:6] == [
        "faint-0: training",
        "faint-0: photos at step-1",
        "faint-0: photos at final",
        "faint-0: photos, shuffled, at final",
        "faint-0: done",
    ]
    assert len(called) == 8
    markdown, page = write_study_report(study)
    assert "2 of 2 runs are finished." in markdown.read_text()
    assert "Equal steps: 2 steps, 4 samples (minutes: " in markdown.read_text()
    assert page.is_file()
    one = runs(study)[1]
    hits = read_hits(Path("out/hits/photos/strong-0.csv.gz"), one, "photos")
    assert [(point.place, point.step, point.samples) for point in hits.checkpoints] == [
        ("step-1", 1, 2),
        ("final", 2, 4),
    ]
    assert 0 < hits.minutes[0] < hits.minutes[1]
    assert hits.iou.shape == (2, 4)

    first = markdown.read_bytes(), page.read_bytes()
    run_study(study, say=said.append)
    assert len(called) == 8, "all was done"
    shutil.rmtree("out/faint-0")
    shutil.rmtree("out/strong-0")
    assert write_study_report(study)[0].read_bytes() == first[0], "hits are enough"


def test_a_run_that_fails_is_named_and_the_others_go_on(tiny: Callable[..., Study], called: list[str]) -> None:
    arms = {"lost": {"vpp": "nowhere"}, "strong": {"global_vpp.alpha": 0.5}}
    study = tiny(arms=arms, sets={"photos": {**SMALL["sets"]["photos"], "shuffled": False}})

    with pytest.raises(VPPError, match=r"1 of 2 runs failed; lost-0: training ended with 1 \(vpp: .*nowhere.*log\.txt"):
        run_study(study, say=lambda line: None)

    assert [words.split()[0] for words in called] == ["train", "train", "eval"]
    assert "Not finished, and left out where they are missing: lost-0" in write_study_report(study)[0].read_text()


def test_one_at_a_time(tiny: Callable[..., Study], called: list[str]) -> None:
    study = tiny()
    with only_one(Path("out"), "study", advice="wait"), pytest.raises(VPPError, match="another study is writing 'out'"):
        run_study(study, say=lambda line: None)
    assert called == []


def test_what_it_started_ends_with_it(tiny: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a child would hold its folder, and the next call would find it held."""
    monkeypatch.setattr(run, "python_words", lambda task: [sys.executable, "-c", "import time; time.sleep(60)"])
    begun: list[str] = []

    def say(line: str) -> None:
        begun.append(line)
        if line.endswith("training") and len(begun) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(), jobs=2, say=say)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 30


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_by_processes_two_at_a_time(tiny: Callable[..., Study]) -> None:
    tiny(sets={"photos": {**SMALL["sets"]["photos"], "shuffled": False}})
    words = [sys.executable, "-m", "vpp_plugins.cli", "study", "study.toml", "--jobs", "2"]

    finished = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr + Path("out/faint-0/log.txt").read_text()
    assert "2 runs to do, 2 at a time" in finished.stdout
    assert "2 of 2 runs are finished." in Path("out/report.md").read_text()
    assert "2 steps; the weights: out/faint-0/run/final" in Path("out/faint-0/log.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_twenty_times_it_ends_with_the_same_report(tiny: Callable[..., Study]) -> None:
    """In a process that never trains itself: threads of autograd do not survive a fork."""
    tiny(seeds=[0, 1], budgets=[1])
    words = [sys.executable, "-m", "tests.train.study.test_run", "study.toml", "20"]

    finished = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "killed 20 times" in finished.stdout


def whole_study() -> None:
    """Do what the command does, its processes forks, which need not import anything."""

    def call(self: object, task: Task, log: Path) -> int:
        def work() -> None:
            with log.open("a") as said, redirect_stdout(said), redirect_stderr(said):
                app(task.words, standalone_mode=False)

        return os.waitstatus_to_exitcode(os.waitpid(in_a_fork(work), 0)[1])

    run._Children.call = call  # type: ignore[method-assign]
    study = Study.load("study.toml")
    run_study(study, say=lambda line: None)
    write_study_report(study)


def killed_study(after: float) -> int:
    """Begin it, kill it and all its processes after so many seconds, and return its exit code."""
    child = in_a_fork(lambda: (os.setsid(), whole_study()))
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(out: Path) -> Iterator[str]:
    """Yield what a study found, without the minutes that it took."""
    study = Study.load("study.toml")
    for one in runs(study):
        hits = read_hits(out / "hits/photos" / f"{one.name}.csv.gz", one, "photos")
        yield repr([one.name, *(vars(hits)[name] for name in ("about", "ids", "kinds"))])
        yield repr([array.tolist() for array in (hits.iou, hits.areas, hits.random, hits.shuffled)])
        yield repr([(point.place, point.step, point.samples) for point in hits.checkpoints])
    for line in (out / "report.md").read_text().splitlines():
        if "compute" not in line and " min)" not in line and not line.startswith(("| faint |", "| strong |")):
            yield line


def kill_and_compare(deaths: int) -> None:
    started = time.monotonic()
    assert killed_study(after=600) == 0
    whole, expected = time.monotonic() - started, list(results(Path("out")))
    Path("out").rename("whole")
    draws, died = random.Random(0), 0
    while died < deaths:
        code = killed_study(draws.uniform(0.02, 0.4) * whole)
        assert code in (0, -signal.SIGKILL), code
        died += code != 0
        if code == 0:
            assert list(results(Path("out"))) == expected
            shutil.rmtree("out")
    assert killed_study(after=600) == 0
    assert list(results(Path("out"))) == expected
    sys.stdout.write(f"killed {died} times; a whole study takes {whole:.0f} s\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # else every child looks through, and so copies, all that was imported
    kill_and_compare(int(sys.argv[2]))
