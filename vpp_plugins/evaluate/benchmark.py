"""An evaluation from names to pages: data, model and protocol in, answers, figures and a report out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpp_plugins.attach import Stopwatch, active_vpp, is_attached, unwrap, vpp_disabled
from vpp_plugins.data import Issue, PixelBudget, Tally
from vpp_plugins.data.scenes import load_real_photos, load_scenes
from vpp_plugins.errors import VPPError, named_extras
from vpp_plugins.evaluate.answers import ANSWERS, Answer
from vpp_plugins.evaluate.benchmarks import BENCHMARKS, Found, find_benchmark
from vpp_plugins.evaluate.captions import check_scorers, regions, summarise_captions, write_caption_report
from vpp_plugins.evaluate.models import fingerprint_of_model
from vpp_plugins.evaluate.protocol import Protocol, protocol
from vpp_plugins.evaluate.results import load_evaluation, odd_sets, summarise, write_report
from vpp_plugins.evaluate.rows import Row, Task, fingerprint, rows_of_folder, rows_of_samples, rows_of_scenes
from vpp_plugins.evaluate.run import (
    ANSWERS_SHA256,
    Asker,
    evaluate,
    generation_of,
    processes,
    read_evaluation,
    read_run,
    versions,
    write_run,
)
from vpp_plugins.evaluate.settings import answer_settings
from vpp_plugins.files import sealed, sha256_of, write_whole
from vpp_plugins.ground import Grounder
from vpp_plugins.plugins import box_codec

RESULTS, REPORT, TIME = "results.json", "report.html", "time.txt"


def load_rows(
    data: str,
    *,
    data_format: str | None = None,
    folder: str | None = None,
    images: str | None = None,
    split: str | None = None,
    family: str = "llava",
    boxes: str = "",
    pixels: PixelBudget | None = None,
    task: Task = "box",
    tally: Tally | None = None,
) -> list[Row]:
    """Return the rows of "photos" (the committed photographs), of a scene folder, of a file in a known format, or of a
    benchmark that is named, whose files are found in `folder`.

    `data_format` is a name of `vpp_plugins.data.formats`, and `images` the folder of the file's images (default: the
    file's own); images inside an `lmms-parquet` file are written there. `split`, such as "refcoco/testA", chooses
    among the splits of a file that has several. `family` names whose boxes stand in the text of dialogues, `boxes` and
    `pixels` are as in `data.formats.Reading`. For the task "caption" the regions that a file describes are rows too.
    Faulty samples of a file are left out and counted in `tally`. Raises VPPError where nothing of that name is there.
    """
    if folder is not None:
        return _benchmark_rows(find_benchmark(data, folder, split, images), task, tally or Tally())
    if data == "photos":
        return rows_of_scenes(load_real_photos())
    path = Path(data)
    if path.is_dir() and data_format in (None, "scenes"):
        rows = rows_of_folder(load_scenes(path), tally, task=task)
        if not rows:
            raise VPPError(f"the scenes in '{path}' ask for nothing that this protocol takes: try --protocol sets.")
        return rows
    if not path.exists():
        known = f" {data} is a benchmark: name the folder of its files (--folder)." if data in BENCHMARKS else ""
        raise VPPError(f"there are no data at '{data}': give photos, a folder of `vpp data scenes`, or a file.{known}")
    if data_format is None:
        raise VPPError(f"'{data}' is a file: say in which format it is (--format); `vpp data formats` lists them.")
    from vpp_plugins.data.formats import Reading, read_samples
    from vpp_plugins.data.formats import data_format as known_format

    layout = known_format(data_format)
    if layout.holds_images and images is None:
        raise VPPError(f"'{data}' holds its images inside: name a folder to write them to (--images).")
    root = (path if path.is_dir() else path.parent) if images is None else Path(images)
    if layout.holds_images:
        root.mkdir(parents=True, exist_ok=True)
    several = layout.mixes_splits or path.is_dir()
    reading = Reading(
        split=split.rpartition("/")[2] if split is not None and several else "",
        family=family,
        boxes=boxes,
        pixels=pixels,
        images_to=root if layout.holds_images else None,
        tally=tally or Tally(),
    )
    samples = read_samples(path, data_format, images=root, reading=reading)
    rows = rows_of_samples(samples, root, reading.tally, task=task)
    if not rows:
        raise reading.tally.nothing_left("the data hold no row to evaluate", path, data_format, images)
    return rows


def _benchmark_rows(found: Found, task: Task, tally: Tally) -> list[Row]:
    images = None if found.images is None else str(found.images)
    rows = load_rows(
        str(found.path), data_format=found.data_format, images=images, split=found.split, task=task, tally=tally
    )
    found.check_count(len(rows), tally)
    return rows


@named_extras("eval")
def measure(
    asker: Asker,
    rows: Sequence[Row],
    rules: Protocol,
    out: str | Path,
    *,
    model: str,
    data: str,
    split: str | None = None,
    batch_size: int = 8,
    tally: Tally | None = None,
    control: str | None = None,
    disable_vpp: bool = False,
    with_meteor: bool = False,
    timed: bool = False,
) -> dict[str, Any]:
    """Evaluate, and write `answers.jsonl`, `results.json` and `report.html` into `out`; returns the results.

    `model` and `data` are what the pages call them; `split` is a name such as "refcoco/testA", whose published number
    of rows the protocol knows; `tally` says what `load_rows` left out; `control` names what was done to the rows, such
    as "shuffled"; `disable_vpp` asks the same weights with their prompts off; captions get METEOR `with_meteor`;
    `timed` has the page, and what is returned, say where the time went. Killed at any point, the same call continues,
    and its results are the same. Raises VPPError for `disable_vpp` where there are no prompts, and where no image at
    all could be used.
    """
    _check_scorers(rules, with_meteor=with_meteor)
    if rules.task == "caption":
        rows = regions(rows)
    left_out = {issue: count for issue, count, _ in (tally or Tally()).rows()}
    about = {"model": model, "data": data, "split": split, "left_out": left_out, "versions": versions()}
    if control is not None:
        about["control"] = control
    if isinstance(asker, Grounder):  # a model that was trained on is another one, under whatever name
        about["model_sha256"] = fingerprint_of_model(asker.model)
    watch = Stopwatch() if timed else None
    counted = nullcontext() if watch is None else _counted(asker, watch)
    with _prompts_off(asker) if disable_vpp else nullcontext(), counted:
        if isinstance(asker, Grounder):
            about |= answer_settings(asker, generation_of(rules))
        answers = evaluate(asker, rows, rules, out, batch_size=batch_size, about=about, watch=watch)
    if answers and all(answer.error for answer in answers):
        raise VPPError(f"none of {len(answers)} images could be used, so nothing was measured: {answers[0].error}")
    if not processes().is_main_process:
        return read_run(out)
    if watch is not None and "writing" in watch.seconds:  # a finished evaluation asks nothing
        write_whole(Path(out) / TIME, watch.sentence() + "\n")
    return _write_results(Path(out), rules, answers, rows, with_meteor=with_meteor)


@contextmanager
def _counted(asker: Asker, watch: Stopwatch) -> Iterator[None]:
    with watch.parts_of(asker.model) if isinstance(asker, Grounder) else nullcontext(), watch.part("data"):
        yield


def _prompts_off(asker: Asker) -> AbstractContextManager[None]:
    if not isinstance(asker, Grounder) or not is_attached(asker.model) or active_vpp(unwrap(asker.model)).is_empty:
        raise VPPError("this model has no prompts that could be off: leave --disable-vpp out, or name them by --vpp.")
    return vpp_disabled(asker.model)


def rescore(
    folder: str | Path, rules: str, out: str | Path, box_format: str | None = None, *, with_meteor: bool = False
) -> dict[str, Any]:
    """Judge the answers of a finished evaluation under another protocol, without the model; returns the results.

    `out` becomes a folder like that of `measure`; captions get METEOR `with_meteor`.
    """
    import shutil

    chosen, target = protocol(rules), Path(out)
    if target.exists() and any(target.iterdir()):
        raise VPPError(f"the folder '{out}' holds other files: give a new or empty one.")
    settings, answers = read_evaluation(folder)
    if chosen.task != protocol(settings["protocol"]).task:
        raise VPPError(
            f"'{folder}' was asked under '{settings['protocol']}', and '{rules}' asks for something else (boxes or "
            "words): its answers cannot be judged by it; run the evaluation under it."
        )
    _check_scorers(chosen, with_meteor=with_meteor)
    family = box_format or settings["box_format"]
    chosen.check_family(box_codec(family))
    changed = {
        "protocol": chosen.name,
        "protocol_sha256": chosen.sha256,
        "box_format": family,
        "rescored_from": settings["protocol"],
        ANSWERS_SHA256: sha256_of(Path(folder) / ANSWERS),
    }
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(folder) / ANSWERS, target / ANSWERS)
    write_run(target, {**settings, **changed})
    return _write_results(target, chosen, answers, None, with_meteor=with_meteor)


def rows_at_hand(settings: Mapping[str, object]) -> list[Row] | None:
    """Return the rows of an evaluation whose answers name no image files: those of the committed photographs."""
    return rows_of_scenes(load_real_photos()) if settings.get("data") == "photos" else None


def _check_scorers(rules: Protocol, *, with_meteor: bool) -> None:
    if rules.task == "caption":
        check_scorers(with_meteor=with_meteor)
    elif with_meteor:
        raise VPPError(f"METEOR scores words, and the protocol '{rules.name}' asks for boxes: leave METEOR out.")


def _write_results(
    folder: Path, rules: Protocol, answers: Sequence[Answer], rows: Sequence[Row] | None, *, with_meteor: bool
) -> dict[str, Any]:
    settings = read_run(folder)
    time = _time_of(folder)
    told = settings | time  # not in the file of results, which is the same every time
    shown = rows_at_hand(settings) if rows is None else rows
    if rules.task == "caption":
        results = {**settings, "figures": summarise_captions(answers, with_meteor=with_meteor)}
        write_caption_report(told, results["figures"], answers, folder / REPORT, shown)
    else:
        evaluation = replace(load_evaluation(folder), settings=told)
        figures = summarise(evaluation.judged, rules)
        results = {**settings, "figures": figures, "notes": _notes(settings, rules, rows) + odd_sets(figures)}
        write_report(evaluation, folder / REPORT, shown)
    results = sealed(results, "results")
    write_whole(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results | time


def _time_of(folder: Path) -> dict[str, str]:
    path = folder / TIME
    return {"time": path.read_text(errors="replace").strip()} if path.is_file() else {}


def _notes(settings: dict[str, Any], rules: Protocol, rows: Sequence[Row] | None) -> list[str]:
    """Return what a reader must know beside the figures: what is missing, and whether these are the split's rows."""
    notes = [f"{count} samples left out or fixed: {issue}." for issue, count in settings.get("left_out", {}).items()]
    split, marked = settings.get("split"), settings.get("left_out", {}).get(str(Issue.MARKED_WRONG), 0)
    if split is None or rows is None:
        return notes
    if split in rules.splits and rules.splits[split] != len(rows) + marked:
        notes.append(f"{split} has {rules.splits[split]} published rows, and these data have {len(rows)}.")
    if split in rules.hashes and rules.hashes[split] != fingerprint(rows):
        notes.append(f"these are not the rows of {split} that this library comes with.")
    if split not in rules.splits:
        notes.append(f"no published number of rows is known for {split}.")
    return notes
