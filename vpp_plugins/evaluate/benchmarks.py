"""The benchmarks by name: what each asks, under whose terms, where its files come from, and what they are called."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vpp_plugins.data import Issue, Tally
from vpp_plugins.data.formats import Reading, data_format
from vpp_plugins.errors import VPPError, known_name
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.files import sha256_of

_TRAIN2014 = ("train2014", "images/train2014", "images/mscoco/images/train2014", "coco/train2014", "images")
_LOST = (
    Issue.NO_TURNS,  # whatever was wrong with the one turn
    Issue.BAD_FIELD,
    Issue.NO_IMAGE,
    Issue.UNSAFE_PATH,
    Issue.MARKED_WRONG,
    Issue.AMBIGUOUS,
    Issue.NO_BOX,
    Issue.REPEATED_BOX,
)
"""What costs one expression of the files in which each is a sample of its own."""


@dataclass(frozen=True)
class Layout:
    """How one publisher's folder is laid out. In names of files `{split}` stands for the split."""

    data_format: str
    """As in `vpp_plugins.data.formats`."""
    read: str
    """The file that is read, or a pattern of several files of one folder, which is read then."""
    beside: tuple[str, ...] = ()
    """Files that must be there too."""
    images: tuple[str, ...] = ()
    """Folders of the images, of which the first that is there is taken."""

    def lacks(self, folder: Path, split: str) -> list[str]:
        """Return which of the files are not in a folder."""
        wanted = (self.read.format(split=split), *self.beside)
        return [file for file in wanted if not any(found.is_file() for found in folder.glob(file))]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. The published numbers of expressions stand in its protocol, as `name/split`."""

    asks: str
    licence: str
    source: str
    """Where its files come from."""
    layouts: tuple[Layout, ...]
    read_in: str = ""
    """The public code and cards in which the layout was read; empty: it could not be verified."""
    protocol: str = "default"
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of published files, by their names."""

    def splits(self, name: str) -> dict[str, int]:
        """Return the published number of expressions of each split, none where the layout is not verified."""
        known = protocol(self.protocol).splits.items() if self.read_in else ()
        return {key.partition("/")[2]: count for key, count in known if key.partition("/")[0] == name}


@dataclass(frozen=True)
class Found:
    """The files of a benchmark's split."""

    name: str
    split: str
    path: Path
    data_format: str
    images: Path | None
    expected: int | None

    def check_count(self, rows: int, tally: Tally) -> None:
        """Raise VPPError where the files hold more or fewer expressions than are published."""
        seen = rows + sum(tally.counts[issue] for issue in _LOST)
        if self.expected not in (None, seen):
            raise VPPError(
                f"{self.name}/{self.split} has {self.expected:,} published expressions, and '{self.path}' has "
                f"{seen:,}: it is of another version or split, or not whole; {self._otherwise}"
            )

    def check_files(self, known: Mapping[str, str]) -> None:
        """Raise VPPError where a file is not the published one."""
        for file in (self.path, self.path.parent / "instances.json"):
            if file.name in known and sha256_of(file) != known[file.name]:
                raise VPPError(
                    f"'{file}' is not the published file of {self.name} (its SHA-256 is another): download it again; "
                    f"{self._otherwise}"
                )

    @property
    def _otherwise(self) -> str:
        return f"to evaluate it as it is, give it as a file (--data '{self.path}' --format {self.data_format})."


def named_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name, or raise VPPError that names the nearest and all."""
    return BENCHMARKS[known_name(name, BENCHMARKS, "benchmark")]


def full_split(name: str, split: str | None) -> str:
    """Return `name/split` of a benchmark, whichever way the split is given; its only one where none is."""
    known = named_benchmark(name).splits(name)
    return f"{name}/{(split or '').removeprefix(f'{name}/') or (next(iter(known)) if len(known) == 1 else '')}"


def find_benchmark(name: str, folder: str | Path, split: str | None, images: str | None = None) -> Found:
    """Return the files of a benchmark's split in a folder, or in the folder of the benchmark's name in it.

    `split` may be left out where there is one only; `images` is the images' folder where it lies elsewhere. Raises
    VPPError where files are missing, have other names, or are not the published ones.
    """
    one, root = named_benchmark(name), Path(folder)
    known, part = one.splits(name), full_split(name, split).partition("/")[2]
    if known and part not in known:
        said = f"has no split '{part}'" if part else "has several splits"
        raise VPPError(f"{name} {said}: give one of {', '.join(known)} (--split).")
    if not root.is_dir():
        raise VPPError(f"the folder '{folder}' does not exist: give the one of {name}'s files, from {one.source}.")
    lacking = []
    for layout in one.layouts:
        places = (root, root / name, root / "data")
        missing, base = min(((layout.lacks(place, part), place) for place in places), key=lambda found: len(found[0]))
        if not missing:
            files = sorted(base.glob(layout.read.format(split=part)))
            path = files[0] if len(files) == 1 else files[0].parent
            place = Path(images) if images is not None else _images(layout, path, base, root)
            found = Found(name, part, path, layout.data_format, place, known.get(part))
            found.check_files(one.sha256)
            return found
        lacking.append(" and ".join(missing))
    raise VPPError(f"'{folder}' lacks {', or '.join(lacking)}: {name} comes from {one.source}.")


def _images(layout: Layout, path: Path, base: Path, root: Path) -> Path | None:
    """Return the first of a layout's folders that is there and, where names are paths, has the first image."""
    names = (record.image for record in data_format(layout.data_format).records(path, Reading()))
    name = next(names, "") if layout.data_format == "eval-jsonl" else ""  # the others name no folders
    places = (place for folder in layout.images for place in (base / folder, root / folder))
    return next((place for place in places if (place / name).exists()), None)


def _refer(name: str, by: str) -> tuple[Layout, ...]:
    """Return the layouts in which the RefCOCO family is found."""
    return (
        Layout("refer", f"refs({by}).p", ("instances.json",), _TRAIN2014),
        Layout("eval-jsonl", f"{name}_{{split}}.jsonl", (), (".", "..", "../..", *_TRAIN2014)),
        Layout("lmms-parquet", "{split}-*.parquet"),
    )


def _reviewed(name: str) -> Benchmark:
    return Benchmark(
        f"{name} without the expressions (counted here) that Ref-L4's authors found wrong",
        "CC BY-NC 4.0; Apache-2.0 and CC BY 4.0 (expressions), images as COCO",
        "the data set JierunChen/Ref-L4, and train2014 of COCO",
        (Layout("ref-l4-reviewed", f"refcocos_annotation_reviewed/{name}_{{split}}_reviewed.json", (), _TRAIN2014),),
        "the data set's card (files, caption_quality, numbers before the review)",
        "ref-l4",
        {
            "refcoco+_val_reviewed.json": "c61080db850708f343f9bef5f408bc7c358a364d09f9fd843765a6ab0ceb262f",
            "refcoco+_testA_reviewed.json": "9e03439fc8ed189d169d65d6cb6ad455c7798b6de4109a4ebabcf7067b4987f8",
            "refcoco+_testB_reviewed.json": "1057944a4a1cc0ce2b8b8ac693be2144f736ee6bba640a656459bbbdc2fdb76f",
        },
    )


_REFER = "github lichengunc/refer; the files of Qwen-VL's and InternVL's evaluations; the cards of lmms-lab's data sets"
_REFER_FROM = "lichengunc/refer, Qwen-VL's evaluation or lmms-lab's data sets; images: train2014 of COCO"

BENCHMARKS: Mapping[str, Benchmark] = {
    **{
        name: Benchmark(asks, f"{terms}; images as COCO", _REFER_FROM, _refer(name, by), _REFER)
        for name, by, asks, terms in (
            ("refcoco", "unc", "one object, in few words", "Apache-2.0"),
            ("refcoco+", "unc", "one object, without words of place", "Apache-2.0"),
            ("refcocog", "umd", "one object, in sentences", "CC BY 4.0"),
        )
    },
    "referit": Benchmark(
        "one object or region of a tourist's photograph",
        "as its publishers say",
        "lichengunc/refer (refclef), images: SAIAPR TC-12",
        (Layout("refer", "refs(berkeley).p", ("instances.json",), ("saiapr_tc-12", "images/saiapr_tc-12")),),
    ),
    "gseval": Benchmark(
        "stuff, parts, one object, several as one box",
        "Apache-2.0; images as COCO",
        "hustvl/GroundingSuite, images: unlabeled2017 of COCO",
        (Layout("gseval", "GroundingSuite-Eval.jsonl", (), ("images",)),),
        "github hustvl/GroundingSuite",
    ),
    "ref-l4": Benchmark(
        "one object of 365 categories, in 24 words",
        "CC BY-NC 4.0; images as COCO and Objects365",
        "the data set JierunChen/Ref-L4; unpack images.tar.gz into images/",
        (Layout("ref-l4", "ref-l4-{split}.parquet", (), ("images",)),),
        "github JierunChen/Ref-L4 (dataloader.py, evaluation.py) and the data set's card",
        "ref-l4",
        {
            "ref-l4-val.parquet": "7aef079b3fa1ec5de7548774ae6206f375f4b189fd5acecae86741a452da1926",
            "ref-l4-test.parquet": "6af2bcac60d0aff5f78c0a0c834377e43ceb17d1e11cbaacdf4eda5f9a9e0068",
        },
    ),
    **{f"{name}-reviewed": _reviewed(name) for name in ("refcoco", "refcoco+", "refcocog")},
    "grefcoco": Benchmark(
        "any number of objects, also none",
        "CC BY-NC-SA 4.0; images as COCO",
        "the data set FudanCVL/gRefCOCO, images: train2014 of COCO",
        (Layout("grefcoco", "grefs(unc).json", ("instances.json",), _TRAIN2014),),
        "github henghuiding/gRefCOCO (grefer.py, mdetr/datasets/refexp.py)",
        "grefcoco",
        {
            "grefs(unc).json": "cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366",
            "instances.json": "7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd",
        },
    ),
    "ref-adv-s": Benchmark(
        "one object among others of its kind, by reasoning; a fifth negates (the public part of 5,000)",
        "as its publishers say; images as COCO and OpenImages",
        "the data set dddraxxx/ref-adv-s",
        (Layout("ref-adv", "train-*.parquet"),),
        "github dddraxxx/Ref-Adv (run.py, report.py) and modelscope/evalscope's ref_adv_s",
        "ref-adv",
    ),
    "groundingme": Benchmark(
        "one object, hard to tell, to place or to see; a fifth is not there",
        "research only, as SA-1B and HR-Bench",
        "the data set lirang04/GroundingME",
        (Layout("groundingme", "test-*.parquet"),),
        "github lirang04/GroundingME (evaluate.py) and the data set's card",
        "groundingme",
    ),
}
"""By name, as `--data` takes it beside `--folder`."""
