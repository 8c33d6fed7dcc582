"""An evaluation from names to pages: data, model and protocol in, answers, figures and a report out."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vpp_plugins.data.photos import load_real_photos
from vpp_plugins.data.scene_folder import load_scenes
from vpp_plugins.data.tally import Tally
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import ANSWERS, Answer, read_answers
from vpp_plugins.evaluate.captions import regions, summarise_captions
from vpp_plugins.evaluate.compare import load_evaluation
from vpp_plugins.evaluate.protocol import Protocol, protocol
from vpp_plugins.evaluate.report import write_report
from vpp_plugins.evaluate.results import summarise
from vpp_plugins.evaluate.rows import Row, fingerprint, rows_of_folder, rows_of_samples, rows_of_scenes
from vpp_plugins.evaluate.run import Asker, evaluate, processes, read_run

RESULTS, REPORT = "results.json", "report.html"


def load_rows(
    data: str,
    *,
    data_format: str | None = None,
    images: str | None = None,
    split: str | None = None,
    tally: Tally | None = None,
) -> list[Row]:
    """Return the rows of "photos" (the committed photographs), of a scene folder, or of a file in a known format.

    `data_format` is a name of `vpp_plugins.data.formats`, and `images` the folder of the file's pictures (default: the
    file's own). `split`, such as "refcoco/testA", chooses among the splits of a file that has several. Faulty samples
    of a file are left out and counted in `tally`. Raises VPPError where nothing of that name is there.
    """
    if data == "photos":
        return rows_of_scenes(load_real_photos())
    path = Path(data)
    if path.is_dir():
        return rows_of_folder(load_scenes(path))
    if not path.is_file():
        raise VPPError(f"there are no data at '{data}': give photos, a folder of `vpp data scenes`, or a file.")
    if data_format is None:
        raise VPPError(f"'{data}' is a file: say in which format it is (--format), see `vpp data convert --help`.")
    from vpp_plugins.data.formats import Reading, read_samples

    root = path.parent if images is None else Path(images)
    part = "" if split is None or data_format != "refer" else split.rpartition("/")[2]  # others hold one split a file
    reading = Reading(split=part, tally=tally or Tally())
    return rows_of_samples(read_samples(path, data_format, images=root, reading=reading), root)


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
) -> dict[str, Any]:
    """Evaluate, and write `answers.jsonl`, `results.json` and `report.html` into `out`; returns the results.

    `model` and `data` are what the pages call them; `split` is a name such as "refcoco/testA", whose published number
    of rows the protocol knows; `tally` says what `load_rows` left out. Killed at any point, the same call continues,
    and its results are the same.
    """
    if rules.task == "caption":
        rows = regions(rows)
    left_out = {issue: count for issue, count, _ in (tally or Tally()).rows()}
    about = {"model": model, "data": data, "split": split, "left_out": left_out, "versions": _versions()}
    answers = evaluate(asker, rows, rules, out, batch_size=batch_size, about=about)
    if not processes().is_main_process:
        return read_run(out)
    return _write_results(Path(out), rules, answers, rows)


def rescore(folder: str | Path, rules: str, out: str | Path, box_format: str | None = None) -> dict[str, Any]:
    """Judge the answers of a finished evaluation under another protocol, without the model; returns the results.

    `out` becomes a folder like that of `measure`.
    """
    import shutil

    chosen, target = protocol(rules), Path(out)
    if target.exists() and any(target.iterdir()):
        raise VPPError(f"the folder '{out}' holds other files: give a new or empty one.")
    settings = read_run(folder)
    answers = read_answers(Path(folder) / ANSWERS)
    changed = {"protocol": chosen.name, "protocol_sha256": chosen.sha256, "rescored_from": settings["protocol"]}
    if box_format is not None:
        changed["box_format"] = box_format
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(folder) / ANSWERS, target / ANSWERS)
    (target / "run.json").write_text(json.dumps({**settings, **changed}, indent=2, ensure_ascii=False) + "\n")
    return _write_results(target, chosen, answers, None)


def _write_results(
    folder: Path, rules: Protocol, answers: Sequence[Answer], rows: Sequence[Row] | None
) -> dict[str, Any]:
    settings = read_run(folder)
    if rules.task == "caption":
        results = {**settings, "figures": summarise_captions(answers)}
    else:
        evaluation = load_evaluation(folder)
        results = {**settings, "figures": summarise(evaluation.judged, rules), "notes": _notes(settings, rules, rows)}
        write_report(evaluation, folder / REPORT, rows)
    temporary = folder / f".{RESULTS}"
    temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / RESULTS)
    return results


def _notes(settings: dict[str, Any], rules: Protocol, rows: Sequence[Row] | None) -> list[str]:
    """Return what a reader must know beside the figures: what is missing, and whether these are the split's rows."""
    notes = [f"{count} samples left out or mended: {issue}." for issue, count in settings.get("left_out", {}).items()]
    split = settings.get("split")
    if split is None or rows is None:
        return notes
    if split in rules.splits and rules.splits[split] != len(rows):
        notes.append(f"{split} has {rules.splits[split]} published rows, and these data have {len(rows)}.")
    if split in rules.hashes and rules.hashes[split] != fingerprint(rows):
        notes.append(f"these are not the rows of {split} that this library comes with.")
    if split not in rules.splits:
        notes.append(f"no published number of rows is known for {split}.")
    return notes


def _versions() -> dict[str, str]:
    packages = ("vpp-plugins", "torch", "transformers", "tokenizers", "pillow")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
