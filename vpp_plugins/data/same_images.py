"""Which images are one and the same: by their bytes, and COCO's by their number under any of its names."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from posixpath import normpath
from unicodedata import normalize

from vpp_plugins.data.record import ImageError, image_path
from vpp_plugins.files import sha256_of

_COCO = re.compile(r"(?:\A|/)(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.\w+\Z")

Digest = Callable[[str], bytes | None]
"""Of an image's bytes, by its name; None where they cannot be had."""


def shared_images(
    ours: Sequence[str], theirs: Iterable[str], our_digest: Digest | None, their_digest: Digest | None
) -> list[str]:
    """Return which of our images are in the other set too.

    With both sets' digests given they decide; else the names do. COCO's images are known by their number, under
    whichever of its names: `COCO_train2014_000000000009.jpg` is `train2017/000000000009.jpg`. Names that one file may
    have on some system are one.
    """
    others = set(theirs)
    numbers = {number for name in others if (number := _coco_number(name))}
    same = {name for name in ours if _coco_number(name) in numbers}
    if our_digest is None or their_digest is None:
        spellings = set(map(_spelling, others))
        same |= {name for name in ours if _spelling(name) in spellings}
    else:
        digests = {digest for name in others if (digest := their_digest(name))}
        same |= {name for name in ours if our_digest(name) in digests}
    return [name for name in ours if name in same]


def groups_of_images(names: Iterable[str], digests: Mapping[str, bytes]) -> list[list[str]]:
    """Return the names in groups of one image each, as far as their digests, or else they, and COCO's numbers tell."""
    above: dict[str | bytes, str | bytes] = {}

    def root(one: str | bytes) -> str | bytes:
        while above.setdefault(one, one) != one:
            one = above[one]
        return one

    names = list(dict.fromkeys(names))
    for name in names:
        for key in (digests.get(name) or _spelling(name).encode(errors="replace"), _coco_number(name).encode()):
            if key:
                above[root(key)] = root(name)
    groups: dict[str | bytes, list[str]] = {}
    for name in names:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def _spelling(name: str) -> str:
    r"""Return what all names of one file share: `./a.png`, `A.png` on some systems, `\` for `/`, é in two ways."""
    return normpath(normalize("NFC", name).casefold().replace("\\", "/"))


def image_digest(folder: Path, name: str) -> bytes | None:
    """Return the digest of an image's file, as `Reading.seen` has it, or None where it cannot be read."""
    try:
        return bytes.fromhex(sha256_of(image_path(folder, name)))[:16]
    except (ImageError, OSError, ValueError):
        return None


def _coco_number(name: str) -> str:
    match = _COCO.search(name)
    return match[1] if match else ""
