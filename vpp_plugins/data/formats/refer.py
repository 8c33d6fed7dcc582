"""RefCOCO, RefCOCO+, RefCOCOg and RefClef as the REFER toolkit stores them: `refs(unc).p` beside `instances.json`.

gRefCOCO is stored alike, in `grefs(unc).json`: an expression has a list of annotations, `[-1]` where nothing is there.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.coco import by_id, coco_images
from vpp_plugins.data.formats.reading import Reading, text_of
from vpp_plugins.data.json_stream import stream_array
from vpp_plugins.data.record import PIXELS_XYWH, Record
from vpp_plugins.data.sample import Issue, Locate, Numbers, numbers_of
from vpp_plugins.errors import VPPError

_PLAIN = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2,
    pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT,
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.BINUNICODE8,
    pickle.SHORT_BINUNICODE, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS,
    pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
)  # fmt: skip


def _with_plain_keys(code: bytes) -> Callable[[Any], None]:
    """Let a code set entries of dictionaries under strings and numbers only.

    Tuples within tuples, each twice in the next, take for ever to hash, in a file of some bytes.
    """
    load = pickle._Unpickler.dispatch[code[0]]

    def load_checked(unpickler: Any) -> None:
        keys = unpickler.stack[-2:-1] if code == pickle.SETITEM else unpickler.stack[::2]
        if not all(isinstance(key, str | bytes | int | float) for key in keys):
            raise TypeError("a key that is no string and no number")
        load(unpickler)

    return load_checked


class _PlainUnpickler(pickle._Unpickler):
    """Knows only the codes for containers, strings and numbers: a code that names or calls something is unknown to it.

    In Python, not C: there a memo is a dictionary, and one large index in a small file cannot claim all memory.
    """

    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _PLAIN} | {
        code[0]: _with_plain_keys(code) for code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT)
    }


def load_plain_pickle(path: Path) -> Any:
    """Return the lists, tuples, dictionaries, strings and numbers of a pickle, Python 2's included.

    Raises VPPError for a pickle that holds anything else, without running it, and for a broken one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VPPError(f"'{path}' cannot be read ({error.strerror}).") from None
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except KeyError:
        raise VPPError(
            f"'{path}' is not a pickle of plain lists, dictionaries, strings and numbers; it is refused unread, since "
            "anything else in a pickle can run code."
        ) from None
    except Exception as error:  # noqa: BLE001  (a broken pickle makes the machine inside stumble in any way)
        raise VPPError(f"'{path}' is a broken pickle ({type(error).__name__}). Download it again.") from None


SENTENCES = {
    ("refcoco", "train"): 120_624,
    ("refcoco", "val"): 10_834,
    ("refcoco", "testA"): 5_657,
    ("refcoco", "testB"): 5_095,
    ("refcoco+", "train"): 120_191,
    ("refcoco+", "val"): 10_758,
    ("refcoco+", "testA"): 5_726,
    ("refcoco+", "testB"): 4_889,
    ("refcocog", "train"): 80_512,
    ("refcocog", "val"): 4_896,
    ("refcocog", "test"): 9_602,
}
"""Sentences per split of the unc splits, and of the umd split for RefCOCOg."""


def read_refer(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per sentence, of one split or of all.

    `path` is the pickle, or its folder where that holds a single one or, for RefCOCOg, the umd split. The file names in
    the pickle carry the annotation's number and name no file; the images' names come from `instances.json`.
    """
    return _read(_pickle_file(path), reading)


def read_grefcoco(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per sentence of `grefs(unc).json`, or of its folder, with all boxes that it means, also none."""
    return _read(path / "grefs(unc).json" if path.is_dir() else path, reading)


def _read(pickled: Path, reading: Reading) -> Iterator[Record]:
    refs = [*stream_array(pickled)] if pickled.suffix == ".json" else load_plain_pickle(pickled)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise VPPError(f"'{pickled}' holds no list of referring expressions.")
    if reading.split and reading.split not in (splits := sorted({text_of(ref.get("split")) for ref in refs})):
        raise VPPError(f"'{pickled}' has no split '{reading.split}'; it has {', '.join(splits)}.")
    instances = pickled.parent / "instances.json"
    images = coco_images(instances, reading.tally)
    wanted = {number for ref in refs for number in _annotations(ref) or ()}
    boxes = by_id(_boxes(instances, wanted), "annotation", reading.tally)
    count = 0
    for number, ref in enumerate(refs):
        if reading.split and text_of(ref.get("split")) != reading.split:
            continue
        for record in _records(ref, number, images, boxes, reading):
            count += 1
            yield record
    known = SENTENCES.get((pickled.parent.name, reading.split))
    if known not in (None, count):
        reading.tally.add(Issue.COUNT_DIFFERS, reading.split, f"{count:,} sentences, published {known:,}")


def _pickle_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("refs(*).p"))
    best = [file for file in found if file.name == "refs(umd).p"] or found
    if len(best) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise VPPError(f"'{path}' should hold one file refs(...).p, and holds {names}: name the file itself.")
    return best[0]


def _boxes(instances: Path, wanted: set[int]) -> Iterator[tuple[int, tuple[Any, Numbers]]]:
    """Yield the image and the box of each annotation that is wanted, by its id."""
    for annotation in stream_array(instances, "annotations"):
        if isinstance(annotation, dict) and isinstance(annotation.get("id"), int) and annotation["id"] in wanted:
            numbers = numbers_of(annotation.get("bbox"))
            if numbers is not None:
                yield annotation["id"], (annotation.get("image_id"), numbers)


def _records(
    ref: dict[str, Any],
    number: int,
    images: dict[int, tuple[str, tuple[int, int] | None]],
    boxes: dict[int, tuple[Any, Numbers]],
    reading: Reading,
) -> Iterator[Record]:
    ref_id = text_of(ref.get("ref_id")) or f"#{number}"
    image, meant, sentences = ref.get("image_id"), _annotations(ref), ref.get("sentences")
    if not isinstance(image, int) or image not in images or meant is None or not boxes.keys() >= set(meant):
        reading.tally.add(Issue.BAD_FIELD, ref_id, "image or annotation not in instances.json")
        return
    if others := [number for number in meant if boxes[number][0] != image]:
        said = f"annotation {others[0]} is of image {boxes[others[0]][0]}, not {image}"
        reading.tally.add(Issue.BAD_FIELD, ref_id, said)
        return
    name, size_wh = images[image]
    if not isinstance(sentences, list) or not sentences:
        reading.tally.add(Issue.NO_TURNS, ref_id)
        return
    for sentence in sentences:
        said = text_of(sentence.get("sent")) if isinstance(sentence, dict) else ""
        sent_id = text_of(sentence.get("sent_id")) if isinstance(sentence, dict) else ""
        yield Record(
            id=f"{ref_id}-{sent_id}",
            image=reading.image_name(name),
            size_wh=size_wh,
            turns=(Locate(said, tuple(boxes[number][1] for number in meant)),),
            unit=PIXELS_XYWH,
            split=text_of(ref.get("split")),
        )


def _annotations(ref: dict[str, Any]) -> list[int] | None:
    """Return the annotations that are meant: one number, or gRefCOCO's list; None where that is broken."""
    given = ref.get("ann_id")
    given = given if isinstance(given, list) else [given]
    if given == [-1] and ref.get("no_target") is True:
        return []
    numbers = [number for number in given if isinstance(number, int) and not isinstance(number, bool)]
    return numbers if numbers and len(numbers) == len(given) else None
