"""A data set in parts: whole images on each side of a split, or the first samples."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vpp_plugins.data.convert import Conversion, check_target, convert, copies
from vpp_plugins.data.formats import Reading, data_format
from vpp_plugins.data.record import ImageSizes, Record, samples
from vpp_plugins.data.same_images import groups_of_images, image_digest
from vpp_plugins.data.sample import Issue, Sample, Tally
from vpp_plugins.errors import VPPError

_SUFFIX = {"vpp-sft": ".json", "llava-665k": ".json", "coco": ".json", "webdataset": ""}


@dataclass(frozen=True)
class Split:
    """The sides of a split by name, with what was written of each, its file and how many images it has.

    `compared` is how many images' bytes were compared; of the others only the names were.
    """

    sides: Mapping[str, Conversion]
    files: Mapping[str, Path]
    images: Mapping[str, int]
    compared: int

    tally: Tally
    """What is faulty in the source, and what the format cannot hold."""
    folder: Path | None = None
    """Where the images were written that lie in the source, and in none of the files."""


def split_data(
    source: str | Path,
    out: str | Path,
    *,
    source_format: str,
    target_format: str = "",
    shares: Mapping[str, float],
    seed: int = 0,
    images: str | Path | None = None,
    reading: Reading | None = None,
    **options: Any,
) -> Split:
    """Write a file's samples to `out/train`, and the `shares` of its images, such as {"val": 0.1}, to files of theirs.

    No image is on two sides, nor an identical one under another name: by its bytes, where `images`, their folder, is
    given or they lie in the data, and COCO's by their number. The same seed gives the same sides, in whatever order the
    samples come. `target_format` is the source's where it can be written, else our own; `options` are those of
    `convert`. Raises VPPError for shares that leave nothing to train on, and for fewer images than sides.
    """
    source, reading = Path(source), reading or Reading()
    target_format = target_format or (source_format if data_format(source_format).write else "neutral")
    _check_shares(shares)
    if Path(out).exists() and not Path(out).is_dir():
        raise VPPError(f"'{out}' is a file, and the sides go into a folder: name another.")
    names = ["train", *shares]
    files = {name: Path(out) / f"{name}{_SUFFIX.get(target_format, '.jsonl')}" for name in names}
    for file in files.values():
        check_target(file, data_format(source_format).files(source), overwrite=options.get("overwrite", False))
    _check_no_other_side(files)
    tally = Tally()
    folder = reading.images_to or copies(source_format, target_format, Path(out) / "images")
    reading = replace(reading, images_to=folder)  # from the first reading on: images get the names there that are free
    side_of, compared = _sides(source, source_format, shares, seed, images, replace(reading, tally=tally), options)
    counts = {name: sum(side == name for image, side in side_of.items() if image[0] != "\0") for name in names}
    Path(out).mkdir(parents=True, exist_ok=True)
    settings = {"source_format": source_format, "target_format": target_format, "images": images, **options}
    sides, left = {}, set(side_of)
    for name in names:
        chosen = _on_side(name, side_of, left)
        sides[name] = convert(source, files[name], reading=replace(reading, tally=Tally()), chosen=chosen, **settings)
        tally.take(sides[name].tally, Issue.NOT_WRITABLE)  # what is faulty in the source was counted once for all sides
    if left:
        raise VPPError(
            f"{len(left):,} images of '{source}' are on no side, {min(left).lstrip(chr(0))!r} for one: either no file "
            "can be called so, or the source was changed while it was split. Mend that, and split again (--overwrite)."
        )
    return Split(sides, files, counts, compared, tally, folder)


def head(
    source: str | Path,
    source_format: str,
    count: int,
    *,
    images: str | Path | None = None,
    sizes: str | Path | None = None,
    reading: Reading | None = None,
) -> Iterator[Sample]:
    """Yield the first samples of a file, `images` and `sizes` as in `convert`; raises VPPError where there is none."""
    reading = reading or Reading()
    known = ImageSizes(Path(images) if images is not None else None, Path(sizes) if sizes is not None else None)
    found = samples(data_format(source_format).records(Path(source), reading), known, reading.tally)
    none = True
    for sample in islice(found, count):
        none = False
        yield sample
    if none:
        raise reading.tally.nothing_left(f"'{source}' holds no row that can be used", source, source_format, images)


def _check_shares(shares: Mapping[str, float]) -> None:
    names = {"train", *map(str.casefold, shares)}
    if len(names) <= len(shares) or not all(name.isidentifier() for name in names):
        raise VPPError(f"the sides beside 'train' need names of their own, plain words, but are: {', '.join(shares)}.")
    if not shares or not all(0 < share < 1 for share in shares.values()) or not sum(shares.values()) < 1:
        said = ", ".join(f"{name} {share:g}" for name, share in shares.items()) or "none"
        raise VPPError(
            f"the shares of a split are above 0, and together below 1, so that some images train, but are: {said}."
        )


def _check_no_other_side(files: Mapping[str, Path]) -> None:
    """Refuse to write an earlier split's sides anew but for one, whose images may then be on the others."""
    beside = {name: files["train"].with_stem(name) for name in ("val", "test") if name not in files}
    other = next((file for file in beside.values() if file.exists()), None)
    if other is not None and any(file.exists() for file in files.values()):
        raise VPPError(
            f"'{other}' is a side of an earlier split and would stay as it is, though its images may now be on other "
            f"sides: write it too (--{other.stem}), move it away, or name another folder."
        )


def _sides(
    source: Path,
    source_format: str,
    shares: Mapping[str, float],
    seed: int,
    images: str | Path | None,
    reading: Reading,
    options: Mapping[str, Any],
) -> tuple[dict[str, str], int]:
    """Return the side of each image, and of each sample without one, and how many images' bytes were compared."""
    folder, known = Path(images) if images is not None else None, options.get("sizes")
    first = replace(reading, seen={}, family=options.get("family", "llava"))
    sizes = ImageSizes(folder, Path(known) if known is not None else None)
    try:
        found = samples(data_format(source_format).records(source, first), sizes, first.tally)
        names = list(dict.fromkeys(map(_subject, found)))
    finally:
        sizes.save()
    if not names:
        raise first.tally.nothing_left(f"'{source}' holds no row that can be used", source, source_format, images)
    digests = dict(first.seen)
    if folder is not None and not data_format(source_format).has_images:
        digests |= {name: digest for name in names if (digest := image_digest(folder, name))}
    groups = groups_of_images(names, digests)
    return _dealt(groups, shares, seed), sum(name in digests for name in names)


def _dealt(groups: list[list[str]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return the side of each name: each side gets its share of the groups, one at least."""
    if len(groups) <= len(shares):
        raise VPPError(
            f"a split into {len(shares) + 1} sides needs as many different images, and there are {len(groups)}: "
            "identical ones, also under other names, stay on one side. Gather more images, or name fewer sides "
            "(--val 0 leaves that out, --test 0 the other)."
        )
    ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {min(group)}".encode(errors="replace")).digest())
    side_of: dict[str, str] = {}
    start = 0
    counts = {name: max(1, round(share * len(groups))) for name, share in shares.items()}
    while sum(counts.values()) >= len(groups):  # some images must train
        counts[max(counts, key=lambda side: counts[side])] -= 1
    for side, count in (*counts.items(), ("train", len(groups))):
        for group in ordered[start : start + count]:
            side_of |= dict.fromkeys(group, side)
        start += count
    return side_of


def _subject(sample: Sample | Record) -> str:
    return sample.image or f"\0{sample.id}"  # no image has such a name


def _on_side(name: str, side_of: Mapping[str, str], left: set[str]) -> Callable[[Iterable[Record]], Iterator[Record]]:
    """Return what chooses the records of a side, and takes their images out of those that are `left`."""

    def chosen(found: Iterable[Record]) -> Iterator[Record]:
        for record in found:
            if side_of.get(_subject(record)) == name:
                left.discard(_subject(record))
                yield record

    return chosen
