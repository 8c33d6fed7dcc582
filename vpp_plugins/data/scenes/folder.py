"""Scenes as files: `images/000000.jpg` and so on, `scenes.jsonl` with one line per image, and `manifest.json`.

The committed photographs are scenes too, whose objects nobody has listed.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, overload

from vpp_plugins.data.json_stream import json_value, progress_bar, stream_lines
from vpp_plugins.data.record import image_path
from vpp_plugins.data.scenes.assets import Assets
from vpp_plugins.data.scenes.expressions import BoxXYXY, Expression, SceneObject
from vpp_plugins.data.scenes.generator import SCENES_VERSION, Scene, SceneGenerator
from vpp_plugins.data.scenes.source import SceneSource
from vpp_plugins.errors import VPPError
from vpp_plugins.files import sha256_of, write_whole
from vpp_plugins.images import load_image

FOLDER = Path(__file__).with_name("real_photos")
"""Where 29 committed photographs lie, with 50 expressions whose boxes were drawn by hand, in refs.json.

All are in the public domain or CC0; author, licence and source of each stand there too."""
_SHA256 = "scenes_sha256"
_CHUNK = 50  # scenes between two points from which a killed run continues


def write_scenes(
    out: str | Path,
    count: int,
    seed: int,
    split: str,
    *,
    source: Assets | SceneSource,
    size: int = 448,
    min_objects: int = 3,
    max_objects: int = 6,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Writes scenes 0 to count - 1 as JPEG (quality 92) with their expressions, and returns the folder.

    The same arguments and images give the same bytes, whatever `workers` (processes) is. The folder `out` appears
    when complete; until then the work lies beside it, and a killed run continues there. A complete folder with the
    same settings is left as it is. `progress` shows a bar. Raises VPPError where `out` holds anything else.
    """
    out = Path(out)
    if count < 1 or workers < 1:
        raise VPPError(f"count and workers must be at least 1, not {count} and {workers}.")
    generator = SceneGenerator(
        source, split=split, seed=seed, size=size, min_objects=min_objects, max_objects=max_objects
    )
    manifest = {
        "scenes_version": SCENES_VERSION,
        "source": generator.source.digest(),
        "split": split,
        "seed": seed,
        "count": count,
        "size": size,
        "min_objects": min_objects,
        "max_objects": max_objects,
    }
    work = out.parent / f".{out.name}-partial"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _check_same(out / "manifest.json", manifest)
        shutil.rmtree(work, ignore_errors=True)
        return out
    if out.is_symlink():
        raise VPPError(f"'{out}' is a link, and scenes take its place: name the folder that it leads to.")
    _start_or_continue(work, manifest)
    starts = [start for start in range(0, count, _CHUNK) if not _lines_file(work, start).is_file()]
    left = sum(min(_CHUNK, count - start) for start in starts)
    with progress_bar("Scenes", shown=progress, total=count, done=count - left) as advance:
        for written in _write_chunks(generator, work, count, starts, workers):
            advance(written)
    _finish(work, out, count)
    return out


def load_scenes(folder: str | Path) -> "SceneFolder":
    """Opens what `write_scenes` wrote; warns of a folder of 0.1.0, which has no hashes.

    Raises VPPError for a folder that is no finished scene folder, or that was changed since it was written.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file() or not (folder / "scenes.jsonl").is_file():
        raise VPPError(
            f"{folder} holds no manifest.json and scenes.jsonl. Write some with `vpp data scenes`, or write_scenes()."
        )
    manifest = json_value((folder / "manifest.json").read_bytes(), f"'{folder / 'manifest.json'}'")
    records = tuple(stream_lines(folder / "scenes.jsonl"))
    if not isinstance(manifest, dict) or not {"count", "split"} <= manifest.keys():
        raise VPPError(f"'{folder / 'manifest.json'}' does not say count and split. Write the scenes again.")
    if len(records) != manifest["count"]:
        raise VPPError(f"{folder} should hold {manifest['count']} scenes but lists {len(records)}. Write it again.")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not isinstance(record.get("image"), str):
            raise VPPError(f"'{folder / 'scenes.jsonl'}', line {number}, names no image. Write the scenes again.")
        path = image_path(folder, record["image"])
        if "sha256" in record and path.is_file() and sha256_of(path) != record["sha256"]:
            raise VPPError(f"'{path}' was changed since it was written. Write the scenes again.")
    if _SHA256 not in manifest and not any("sha256" in record for record in records):
        warnings.warn(
            f"'{folder}' has no SHA-256 of its scenes, as version 0.1.0 wrote none: whether they are as they were "
            "written cannot be checked.",
            stacklevel=2,
        )
    elif manifest.get(_SHA256) != sha256_of(folder / "scenes.jsonl"):
        raise VPPError(f"'{folder / 'scenes.jsonl'}' was changed since it was written. Write the scenes again.")
    return SceneFolder(folder, manifest, records)


@dataclass(frozen=True)
class SceneFolder(Sequence[Scene]):
    """The scenes of a folder, in order; each image is read when its scene is asked for."""

    folder: Path
    manifest: dict[str, Any]
    records: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Scene]": ...
    def __getitem__(self, index: int | slice) -> "Scene | list[Scene]":
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        record = self.records[index]
        return Scene(
            key=record["key"],
            image=load_image(image_path(self.folder, record["image"])),
            width=record["width"],
            height=record["height"],
            objects=tuple(
                SceneObject(item["name"], tuple(item["box_xyxy"]), item["attribute"]) for item in record["objects"]
            ),
            expressions=tuple(
                Expression(item["text"], boxes_of(item), item["kind"], item["object"]) for item in record["expressions"]
            ),
        )


def load_real_photos() -> list[Scene]:
    """All photographs in the order of refs.json. Every expression's kind is "photo"; objects are not listed."""
    samples = []
    for photo in json.loads((FOLDER / "refs.json").read_text(encoding="utf-8")):
        image = load_image(FOLDER / photo["file"])
        expressions = tuple(Expression(ref["expr"], boxes_of(ref), "photo", None) for ref in photo["refs"])
        samples.append(Scene(Path(photo["file"]).stem, image, image.width, image.height, (), expressions))
    return samples


def boxes_of(record: Mapping[str, Any]) -> tuple[BoxXYXY, ...]:
    """Return the boxes of an expression's record."""
    boxes = [record["box_xyxy"]] if "box_xyxy" in record else record["boxes_xyxy"]
    return tuple((left, top, right, bottom) for left, top, right, bottom in boxes)


# While scenes are written, the work folder holds `lines/`, one file per finished chunk, and `scenes/`, which gets its
# final name in the last step.


def _start_or_continue(work: Path, manifest: dict[str, Any]) -> None:
    for folder in (work, work / "lines", work / "scenes", work / "scenes" / "images"):
        if folder.is_symlink():
            raise VPPError(f"'{folder}' is a link, and scenes are not written through links: delete it.")
        folder.mkdir(parents=True, exist_ok=True)
    stored = work / "scenes" / "manifest.json"
    if stored.exists():
        _check_same(stored, manifest)
    else:
        write_whole(stored, json.dumps(manifest, indent=1) + "\n")


def _check_same(stored: Path, manifest: dict[str, Any]) -> None:
    if not stored.is_file():
        raise VPPError(f"{stored.parent} exists but holds no scenes. Name a new or an empty folder.")
    found = json.loads(stored.read_text(encoding="utf-8"))
    different = [
        f"{key}={found.get(key)!r}, not {value!r}" for key, value in manifest.items() if found.get(key) != value
    ]
    if different:
        raise VPPError(
            f"{stored.parent} was begun with other settings ({'; '.join(different)}). "
            "Name another folder, or delete this one."
        )


def _lines_file(work: Path, start: int) -> Path:
    return work / "lines" / f"{start:06d}.jsonl"


def _write_chunks(generator: SceneGenerator, work: Path, count: int, starts: list[int], workers: int) -> Iterator[int]:
    """Yields the number of scenes after each finished chunk."""
    if workers == 1 or len(starts) <= 1:
        for start in starts:
            yield _write_chunk(generator, work, count, start)
        return
    # A fresh process instead of a forked one: torch's threads may run in this one.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_keep, initargs=(generator,)) as pool:
        tasks = [pool.submit(_write_chunk_with_kept, work, count, start) for start in starts]
        for task in as_completed(tasks):
            yield task.result()


_kept: list[SceneGenerator] = []  # one per worker process, so that its decoded images serve every chunk


def _keep(generator: SceneGenerator) -> None:
    _kept.append(generator)


def _write_chunk_with_kept(work: Path, count: int, start: int) -> int:
    return _write_chunk(_kept[0], work, count, start)


def _write_chunk(generator: SceneGenerator, work: Path, count: int, start: int) -> int:
    lines = []
    for index in range(start, min(start + _CHUNK, count)):
        scene = generator.scene(index)
        name = f"images/{index:06d}.jpg"
        (work / "scenes" / name).unlink(missing_ok=True)  # it may be a link
        scene.image.save(work / "scenes" / name, format="JPEG", quality=92, subsampling="4:2:0", optimize=False)
        record: dict[str, Any] = {"key": scene.key, "image": name, "width": scene.width, "height": scene.height}
        record["sha256"] = sha256_of(work / "scenes" / name)
        record["objects"] = [asdict(item) for item in scene.objects]
        record["expressions"] = [expression.to_record() for expression in scene.expressions]
        lines.append(json.dumps(record) + "\n")
    write_whole(_lines_file(work, start), "".join(lines))
    return len(lines)


def _finish(work: Path, out: Path, count: int) -> None:
    texts = [_lines_file(work, start).read_text(encoding="utf-8") for start in range(0, count, _CHUNK)]
    scenes, stored = "".join(texts), work / "scenes" / "manifest.json"
    write_whole(work / "scenes" / "scenes.jsonl", scenes)
    digest = hashlib.sha256(scenes.encode()).hexdigest()
    write_whole(stored, json.dumps({**json.loads(stored.read_text()), _SHA256: digest}, indent=1) + "\n")
    if out.exists():
        out.rmdir()  # an empty folder, as checked above
    (work / "scenes").rename(out)
    shutil.rmtree(work)
