"""Benchmarks beyond RefCOCO as they are published: Ref-L4 and its review of RefCOCO, Ref-Adv-s, and GroundingME.

Where each layout was read stands in the table of `vpp_plugins.evaluate.benchmarks`. gRefCOCO is in `refer.py`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats.coco import by_id
from vpp_plugins.data.formats.lmms import parquet_rows
from vpp_plugins.data.formats.reading import Reading, positive_size, text_of
from vpp_plugins.data.json_stream import json_value, stream_array
from vpp_plugins.data.record import PIXELS, PIXELS_XYWH, Record, check_name
from vpp_plugins.data.sample import Issue, Locate, Numbers, RefusedError, numbers_of

_OBJECTS365: Mapping[str, str] = dict(
    pair.split(":")
    for pair in (
        "1:1 2:47 3:6 4:59 5:115 6:56 7:117 8:66 9:22 10:41 11:177 13:128 14:250 15:25 16:56 17:140 18:93 19:79 20:100 "
        "21:97 22:145 23:296 24:179 25:181 27:39 28:40 31:13 32:44 33:194 34:220 35:119 36:174 37:100000 38:155 39:138 "
        "40:114 41:146 42:147 43:205 44:9 46:36 47:11 48:89 49:85 50:94 51:26 52:113 53:83 54:266 55:104 56:142 57:153 "
        "58:235 59:144 60:151 61:98 62:3 63:51 64:26 65:76 67:98 70:154 72:37 73:74 74:116 75:133 76:107 77:62 78:164 "
        "79:135 80:278 81:82 82:134 84:19 85:95 86:31 87:170 88:70 89:328 90:227"
    ).split()
)
"""COCO's categories in the numbers of Objects365, as Ref-L4's evaluation merges them to 365."""


def read_ref_l4(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per row of `ref-l4-val.parquet` or `ref-l4-test.parquet`; a folder means both.

    The images are files of their own. The category is the object's, of 365.
    """

    def record(row: dict[str, Any], sample_id: str) -> Record:
        image, numbers, split = row.get("file_name"), numbers_of(row.get("bbox")), text_of(row.get("split"))
        if not isinstance(image, str) or numbers is None:
            raise RefusedError(Issue.BAD_FIELD, "file_name or bbox")
        if reading.split and split != reading.split:
            raise RefusedError(Issue.OTHER_SPLIT)
        source, _, category = text_of(row.get("ori_category_id")).partition("_")
        return Record(
            id=sample_id,
            image=reading.image_name(image),
            size_wh=positive_size(row.get("width"), row.get("height")),
            turns=(Locate(text_of(row.get("caption")), (numbers,)),),
            unit=PIXELS_XYWH,
            split=split,
            category=f"o365_{_OBJECTS365.get(category, category) if source == 'refcoco' else category}",
        )

    return reading.records(_rows(path), record)


def read_reviewed(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per expression of Ref-L4's `refcoco_val_reviewed.json` and the like that its review did not mark.

    Those marked as wrong (`caption_quality` 0) are left out and counted. There is an entry of `images` for each
    expression; the images are COCO's, of train2014.
    """
    asked = by_id(
        ((row["id"], row) for row in stream_array(path, "images") if isinstance(row, dict) and _is_id(row.get("id"))),
        "expression",
        reading.tally,
    )

    def record(row: dict[str, Any], sample_id: str) -> Record:
        about = asked.get(row["image_id"]) if _is_id(row.get("image_id")) else None
        numbers, quality = numbers_of(row.get("bbox")), row.get("caption_quality")
        if about is None or numbers is None or quality not in (0, 1) or not isinstance(about.get("file_name"), str):
            raise RefusedError(Issue.BAD_FIELD, "image_id, file_name, bbox or caption_quality")
        if quality == 0:
            raise RefusedError(Issue.MARKED_WRONG)
        return Record(
            id=sample_id,
            image=reading.image_name(about["file_name"]),
            size_wh=positive_size(about.get("width"), about.get("height")),
            turns=(Locate(text_of(about.get("caption")), (numbers,)),),
            unit=PIXELS_XYWH,
        )

    yield from reading.records(stream_array(path, "annotations"), record)


def read_ref_adv(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per row of Ref-Adv-s, whose images lie in the rows.

    The category says how many objects of the same kind distract, in the bins of its report, and the kind whether the
    expression negates.
    """

    def record(row: dict[str, Any], sample_id: str) -> Record:
        numbers = numbers_of(row.get("solution"))
        if numbers is None:
            raise RefusedError(Issue.BAD_FIELD, "solution")
        return _with_image(
            row,
            sample_id,
            reading,
            text_of(row.get("file_name")),
            Locate(text_of(row.get("normal_caption")), (numbers,)),
            category=_distractors(row.get("distractors")),
            kind="negation" if row.get("use_negation") is True else "no negation",
        )

    return reading.records(_rows(path, reading.split), record, key="row_idx")


def read_groundingme(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per row of GroundingME, whose images lie in the rows; what is to be rejected is nowhere.

    The kind is Discriminative, Spatial, Limited or Rejection, and the category the finer task too.
    """

    def record(row: dict[str, Any], sample_id: str) -> Record:
        kind, fine, numbers = (
            text_of(row.get("subtask_l1")),
            text_of(row.get("subtask_l2")),
            numbers_of(row.get("bbox")),
        )
        if not kind or (numbers is None and kind != "Rejection"):
            raise RefusedError(Issue.BAD_FIELD, "subtask_l1 or bbox")
        boxes: tuple[Numbers, ...] = () if kind == "Rejection" or numbers is None else (numbers,)
        turn = Locate(text_of(row.get("description")), boxes)
        return _with_image(
            row, sample_id, reading, f"{sample_id}.jpg", turn, category=f"{kind}, {fine}" if fine else kind, kind=kind
        )

    return reading.records(_rows(path, reading.split), record)


def _rows(path: Path, split: str = "") -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, or of a folder's files of a split in the order of their names."""
    for file in sorted(path.glob(f"{split}*.parquet")) if path.is_dir() else [path]:
        yield from parquet_rows(file)


def _with_image(
    row: Mapping[str, Any], sample_id: str, reading: Reading, name: str, turn: Locate, *, category: str, kind: str
) -> Record:
    """Return the record of a row that holds its image as datasets stores it, and keep the image under its name."""
    loaded, size_wh = row.get("image"), positive_size(row.get("width"), row.get("height"))
    data = loaded.get("bytes") if isinstance(loaded, dict) else None
    if not isinstance(data, bytes) or size_wh is None or not name:
        raise RefusedError(Issue.BAD_FIELD, "image, file_name, width or height")
    name = reading.image_name(name)
    check_name(name)
    kept = reading.keep_image(name, data, sample_id)
    return Record(sample_id, kept, size_wh, (turn,), PIXELS, split=reading.split, category=category, kind=kind)


def _distractors(value: Any) -> str:
    """Return the bin of a number of distractors, which is stored as one, or as a list, in JSON or not."""
    if isinstance(value, str):
        try:
            value = json_value(value.encode(), "distractors")
        except ValueError:  # VPPError and half characters too
            value = None
    count = len(value) if isinstance(value, list) else value
    if not isinstance(count, int) or count < 2:
        return "distractors not known"
    return f"{'2-3' if count <= 3 else '4-6' if count <= 6 else '7 or more'} distractors"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
