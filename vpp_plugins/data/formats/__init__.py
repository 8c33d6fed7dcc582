"""Formats of grounding data by name: each reads a file as a stream of records, and writes a stream of samples.

`read_samples("refcoco_val.jsonl", "eval-jsonl")` yields neutral samples; `docs/data.md` lists the formats.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vpp_plugins.data.formats.arrow import arrow_files, read_arrow
from vpp_plugins.data.formats.benchmarks import read_groundingme, read_ref_adv, read_ref_l4, read_reviewed
from vpp_plugins.data.formats.chatterbox import (
    read_grounding,
    read_grounding_cut,
    read_referring,
)
from vpp_plugins.data.formats.coco import read_coco, write_coco
from vpp_plugins.data.formats.conversations import read_conversations, read_llava_grounding, write_conversations
from vpp_plugins.data.formats.lmms import read_lmms
from vpp_plugins.data.formats.neutral import read_neutral, read_scenes, write_neutral
from vpp_plugins.data.formats.odvg import read_odvg, write_odvg
from vpp_plugins.data.formats.reading import Reading, Writing, Written
from vpp_plugins.data.formats.refer import read_grefcoco, read_refer
from vpp_plugins.data.formats.rows import EVALUATION, GENIXER, GSEVAL
from vpp_plugins.data.formats.swift import read_swift, write_swift
from vpp_plugins.data.formats.webdataset import read_webdataset, shard_paths, write_webdataset
from vpp_plugins.data.record import ImageSizes, Record, samples
from vpp_plugins.data.sample import Sample
from vpp_plugins.data.units import stated_records
from vpp_plugins.errors import known_name

_FAMILY = "text of one family"
Reader = Callable[[Path, Reading], Iterator[Record]]
Writer = Callable[[Iterable[Sample], Writing], None]


def all_files(path: Path) -> list[Path]:
    """Return a file and those beside it that may belong to it, or the files of a folder."""
    if not path.is_dir():
        return [path, *(file for file in [path.parent / "instances.json"] if path.suffix == ".p" and file.is_file())]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")) or [path]


@dataclass(frozen=True)
class Format:
    """One format: what it is, where its boxes are measured, and how to read and write it."""

    about: str
    boxes: str
    read: Reader
    write: Writer | None = None
    files: Callable[[Path], list[Path]] = all_files
    """The files that a path means."""
    has_images: bool = False
    """Whether a sample's image is read from where its record says, not from a folder."""
    holds_images: bool = False
    """Whether the images lie in the data, so that for other formats and evaluation they are written to a folder."""
    mixes_splits: bool = False
    """Whether a file holds the rows of several splits, each with its name."""

    @property
    def says_unit(self) -> bool:
        """Whether the format itself says how boxes are written; in dialogues everybody's boxes stand."""
        return self.boxes != _FAMILY

    def records(self, path: Path, reading: Reading) -> Iterator[Record]:
        """Return the records of a file, boxes in the unit that `reading.boxes` states, if it does."""
        records = self.read(path, reading)
        return stated_records(records, reading.boxes, reading.pixels) if reading.boxes else records


FORMATS: Mapping[str, Format] = {
    "neutral": Format("our own JSON lines", "xyxy pixels", read_neutral, write_neutral),
    "vpp-sft": Format("VPP-SFT and other LLaVA-style dialogues", _FAMILY, read_conversations, write_conversations),
    "llava-665k": Format("LLaVA-665K's grounding subset", _FAMILY, read_llava_grounding, write_conversations),
    "cb-grd": Format("ChatterBox CB-GRD", "xyxy pixels in text", read_grounding),
    "cb-grd-like-reference": Format("CB-GRD, cut as the reference does", "xyxy pixels in text", read_grounding_cut),
    "cb-ref": Format("ChatterBox CB-REF", "xyxy pixels in text", read_referring),
    "genixer": Format("Genixer lines", "xyxy pixels", GENIXER.read, GENIXER.write),
    "refer": Format("REFER pickle beside instances.json", "xywh pixels", read_refer, mixes_splits=True),
    "eval-jsonl": Format("lines of Qwen, InternVL and VPP", "xyxy pixels", EVALUATION.read, EVALUATION.write),
    "lmms-parquet": Format("lmms-lab's RefCOCO", "xywh pixels", read_lmms, holds_images=True),
    "gseval": Format("GroundingSuite-Eval.jsonl", "xyxy pixels", GSEVAL.read, GSEVAL.write),
    "ref-l4": Format("Ref-L4's parquet files", "xywh pixels", read_ref_l4, mixes_splits=True),
    "ref-l4-reviewed": Format("RefCOCO as Ref-L4 reviewed it", "xywh pixels", read_reviewed),
    "grefcoco": Format("grefs(unc).json beside instances.json", "xywh pixels", read_grefcoco, mixes_splits=True),
    "ref-adv": Format("Ref-Adv-s, parquet", "xyxy pixels", read_ref_adv, holds_images=True),
    "groundingme": Format("GroundingME, parquet", "xyxy pixels", read_groundingme, holds_images=True),
    "ms-swift": Format("ms-swift grounding lines", "xyxy pixels or 0-1", read_swift, write_swift),
    "coco": Format("COCO detection", "xywh pixels", read_coco, write_coco),
    "odvg": Format("ODVG lines", "xyxy pixels", read_odvg, write_odvg),
    "webdataset": Format(
        "shards of .json and image", "xyxy pixels", read_webdataset, write_webdataset, shard_paths, True, True
    ),
    "datasets": Format(
        "Hugging Face datasets of neutral rows", "xyxy pixels", read_arrow, None, arrow_files, True, True
    ),
    "scenes": Format("the scene benchmark's folder", "xyxy pixels", read_scenes),
}


def data_format(name: str) -> Format:
    """Return a format by its name, or raise VPPError naming the nearest and all."""
    return FORMATS[known_name(name, FORMATS, "data format")]


def read_samples(
    path: str | Path,
    format_name: str,
    *,
    images: str | Path | None = None,
    sizes: ImageSizes | None = None,
    reading: Reading | None = None,
    split: str = "",
    family: str = "llava",
) -> Iterator[Sample]:
    """Yield the neutral samples of a file, one at a time.

    `images` is the folder of the images, needed where the file holds no sizes (or pass `sizes`). What is faulty is
    left out and counted in `reading.tally`; pass a Reading of your own to see it.
    """
    reading = reading or Reading(split=split, family=family)
    sizes = sizes or ImageSizes(Path(images) if images is not None else None)
    records = data_format(format_name).records(Path(path), reading)
    return samples(records, sizes, reading.tally)


__all__ = ["FORMATS", "Format", "Reading", "Writing", "Written", "data_format", "read_samples"]
