"""WebDataset: shards in which each sample is KEY.json, a neutral row, with its image KEY.jpg beside it."""

import io
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from vpp_plugins.data.formats.fields import text_of
from vpp_plugins.data.formats.neutral import neutral_record, neutral_row
from vpp_plugins.data.formats.reading import Reading, Writing, json_bytes
from vpp_plugins.data.image_sizes import ImageError, image_path, upright_size
from vpp_plugins.data.json_stream import json_value
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Sample
from vpp_plugins.data.shards import IMAGES, INDEX, Packed, packed_samples, shard_paths
from vpp_plugins.data.tally import Issue
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file


def read_webdataset(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per sample; images are written to `reading.images_to` where it is given."""
    for shard in shard_paths(path):
        for packed in packed_samples(shard):
            record = packed_record(packed, reading)
            if record is not None:
                if record.image and reading.images_to is not None:
                    reading.keep_image(record.image, packed.read(packed.image))
                yield record


def packed_record(packed: Packed, reading: Reading) -> Record | None:
    """Return one sample of a shard as a record, or None, counted, where it is none.

    An image has the name that the row gives it, or else its member's.
    """
    if "json" not in packed.members:
        reading.tally.add(Issue.BAD_FIELD, packed.key, "no .json beside it")
        return None
    if packed.members["json"][1] > reading.largest:
        reading.tally.add(Issue.BAD_FIELD, packed.key, f"its .json is longer than {reading.largest:,} bytes")
        return None
    try:
        row = json_value(packed.read("json"), f"{packed.key}.json")
    except VPPError as error:
        reading.tally.add(Issue.BAD_FIELD, packed.key, str(error))
        return None
    if not isinstance(row, dict):
        reading.tally.add(Issue.BAD_FIELD, packed.key, "not an object")
        return None
    named = {**row, "id": text_of(row.get("id")) or packed.key, "image": row.get("image") or packed.image_name}
    record = neutral_record(named, 0, reading)
    if record is None or not (record.image or record.boxes):
        return record
    if not packed.image:
        reading.tally.add(Issue.NO_IMAGE, record.id, f"'{packed.key}' has no image beside its .json")
        return None
    if record.size_wh is None and record.boxes:
        try:
            return replace(record, size_wh=upright_size(io.BytesIO(packed.read(packed.image))))
        except ImageError:
            reading.tally.add(Issue.NO_IMAGE, record.id, f"the image of '{packed.key}' cannot be read")
            return None
    return record


def write_webdataset(samples: Iterable[Sample], writing: Writing) -> None:
    """Write a folder of shards of about `writing.shard_bytes`; it takes its name when all of them are whole.

    Images are read below `writing.images`, and their bytes taken as they are: an image with several samples is
    stored with each. An existing folder is replaced only if it holds nothing but shards.
    """
    target = writing.path
    strangers = [path.name for path in _held(target) if path.suffix != ".tar" and not path.name.startswith(INDEX)]
    if strangers:
        raise VPPError(
            f"'{target}' holds more than shards ('{strangers[0]}'), and is not replaced: name another folder."
        )
    if not target.parent.is_dir():
        raise VPPError(f"the folder '{target.parent}' does not exist: make it first.")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".partial", dir=target.parent) as made:
        folder = Path(made) / "written"
        folder.mkdir()
        _write_shards(_members(samples, writing), folder, writing.shard_bytes)
        if target.exists():
            target.rename(Path(made) / "replaced")
        folder.rename(target)


def _write_shards(members: Iterable[dict[str, bytes]], folder: Path, most: int) -> None:
    waiting, number, shard = iter(members), 0, 0
    sample = next(waiting, None)
    while sample is not None or not shard:
        path = folder / f"{shard:06}.tar"
        with whole_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            remembered: list[tarfile.TarInfo] = vars(tar)["members"]
            while sample is not None and tar.offset < most:
                for extension, data in sample.items():
                    member = tarfile.TarInfo(f"{number:09}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                remembered.clear()
                number += 1
                sample = next(waiting, None)
        shard += 1


def _members(samples: Iterable[Sample], writing: Writing) -> Iterator[dict[str, bytes]]:
    for sample in samples:
        row = {"json": json_bytes(neutral_row(sample))}
        if not sample.image:
            yield row
            continue
        if writing.images is None:
            raise VPPError("the format webdataset holds the images themselves: give their folder (--images).")
        extension = sample.image.rpartition(".")[2].lower()
        try:
            if extension not in IMAGES:
                raise ImageError(f"'{sample.image}' should end in one of {', '.join(IMAGES)}.")
            yield row | {extension: image_path(writing.images, sample.image).read_bytes()}
        except (OSError, ImageError) as error:
            writing.tally.add(Issue.NO_IMAGE, sample.id, str(error))


def _held(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise VPPError(f"'{folder}' is a file, and shards go into a folder: name another.")
    return sorted(folder.iterdir())
