"""The scene benchmark: a folder that `vpp data scenes` wrote."""

from collections.abc import Iterator
from pathlib import Path

from vpp_plugins.data.formats.reading import Reading
from vpp_plugins.data.record import Record
from vpp_plugins.data.sample import Locate


def read_scenes(path: Path, reading: Reading) -> Iterator[Record]:
    """Yield a record per expression; its kind is the category."""
    from vpp_plugins.data.scenes.folder import load_scenes  # loads torch, which no other format needs

    folder = load_scenes(path)
    for record in folder.records:
        for number, expression in enumerate(record["expressions"]):
            yield Record(
                id=f"{record['key']}-{number}",
                image=reading.image_name(record["image"]),
                size_wh=(record["width"], record["height"]),
                turns=(Locate(expression["text"], (tuple(expression["box_xyxy"]),)),),
                split=folder.manifest["split"],
                category=expression["kind"],
            )
