"""How large the images of a data set are, from their headers, and where they may lie."""

import json
import re
import struct
import warnings
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from vpp_plugins.data.json_stream import stream_lines
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file

_CLIMBS = re.compile(r"(?:\A|[/\\])\.\.(?:[/\\]|\Z)")
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height


_DAMAGED = (struct.error, LookupError, TypeError, ArithmeticError)


class ImageError(VPPError):
    """An image that cannot be had: its name leaves the folder, or the file is missing or no image."""


class UnsafePathError(ImageError):
    """An image's name that is absolute, or climbs out of its folder."""


def check_name(name: str) -> None:
    r"""Refuse an image's name that could leave its folder: absolute, with `..`, a drive or a zero byte.

    Names come from files that others wrote, for any system: `\` separates as `/` does. Raises UnsafePathError.
    """
    if name[:1] in ("", "/", "\\") or name[1:2] == ":" or "\0" in name or (".." in name and _CLIMBS.search(name)):
        raise UnsafePathError(f"the image's name {name!r} does not stay below its folder; it is refused.")


def image_path(folder: Path, name: str) -> Path:
    """Return where an image of a data set lies; links that you put into the folder yourself are followed.

    Raises UnsafePathError as `check_name` does.
    """
    check_name(name)
    return folder / name


def upright_size(path: Path | BytesIO) -> tuple[int, int]:
    """Return (width, height) of an image as EXIF turns it, from its header. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a header tells no bomb: nothing is decoded here
            with Image.open(path) as image:
                width, height = image.size
                # Asked for EXIF that is not in front, Pillow decodes a PNG whole, which a header must not cost.
                exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
                turned = exif.get(ExifTags.Base.Orientation) in _TURNED
    except Image.DecompressionBombError:
        raise ImageError(f"'{path}' claims too many pixels to be a photograph.") from None
    except UnidentifiedImageError:
        raise ImageError(f"'{path}' is not an image that can be read.") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RuntimeError,
        *_DAMAGED,
    ) as error:  # Pillow's plugins raise each of these
        raise ImageError(f"'{path}' cannot be read ({error}).") from None
    return (height, width) if turned else (width, height)


class ImageSizes:
    """Sizes of images by name: from the file `known` first, then from the headers below `folder`.

    What was found in headers is added to `known` by `save`, so that a second run, or one that was interrupted, need
    not open the images again. `known` is JSON lines of {"image", "width", "height"}.
    """

    def __init__(self, folder: Path | None = None, known: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise VPPError(f"the folder of images '{folder}' does not exist.")
        self.folder, self.known = folder, known
        self._sizes: dict[str, tuple[int, int]] = {}
        self._failed: dict[str, ImageError] = {}
        self._found = 0
        if known is not None and known.exists():
            self._load(known)

    def __call__(self, name: str) -> tuple[int, int]:
        """Return (width, height) in pixels. Raises ImageError for an image that cannot be had."""
        if name in self._sizes:
            return self._sizes[name]
        if name in self._failed:
            raise self._failed[name]
        try:
            size = self._measure(name)
        except ImageError as error:
            self._failed[name] = error
            raise
        self._sizes[name] = size
        self._found += 1
        return size

    def save(self) -> None:
        """Write all sizes to `known`, if there is such a file to keep and something new."""
        if self.known is None or not self._found:
            return
        with whole_file(self.known) as file:
            for name, (width, height) in self._sizes.items():
                file.write(json.dumps({"image": name, "width": width, "height": height}).encode() + b"\n")
        self._found = 0

    def _measure(self, name: str) -> tuple[int, int]:
        if self.folder is None:
            raise VPPError(
                f"the data hold no size for the image {name!r}, and its boxes cannot be placed without one: "
                "give the folder of the images (--images), or a file of their sizes (--sizes)."
            )
        return upright_size(image_path(self.folder, name))

    def _load(self, known: Path) -> None:
        for number, row in enumerate(stream_lines(known), start=1):
            match row:
                case {"image": str(name), "width": int(width), "height": int(height)} if width > 0 and height > 0:
                    if self._sizes.setdefault(name, (width, height)) != (width, height):
                        raise VPPError(f"'{known}', line {number}, gives '{name}' another size than a line before.")
                case _:
                    raise VPPError(f"'{known}', line {number}, is not an object with image, width and height.")
