"""Ask a model every row of a benchmark: batched, over several processes, and killable at any point.

The batches are fixed before the first question, so a run that was killed, or spread over other processes, asks the
very same ones and ends with the same answers.
"""

import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, runtime_checkable
from typing import Protocol as Interface

from PIL import Image

from vpp_plugins.attach import Stopwatch
from vpp_plugins.boxes import BoxCodec, ImageMeta, check_shown
from vpp_plugins.data import progress_bar
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import ANSWERS, Answer, Ledger, answer_lines, read_answers
from vpp_plugins.evaluate.protocol import Protocol
from vpp_plugins.evaluate.rows import Row, check_rows, fingerprint, plan
from vpp_plugins.evaluate.settings import differences
from vpp_plugins.files import only_one, sealed, sha256_of, unsealed, write_whole

RUN = "run.json"
ASKED = "what was asked"
ANSWERS_SHA256 = "answers_sha256"
"""Key of `run.json` for the SHA-256 of the answers, which stands there before they do."""


@runtime_checkable
class Asker(Interface):
    """What is evaluated. `Grounder` is one; a served model, or a stub, can be another."""

    codec: BoxCodec

    def ask(
        self, images: Sequence[Image.Image], questions: Sequence[str], **generation: int
    ) -> list[tuple[str, ImageMeta]]:
        """Answer one question per image; return the raw texts and what the codec must know of the images."""
        ...

    def metas(self, images: Sequence[Image.Image]) -> list[ImageMeta]:
        """Return what the codec must know of the images before they are asked about: questions may hold boxes."""
        ...


def evaluate(
    asker: Asker,
    rows: Sequence[Row],
    protocol: Protocol,
    out: str | Path,
    *,
    batch_size: int = 8,
    about: Mapping[str, Any] | None = None,
    watch: Stopwatch | None = None,
) -> list[Answer]:
    """Ask every row, write the raw answers to `out/answers.jsonl`, and return them in the order of the rows.

    `about` describes model and data; it is kept in `out/run.json`, and a folder is only continued by the same
    evaluation; on `watch` is counted what writing takes. Under `accelerate launch` or torchrun the batches are shared
    among the processes. An image that cannot be read becomes an answer with an `error`. Raises VPPError for a folder of
    another evaluation, and for one that another is writing.
    """
    check_rows(rows)
    protocol.check_family(asker.codec)
    batches = plan(rows, batch_size)
    folder, state = Path(out), processes()
    held = only_one(folder, "evaluation", advice="give another folder")
    with held if state.is_main_process else nullcontext():
        if state.is_main_process:
            _open(folder, _settings(rows, protocol, asker, batches, batch_size, about or {}))
        state.wait_for_everyone()
        _ask_all(asker, rows, protocol, batches, folder, state, watch)
    return read_evaluation(folder)[1]


def _ask_all(
    asker: Asker,
    rows: Sequence[Row],
    protocol: Protocol,
    batches: Sequence[Sequence[int]],
    folder: Path,
    state: Any,
    watch: Stopwatch | None,
) -> None:
    """Ask what is left, share it among the processes, and write the answers."""
    ledger = Ledger(folder, state.process_index)
    if (folder / ANSWERS).exists():
        if state.is_main_process:
            ledger.clear()  # what a process left that was killed just before it did so
        return
    ledger.cut_torn_line()
    state.wait_for_everyone()
    done = ledger.read()
    _check_done(done, batches, rows, folder)
    state.wait_for_everyone()  # nobody appends before all have read: each must see the same batches as left
    left = [number for number in range(len(batches)) if number not in done]
    mine = left[state.process_index :: state.num_processes]
    finished = sum(map(len, done.values()))
    if watch is not None:
        watch.resumed = bool(done)
    timed = nullcontext() if watch is None else watch.calls_of(ledger, {"append": "writing"})
    with timed, progress_bar("Asking", shown=state.is_main_process, total=len(rows), done=finished) as advance:
        for number in mine:
            ledger.append(number, _ask(asker, [rows[row] for row in batches[number]], protocol))
            advance(len(batches[number]) * state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process:
        _merge(ledger, batches, folder)
    state.wait_for_everyone()


def _check_done(
    done: Mapping[int, Sequence[Answer]], batches: Sequence[Sequence[int]], rows: Sequence[Row], folder: Path
) -> None:
    planned = {number: [rows[row].id for row in batch] for number, batch in enumerate(batches)}
    for number, answers in done.items():
        if [answer.id for answer in answers] != planned.get(number):
            raise VPPError(
                f"batch {number} in '{folder}/batches-*.jsonl' does not hold the answers to its rows: delete the line "
                f'with "batch": {number} and run the same command again; it asks that batch anew, and all others stay '
                "as they are."
            )


def processes() -> Any:
    """Return accelerate's view of the processes that share this evaluation; one where nothing launched several."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def write_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what a folder of `evaluate` says of itself."""
    write_whole(folder / RUN, json.dumps(sealed(settings, ASKED), indent=2, ensure_ascii=False) + "\n")


def read_run(folder: str | Path) -> dict[str, Any]:
    """Return what a folder of `evaluate` says of itself; raises VPPError where it is none."""
    path = Path(folder) / RUN
    try:
        settings = unsealed(json.loads(path.read_text(encoding="utf-8")), ASKED)
        if "figures" in settings:  # 0.1.0's did not say so
            raise ValueError("it holds results")
        return settings
    except (FileNotFoundError, NotADirectoryError):
        raise VPPError(f"no '{RUN}' in '{folder}': give the folder of a `vpp eval`.") from None
    except (ValueError, RecursionError) as error:
        raise VPPError(
            f"'{path}' is damaged ({error}): put a copy back, or run the evaluation again in a new folder."
        ) from None


def read_evaluation(folder: str | Path) -> tuple[dict[str, Any], list[Answer]]:
    """Return what a folder of `evaluate` says of itself, and its answers, one for each row that was asked.

    Raises VPPError where answers are missing, repeated, in another order, or not those that were given.
    """
    settings, path = read_run(folder), Path(folder) / ANSWERS
    answers = read_answers(path)
    asked, digest = settings.get("rows"), settings.get(ANSWERS_SHA256)
    again = "put a copy of the file back, or run the evaluation again in a new folder"
    if len(answers) != asked:
        raise VPPError(f"'{path}' holds {len(answers)} answers, but {asked} rows were asked: {again}.")
    if fingerprint(answers) != settings.get("rows_sha256"):
        raise VPPError(f"'{path}' does not hold the answers to the rows that were asked, in their order: {again}.")
    if digest is None:
        warnings.warn(
            f"'{folder}' has no SHA-256 of its answers, as version 0.1.0 wrote none: whether they are those that were "
            "given cannot be checked.",
            stacklevel=3,
        )
    elif sha256_of(path) != digest:
        raise VPPError(f"'{path}' was changed since it was written (its SHA-256 is another): {again}.")
    return settings, answers


def _ask(asker: Asker, rows: Sequence[Row], protocol: Protocol) -> list[Answer]:
    images = _images(rows)
    readable = [(row, image) for row, image in zip(rows, images, strict=True) if not isinstance(image, str)]
    shown = [image for _, image in readable]
    metas = asker.metas(shown)
    questions = [protocol.ask(row, asker.codec, meta) for (row, _), meta in zip(readable, metas, strict=True)]
    given = asker.ask(shown, questions, **generation_of(protocol)) if shown else []
    if protocol.task == "caption":  # its questions hold boxes
        check_shown(metas, [meta for _, meta in given])
    texts = {row.id: answer for (row, _), answer in zip(readable, given, strict=True)}
    return [
        Answer.of(row, *texts[row.id]) if row.id in texts else Answer.of(row, "", None, error=str(image))
        for row, image in zip(rows, images, strict=True)
    ]


def generation_of(protocol: Protocol) -> dict[str, int]:
    """Return what a protocol says about how answers are generated, as arguments of `Asker.ask`."""
    least = {"min_new_tokens": protocol.min_new_tokens} if protocol.min_new_tokens else {}
    return {"max_new_tokens": protocol.max_new_tokens, "num_beams": protocol.num_beams, **least}


def _images(rows: Sequence[Row]) -> list[Image.Image | str]:
    """Return the rows' images, or why one cannot be read; rows about one image get the very same object."""
    read: dict[tuple[object, tuple[int, int]], Image.Image | str] = {}
    names = [(row.image if isinstance(row.image, Path) else id(row.image), row.size_hw) for row in rows]
    for name, row in zip(names, rows, strict=True):
        if name not in read:
            try:
                read[name] = row.load_image()
            except VPPError as error:
                read[name] = str(error)
    return [read[name] for name in names]


def _settings(
    rows: Sequence[Row],
    protocol: Protocol,
    asker: Asker,
    batches: Sequence[Sequence[int]],
    batch_size: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "protocol_sha256": protocol.sha256,
        "box_format": asker.codec.family,
        "rows": len(rows),
        "rows_sha256": fingerprint(rows),
        "batch_size": batch_size,
        "batches_sha256": hashlib.sha256(json.dumps(batches).encode()).hexdigest(),
        **about,
    }


def _open(folder: Path, settings: Mapping[str, Any]) -> None:
    if (folder / RUN).exists():
        known = read_run(folder)
        differing = {key: values for key, *values in differences(known, settings) if key != ANSWERS_SHA256}
        if [*differing] == ["batches_sha256"]:
            if (folder / ANSWERS).exists():
                return
            raise VPPError(
                f"'{folder}' was begun by a version of this library that asks the rows in other batches: finish it "
                "with that version, or give another folder."
            )
        if differing:
            key = next(key for key in differing if key != "batches_sha256")
            raise VPPError(
                f"'{folder}' holds another evaluation: its {key} is {differing[key][0]}, and now {differing[key][1]}. "
                "Give another folder, or delete this one."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(not file.name.startswith(".") for file in folder.iterdir()):
        raise VPPError(f"the folder '{folder}' holds other files: give a new or empty one.")
    write_run(folder, settings)


def _merge(ledger: Ledger, batches: Sequence[Sequence[int]], folder: Path) -> None:
    done = ledger.read()
    by_row = {
        row: answer for number, batch in enumerate(batches) for row, answer in zip(batch, done[number], strict=True)
    }
    text = answer_lines(by_row[row] for row in range(len(by_row)))
    write_run(folder, {**read_run(folder), ANSWERS_SHA256: hashlib.sha256(text.encode()).hexdigest()})
    write_whole(folder / ANSWERS, text)
    ledger.clear()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the answers."""
    packages = ("vpp-plugins", "torch", "transformers", "tokenizers", "pillow")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
