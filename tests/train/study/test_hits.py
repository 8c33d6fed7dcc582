import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vpp_plugins import VPPError
from vpp_plugins.train.study import Study
from vpp_plugins.train.study.hits import Checkpoint, Hits, collect, hits_file, read_hits, write_hits
from vpp_plugins.train.study.runs import StudyRun, runs

Load = Callable[..., Study]


def made(
    run: StudyRun, level: float, *, rows: int = 12, minutes: float = 1.0, name: str = "photos", **about: Any
) -> Hits:
    """Hits of a run whose overlaps lie around a level, three rows to an image, the same for the same run."""
    generator = np.random.default_rng([run.seed, *map(ord, run.arm)])
    places = run.places("photos")
    steps = range(1, len(places) + 1)
    rise = np.array(steps)[:, None] / len(places)
    return Hits(
        arm=run.arm,
        seed=run.seed,
        name="photos",
        about={"rows_sha256": "r", "data_sha256": "d", "strict": False, **about},
        checkpoints=tuple(Checkpoint(p, 10 * n, 20 * n, minutes * n) for n, p in zip(steps, places, strict=True)),
        ids=[f"photo{row // 3}/{row % 3}" for row in range(rows)],
        images=np.arange(rows) // 3,
        kinds=["name" if row % 2 else "size" for row in range(rows)],
        areas=np.linspace(0.01, 0.5, rows).round(6),
        iou=np.clip(generator.normal(level, 0.3, rows) * rise, 0, 1).round(6),
        random=np.full(rows, 0.25),
        shuffled=np.clip(generator.normal(0.2, 0.2, rows), 0, 1).round(6),
    )


def same(a: Hits, b: Hits) -> bool:
    plain = {"arm", "seed", "name", "about", "checkpoints", "ids", "kinds"}
    return all(
        left == vars(b)[name] if name in plain else np.array_equal(left, vars(b)[name])
        for name, left in vars(a).items()
    )


def test_what_is_written_is_read(study: Load, tmp_path: Path) -> None:
    run = runs(study(budgets=[1]))[0]
    hits = made(run, 0.5)
    write_hits(tmp_path / "a.csv.gz", hits)
    write_hits(tmp_path / "b.csv.gz", hits)

    assert same(read_hits(tmp_path / "a.csv.gz", run, "photos"), hits)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_it_is_small_enough_to_commit(study: Load, tmp_path: Path) -> None:
    """Of 350 expressions at six points."""
    run = runs(study(base={"max_steps": 9}, budgets=[1, 2, 3, 4, 5]))[0]
    write_hits(tmp_path / "a.csv.gz", made(run, 0.5, rows=350))
    assert (tmp_path / "a.csv.gz").stat().st_size < 16_000


def test_the_rule_of_the_protocol_counts(study: Load) -> None:
    run = runs(study())[0]
    half = np.array([0.49, 0.5, 0.51])
    assert made(run, 0.5).correct(0.5, half).tolist() == [0, 1, 1]
    assert made(run, 0.5, strict=True).correct(0.5, half).tolist() == [0, 0, 1]


CHANGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:-20],
    lambda data: b"",
    lambda data: b"no gzip",
    lambda data: data[:20] + b"\xff" * 20 + data[40:],
    lambda data: gzip.compress(b"# 5\n"),
]


@pytest.mark.parametrize("change", CHANGES, ids=["cut", "empty", "no gzip", "other bytes inside", "no table"])
def test_a_damaged_file_is_named(study: Load, change: Callable[[bytes], bytes]) -> None:
    """A byte changed inside is a zlib.error, which is of no other kind: the report ended with a traceback."""
    run = runs(study())[0]
    path = hits_file(run, "photos")
    write_hits(path, made(run, 0.5))
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(VPPError, match=r"faint-0\.csv\.gz' is damaged"):
        collect(run, "photos")


def test_without_evaluations_what_was_kept_counts(study: Load) -> None:
    run = runs(study())[0]
    assert collect(run, "photos") is None
    hits = made(run, 0.5)
    write_hits(hits_file(run, "photos"), hits)

    found = collect(run, "photos")

    assert found is not None
    assert same(found, hits)
