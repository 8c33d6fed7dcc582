"""Running a study: every run's commands as processes, several runs at a time, from wherever they were left."""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from vpp_plugins.errors import VPPError, few
from vpp_plugins.files import only_one, sealed, unsealed, write_whole
from vpp_plugins.train.study.runs import StudyRun, Task, check_equal_data, python_words, runs
from vpp_plugins.train.study.study import Study

STUDY = "study.json"
_SETTINGS = "the settings of a study"
_LOOK = 1.0
"""Seconds after which an interrupt is seen that another thread got: no thread wakes the one that waits."""


def run_study(study: Study, *, jobs: int = 1, say: Callable[[str], object] = print) -> None:
    """Train and evaluate all that is not done, `jobs` runs at a time; `say` gets a line for each part.

    Every part is a process of `vpp train` or `vpp eval run`, whose words go to `log.txt` in the run's folder. Killed at
    any moment, the same call goes on. Where one run fails the others go on, and VPPError names it at the end. Also
    raises VPPError where the folder holds another study, another process is at it, or a part was made with other
    settings: before anything is trained.
    """
    study.check_arms()
    with only_one(Path(study.output_dir), "study", advice="choose another output_dir"):
        record(study)
        left = [run for run in runs(study) if False in [task.done() for task in run.tasks()]]
        say(f"{len(study.arms)} arms x {len(study.seeds)} seeds, {len(left)} runs to do, {jobs} at a time.")
        children = _Children(jobs)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                futures = [pool.submit(_do, run, children, say) for run in left]
                while wait(futures, timeout=_LOOK).not_done:
                    pass
                failed = [error for future in futures if (error := future.result())]
            finally:
                children.stop()
        check_equal_data(study)
    if failed:
        raise VPPError(f"{len(failed)} of {len(left)} runs failed; {few(failed, 2)}")


def record(study: Study) -> None:
    """Write what the folder's study is; raises VPPError where it holds another, arms, seeds and sets beside these."""
    path, values = Path(study.output_dir) / STUDY, study.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        known = _known(path)
        for part in ("recipe", "settings", "budgets"):
            _check_same(path, part, known[part], values[part])
        for part in ("arms", "sets"):
            for name in known[part].keys() & values[part].keys():
                _check_same(path, f"{part}.{name}", known[part][name], values[part][name])
            values[part] = known[part] | values[part]
        if values == known:
            return
    write_whole(path, json.dumps(sealed(values, _SETTINGS), indent=1, ensure_ascii=False) + "\n")


def _known(path: Path) -> dict[str, Any]:
    try:
        return unsealed(json.loads(path.read_bytes()), _SETTINGS)
    except (ValueError, RecursionError) as error:
        raise VPPError(f"'{path}' is damaged ({error}): delete it where you know that the study is the same.") from None


def _check_same(path: Path, part: str, known: Any, now: Any) -> None:
    if known != now:
        tables = isinstance(known, dict) and isinstance(now, dict)
        keys = sorted(key for key in known.keys() | now.keys() if known.get(key) != now.get(key)) if tables else []
        where = f"{part}.{keys[0]}" if keys else part
        old, new = (known.get(keys[0]), now.get(keys[0])) if keys else (known, now)
        raise VPPError(
            f"'{path.parent}' holds another study: its {where} is {str(old)[:80]}, and now {str(new)[:80]}. Give this "
            "one an output_dir of its own."
        )


def _do(run: StudyRun, children: "_Children", say: Callable[[str], object]) -> str:
    """Do what is left of a run; returns why it failed, or nothing."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for task in run.tasks():
        if task.done():
            continue
        if children.stopped:
            return ""
        say(f"{run.name}: {task.what}")
        log = run.folder / "log.txt"
        code = children.call(task, log)
        if children.stopped:
            return ""
        if code or not task.done():
            return f"{run.name}: {task.what} ended with {code} ({_last_line(log)}); all it said: {log}."
    say(f"{run.name}: done")
    return ""


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("vpp: ")]
    return (said or lines or [""])[-1].strip().removesuffix(".")


class _Children:
    """Processes that end with this one, unless it is killed outright: then they hold their folders till they end."""

    def __init__(self, jobs: int) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}

    def call(self, task: Task, log: Path) -> int:
        """Run a task to its end; returns its exit code."""
        with log.open("ab") as said:
            with self._lock:
                if self.stopped:
                    return -1
                child = subprocess.Popen(
                    python_words(task),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                )
                self._running.add(child)
            code = child.wait()
        with self._lock:
            self._running.discard(child)
        return code

    def stop(self) -> None:
        """End what runs."""
        with self._lock:
            self.stopped = True
            for child in self._running:
                child.terminate()
