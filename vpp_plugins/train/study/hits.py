"""What every run found, expression by expression: one small file for each run and set, which outlives its folders."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vpp_plugins.boxes import Box, box_iou
from vpp_plugins.data.scenes import load_scenes
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import image_id, load_evaluation
from vpp_plugins.files import whole_file
from vpp_plugins.train.cost import COST
from vpp_plugins.train.study.runs import FINAL, StudyRun

_DIGITS = 6


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a run that were evaluated, and what they had cost."""

    place: str
    step: int
    samples: int
    minutes: float
    """CPU minutes of the training, with those that kept encodings saved; on another device its minutes."""


@dataclass(frozen=True)
class Hits:
    """What one run found in one set."""

    arm: str
    seed: int
    name: str
    about: Mapping[str, Any]
    """Of the rows and the training data, to compare runs by: equal in all runs of a seed."""
    checkpoints: tuple[Checkpoint, ...]
    ids: list[str]
    images: Int[np.ndarray, "rows"]
    """Number of each row's image."""
    kinds: list[str]
    areas: Float[np.ndarray, "rows"]
    """Share of the image that the true box takes."""
    iou: Float[np.ndarray, "checkpoints rows"]
    random: Float[np.ndarray, "rows"]
    """How often one of the image's objects, drawn at random and boxed perfectly, would be right."""
    shuffled: Float[np.ndarray, "rows"] | None
    """IoU of the last weights, asked about another image's expressions."""

    @property
    def samples(self) -> list[float]:
        """Samples seen by each checkpoint."""
        return [float(one.samples) for one in self.checkpoints]

    @property
    def minutes(self) -> list[float]:
        """Minutes spent by each checkpoint."""
        return [one.minutes for one in self.checkpoints]

    def correct(self, threshold: float, iou: Float[np.ndarray, "..."] | None = None) -> Float[np.ndarray, "..."]:
        """Return which overlaps, by default all of them, count as found: 1 or 0."""
        values = self.iou if iou is None else iou
        found: np.ndarray = values > threshold if self.about["strict"] else values >= threshold
        return found.astype(float)


def collect(run: StudyRun, name: str) -> Hits | None:
    """Write what is evaluated of a run and a set, and return it, or what was written before; None for neither.

    What was written before stays where it is of more weights than are at hand.
    """
    path = hits_file(run, name)
    known = read_hits(path, run, name) if path.is_file() else None
    found = _collected(run, name)
    if found is None or (known is not None and len(known.checkpoints) > len(found.checkpoints)):
        return known
    if known is not None and known.shuffled is not None and found.shuffled is None:
        return known
    write_hits(path, found)
    return found


def hits_file(run: StudyRun, name: str) -> Path:
    """Return where the hits of a run and a set are kept."""
    return Path(run.study.output_dir) / "hits" / name / f"{run.name}.csv.gz"


def write_hits(path: Path, hits: Hits) -> None:
    """Write a file; the same hits give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(gzip.compress(_text(hits).encode(), mtime=0))


def read_hits(path: Path, run: StudyRun, name: str) -> Hits:
    """Read what `collect` wrote; raises VPPError where it is damaged."""
    try:
        first, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        about = json.loads(first.removeprefix("# "))
        checkpoints = tuple(Checkpoint(**one) for one in about.pop("checkpoints"))
        rows = list(csv.DictReader(lines))
        return Hits(
            arm=run.arm,
            seed=run.seed,
            name=name,
            about=about,
            checkpoints=checkpoints,
            ids=[row["id"] for row in rows],
            images=np.array([int(row["image"]) for row in rows]),
            kinds=[row["kind"] for row in rows],
            areas=_column(rows, "area"),
            iou=np.stack([_column(rows, f"iou {one.place}") for one in checkpoints]),
            random=_column(rows, "random"),
            shuffled=_column(rows, "shuffled") if rows and "shuffled" in rows[0] else None,
        )
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise VPPError(f"'{path}' is damaged ({error!r}): delete it, or put a copy back.") from None


def _column(rows: Sequence[Mapping[str, str]], name: str) -> Float[np.ndarray, "rows"]:
    return np.array([float(row[name]) for row in rows])


def _text(hits: Hits) -> str:
    """Return the file: a line of JSON, then comma-separated values."""
    columns: dict[str, Sequence[Any]] = {
        "id": hits.ids,
        "image": hits.images.tolist(),
        "kind": hits.kinds,
        "area": hits.areas.tolist(),
        "random": hits.random.tolist(),
        **{f"iou {one.place}": values.tolist() for one, values in zip(hits.checkpoints, hits.iou, strict=True)},
        **({} if hits.shuffled is None else {"shuffled": hits.shuffled.tolist()}),
    }
    about = {**hits.about, "checkpoints": [vars(one) for one in hits.checkpoints]}
    text = io.StringIO()
    text.write(f"# {json.dumps(about)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _collected(run: StudyRun, name: str) -> Hits | None:
    places = [place for place in run.places(name) if (run.evaluation(place, name) / "results.json").is_file()]
    if not places:
        return None
    folders = [run.evaluation(place, name) for place in places]
    evaluations = [load_evaluation(folder) for folder in folders]
    control = run.evaluation(FINAL, name, shuffled=True)
    mixed = load_evaluation(control) if (control / "results.json").is_file() else None
    last = evaluations[-1]
    answers = [one.answer for one in last.judged]
    images = [image_id(answer.image, answer.id) for answer in answers]
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    return Hits(
        arm=run.arm,
        seed=run.seed,
        name=name,
        about={
            "rows_sha256": last.settings["rows_sha256"],
            "data_sha256": run.data_sha256(),
            "strict": last.protocol.correct == "iou > threshold",
        },
        checkpoints=tuple(_checkpoint(run, place) for place in places),
        ids=[answer.id for answer in answers],
        images=np.array([numbers[image] for image in images]),
        kinds=[answer.kind for answer in answers],
        areas=_rounded(_area(answer.boxes[0]) / (answer.size_hw[0] * answer.size_hw[1]) for answer in answers),
        iou=np.stack([_rounded(one.iou for one in evaluation.judged) for evaluation in evaluations]),
        random=_rounded(_chances(run.study.sets[name].data, images, last.judged)),
        shuffled=None if mixed is None else _rounded(one.iou for one in mixed.judged),
    )


def _checkpoint(run: StudyRun, place: str) -> Checkpoint:
    path = run.weights(place) / COST
    try:
        cost = json.loads(path.read_bytes())
        seconds = cost["cpu_seconds"] + cost["cpu_seconds_saved"] if cost["device"] == "cpu" else cost["seconds"]
        return Checkpoint(place, cost["step"], cost["samples"], round(seconds / 60, 4))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VPPError(f"'{path}' does not say what the weights cost ({error!r}): train that run anew.") from None


def _chances(data: str, images: Sequence[str], judged: Sequence[Any]) -> list[float]:
    """Return for each row the share of its image's objects that would be right.

    Objects are those of a scene folder, and else the boxes that the set asks for in the image.
    """
    asked: dict[str, set[Box]] = {}
    for image, one in zip(images, judged, strict=True):
        asked.setdefault(image, set()).add(one.answer.boxes[0])
    listed: dict[str, list[Box]] = {}
    if (Path(data) / "scenes.jsonl").is_file():
        records = load_scenes(data).records
        listed = {record["key"]: [tuple(item["box_xyxy"]) for item in record["objects"]] for record in records}
    chances = []
    for image, one in zip(images, judged, strict=True):
        objects = listed.get(one.answer.id.rpartition("/")[0]) or sorted(asked[image])
        chances.append(sum(box_iou(box, one.answer.boxes[0]) >= 0.5 for box in objects) / len(objects))
    return chances


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _rounded(values: Any) -> Float[np.ndarray, "rows"]:
    return np.array([round(float(value), _DIGITS) for value in values])
