"""Kill work at random moments until it is done: `python -m tests.faults.killing 100 0` (how many kills, seed).

Each job is done once in peace. Then it is begun, killed by SIGKILL at a random moment of the time that this took,
begun again in the same place, and so on until it ends by itself; what it wrote is then compared byte for byte.
"""

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.data.formats.layouts import EVALUATION, lines
from tests.evaluate.conftest import Stub, make_rows, truthful
from tests.forks import in_a_fork
from tests.reference import FOLDER, resnet
from tests.tiny import ToyPlugin
from tests.train.runs import samples, write_data, write_shards
from tests.train.test_resume import KINDS, run
from vpp_adapters.vpp_llava import convert as vpp_llava
from vpp_adapters.vpp_llava.config import RESNETS
from vpp_plugins.data import convert
from vpp_plugins.data.dataset import open_data
from vpp_plugins.data.scenes import Shapes, write_scenes
from vpp_plugins.evaluate import measure, protocol
from vpp_plugins.files import MANIFEST
from vpp_plugins.plugins import manager


def train_as(kind: str) -> Callable[[Path, Path], None]:
    name = "shards" if KINDS[kind].get("data_format") == "webdataset" else "data.jsonl"
    return lambda data, out: run(kind, data / name, out)


def ask(data: Path, out: Path) -> None:
    rows = make_rows(60)

    def slowly(question: str, image: Any) -> str:
        time.sleep(0.004)
        return truthful(rows)(question, image)

    measure(Stub(slowly), rows, protocol("default"), out, model="stub", data="rows", batch_size=3)


def convert_lines(data: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    names = {"source_format": "eval-jsonl", "target_format": "neutral"}
    convert(data / "lines.jsonl", out / "lines.jsonl", **names, overwrite=True, progress=False)


def convert_to_shards(data: Path, out: Path) -> None:
    names: dict[str, Any] = {"source_format": "neutral", "target_format": "webdataset", "images": data}
    convert(data / "many.jsonl", out, **names, shard_bytes=100_000, overwrite=True, progress=False)


def convert_for_training(data: Path, out: Path) -> None:
    open_data(data / "many.jsonl", "neutral", cache=out, images=data, progress=False)


def convert_checkpoint(data: Path, out: Path) -> None:
    if not out.exists():  # it writes to a new folder only
        vpp_llava.convert(FOLDER / "checkpoint", out)


def draw_scenes(data: Path, out: Path) -> None:
    write_scenes(out, 160, 0, "val", source=Shapes(), size=96, progress=False)


@dataclass(frozen=True)
class Job:
    """What is done with the data in one folder to fill another, and how many of a hundred kills it gets."""

    work: Callable[[Path, Path], None]
    kills: int
    result: str = ""
    """The folder in it that is compared."""


JOBS: Mapping[str, Job] = {
    **{f"training, {kind}": Job(train_as(kind), 6, "final") for kind in KINDS},
    "evaluation": Job(ask, 20),
    "conversion of lines": Job(convert_lines, 10),
    "conversion to shards": Job(convert_to_shards, 10),
    "conversion for training": Job(convert_for_training, 5),
    "conversion of a checkpoint": Job(convert_checkpoint, 10),
    "scenes": Job(draw_scenes, 15),
}
assert sum(job.kills for job in JOBS.values()) == 100


def write_all_data(folder: Path) -> Path:
    write_data(folder, samples(10, text_only=[3, 4]))
    write_shards(folder / "shards", samples(10, text_only=[3, 4]), images=folder)
    lines(folder / "lines.jsonl", *[{**EVALUATION, "sent": f"cup {number}"} for number in range(10_000)])
    many = write_data(folder / "many", samples(3000)).rename(folder / "many.jsonl")
    return many.parent


def begin(work: Callable[[], None]) -> int:
    """Begin in a forked process that prints nothing."""

    def silent() -> None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process ends
        work()

    return in_a_fork(silent)


def ended(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "it failed; above is why"


def killed(child: int, after: float) -> bool:
    """Kill the process after so many seconds; returns whether it had not ended by itself."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, but for locks and what a run took, which a manifest of files names too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(_without_cost(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "cost.json")
    }


def _without_cost(path: Path) -> bytes:
    if path.name == MANIFEST and "files" in (listed := json.loads(path.read_bytes())):
        return json.dumps({name: one for name, one in listed["files"].items() if name != "cost.json"}).encode()
    return path.read_bytes()


def age_parts(folder: Path) -> None:
    """A part that is seconds old may be one whose writer has not locked it yet, and stays."""
    for part in folder.rglob(".*.part"):
        os.utime(part, (0, 0))


def kill_and_compare(job: Job, data: Path, folder: Path, kills: int, draw: random.Random) -> tuple[Counter[str], int]:
    """Return the kills by what they left, and how many results were compared."""
    began = time.monotonic()
    ended(begin(partial(job.work, data, folder / "whole")))
    length, expected = time.monotonic() - began, hashes(folder / "whole" / job.result)
    left: Counter[str] = Counter()
    compared = 0
    while left.total() < kills or not compared:
        place = folder / f"killed-{compared}"
        place.mkdir()
        out = place / "whole"
        work = partial(job.work, data, out)
        while left.total() < kills and killed(begin(work), draw.uniform(0, 1.3 * length)):
            done = (out / job.result).is_dir() and hashes(out / job.result) == expected
            left["whole" if done else "a part" if any(place.iterdir()) else "nothing"] += 1
            age_parts(place)
        ended(begin(work))
        found = hashes(out / job.result)
        differing = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        assert not differing, f"{differing} ended otherwise after {dict(left)}"
        assert [path.name for path in place.iterdir()] == ["whole"]
        assert not list(place.rglob(".*.part"))
        shutil.rmtree(place)
        compared += 1
    return left, compared


def main(kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    manager().register(ToyPlugin(), "toy")
    RESNETS[resnet.STEM, resnet.DEPTHS] = resnet.NAME
    vpp_llava.SHARD_BYTES = 40_000
    gc.freeze()  # else every child looks through, and so copies, all that was imported
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        data = write_all_data(Path(folder, "data"))
        for number, (name, job) in enumerate(JOBS.items()):
            place = Path(folder, str(number))
            place.mkdir()
            wanted = max(1, job.kills * kills // 100)
            left, compared = kill_and_compare(job, data, place, wanted, random.Random(f"{seed} {name}"))
            total += left
            said = ", ".join(f"{count} left {what}" for what, count in sorted(left.items()))
            print(f"{name:28} {left.total():4} kills: {said}; {compared} results, each identical", flush=True)
    print(f"{'all':28} {total.total():4} kills, seed {seed}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
