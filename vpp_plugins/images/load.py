"""Read any image a user may have into plain RGB, and letterbox it for the detector."""

import base64
import http.client
import io
import struct
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from vpp_plugins.config import MAX_IMAGE_PIXELS, most_image_pixels
from vpp_plugins.errors import VPPError

ImageSource = str | Path | bytes | Image.Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_SIDE = 8
LARGEST_SIDE = 16_384

_WRONG: dict[tuple[type[Exception], ...], str] = {
    (FileNotFoundError, NotADirectoryError): "does not exist: give the path of an image.",
    (PermissionError,): "may not be read: ask for permission, or give another image.",
    (IsADirectoryError,): "is a folder: give the path of one image.",
    (UnidentifiedImageError,): "is not an image that can be read (JPEG, PNG, WebP, ... expected).",
    (Image.DecompressionBombError,): (
        f"has too many pixels to be decoded safely: at most {LARGEST_SIDE} pixels a side and "
        f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,} in all are read by Pillow; shrink it first."
    ),
}

_DAMAGED = (struct.error, LookupError, TypeError, ArithmeticError)
"""What Pillow's decoders raise beside errors of files and values where a file is damaged."""


def load_image(source: ImageSource, *, max_pixels: int | None = None) -> Image.Image:
    """Return the image as 8-bit RGB, turned upright as its EXIF orientation says.

    A text is a path, an http(s) address, which is fetched, or a `data:image/...;base64,` address.

    CMYK, palette, 16-bit and grey images are converted, transparency is laid on white, and of an animation the first
    frame is taken.
    Sixteen bits that hold 10, 12 or 14 are read as that, where their largest value says so.
    Raises VPPError for a missing, empty, truncated or foreign file, for sides below 8 or above 16,384 pixels, and,
    before anything is decoded, for more than `max_pixels` in all: 64,000,000 unless `vpp --max-image-pixels` or the
    environment variable VPP_MAX_IMAGE_PIXELS says otherwise.
    """
    if not isinstance(source, ImageSource):
        raise VPPError(f"an image must be a path, an address, bytes or a PIL image, but is a {type(source).__name__}.")
    name = "the image" if isinstance(source, bytes | Image.Image) or _is_data(source) else f"'{source}'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the side limit below is ours
            image = source if isinstance(source, Image.Image) else _open(source, name)
            _check_size(image, name, most_image_pixels() if max_pixels is None else max_pixels)
            sixteen = isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile[3]) for tile in image.tile)
            upright = ImageOps.exif_transpose(image)
            _check_depth(upright, sixteen, name)
            return _to_rgb(upright)
    except VPPError:
        raise
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError, RuntimeError, *_DAMAGED) as error:
        raise VPPError(f"{name} {_what_is_wrong(error)}") from None


def _what_is_wrong(error: Exception) -> str:
    for kinds, sentence in _WRONG.items():
        if isinstance(error, kinds):
            return sentence
    if isinstance(error, OSError) and error.strerror:  # the system's word; Pillow's decoders give none
        return f"cannot be opened ({error.strerror}): give the path of an image."
    return f"is damaged or truncated ({error}): save or download it again."  # Pillow's decoders raise anything


def load_images(sources: Sequence[ImageSource]) -> list[Image.Image]:
    """Return every image as `load_image` does; one that comes several times is read once, and is one object."""
    return _each_once(load_image, sources)


def flatten_images(images: Any) -> list[Image.Image]:
    """Return every image of an image, a list, or a list of lists, upright RGB, in reading order; None holds none.

    Beside what `load_image` takes, images may be 8-bit arrays [height, width, 3] or tensors [3, height, width]. An
    image that comes several times is read once, and is one object.
    """
    return [] if images is None else _each_once(_to_image, image_sources(images))


def _each_once(read: Callable[[Any], Image.Image], sources: Iterable[Any]) -> list[Image.Image]:
    sources = list(sources)  # data sets' columns decode anew at every look, and what is gone leaves its id to another
    names = [str(source) if isinstance(source, str | Path) else id(source) for source in sources]
    images = {name: read(source) for name, source in dict(zip(names, sources, strict=True)).items()}
    return [images[name] for name in names]


def letterbox(image: Image.Image, side: int) -> Float[Tensor, "3 side side"]:
    """Fit an RGB image into a square, centred, ImageNet-normalised, with exact zeros around it.

    No 8-bit value normalises to exactly 0 (255 times no ImageNet mean is an integer), so the zeros tell padding from
    image. Same arithmetic as VPP-LLaVA's test transforms: 8-bit bilinear resize, then offsets of half the padding,
    rounded down.
    """
    ratio = side / max(image.size)
    width, height = (max(1, round(length * ratio)) for length in image.size)
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    canvas = torch.zeros(3, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    normalise(resized, IMAGENET_MEAN, IMAGENET_STD, into=canvas[:, top : top + height, left : left + width])
    return canvas


def letterboxes(images: Sequence[Image.Image], side: int) -> Float[Tensor, "images 3 side side"]:
    """Return every image as `letterbox` does, in one batch; an object that comes several times is fitted once."""
    fitted = {key: letterbox(image, side) for key, image in {id(image): image for image in images}.items()}
    return torch.stack([fitted[id(image)] for image in images])


def normalise(
    pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], *, into: Float[Tensor, "3 height width"]
) -> None:
    """Write 8-bit pixels [height, width, 3], from 0 to 1 and normalised: in place, so that no more floats are held."""
    means, stds = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
    into.copy_(torch.from_numpy(pixels).permute(2, 0, 1)).div_(255).sub_(means).div_(stds)


def image_sources(images: Any) -> Iterator[Any]:
    """Give every image of an image, a list, or a list of lists as it came, in reading order."""
    if isinstance(images, list | tuple):
        for part in images:
            yield from image_sources(part)
    else:
        yield images


def _to_image(image: Any) -> Image.Image:
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.shape[0] == 3 else image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise VPPError(
                f"an image array must be 8-bit [height, width, 3], but is {image.dtype} {list(image.shape)}: convert "
                "it, or pass a PIL image."
            )
        image = Image.fromarray(image)
    if not isinstance(image, ImageSource):
        raise VPPError(f"an image must be a path, bytes, a PIL image, an array or a tensor, but is {image!r}.")
    return load_image(image)


def _is_data(source: Path | str) -> bool:
    return str(source).startswith("data:image/")


def _read(source: str | Path) -> bytes:
    if isinstance(source, Path):
        return source.read_bytes()
    if source.startswith(("http://", "https://")):
        return _fetch(source)
    if _is_data(source):
        return base64.b64decode(source.partition(",")[2])  # its error is a ValueError, as a decoder's
    return Path(source).read_bytes()


def _fetch(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        raise VPPError(f"'{address}' could not be fetched ({error}): check the address and the network.") from None


def _open(source: str | Path | bytes, name: str) -> Image.Image:
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise VPPError(f"{name} is empty (0 bytes): save or download it again.")
    return Image.open(io.BytesIO(data))


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels and max(width, height) <= LARGEST_SIDE:
        raise VPPError(
            f"{name} has {width} x {height} pixels, and at most {max_pixels:,} are decoded: resize it first, or allow "
            f"more: vpp --max-image-pixels {width * height} ..., or {MAX_IMAGE_PIXELS}={width * height}."
        )
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LARGEST_SIDE:
        raise VPPError(
            f"{name} is {width} x {height} pixels, but sides of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels are expected: "
            "resize it first."
        )


_FULL = (1023, 4095, 16383, 65535)
"""The largest values of 10, 12, 14 and 16 bits: cameras and scanners store each in files of 16."""


def _check_depth(image: Image.Image, sixteen: bool, name: str) -> None:
    """Refuse colours of fewer than 16 bits in 16, of which Pillow keeps the upper 8: they would be nearly black."""
    brightest = int(np.asarray(image).max()) if sixteen and image.mode == "RGB" else 0
    if 0 < brightest <= 16383 >> 8:
        raise VPPError(f"{name} has colours of 16 bits that use 14 or fewer: scale it to 8 bits first.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # Pillow's own conversion clips 16-bit greys to white
        grey = np.asarray(image, dtype=np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise VPPError("a grey image of 32 bits has no known range: convert it to 8 bits first.")
        full = next(full for full in _FULL if grey.max() <= full)
        return Image.fromarray((grey / full * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise VPPError("a floating-point image has no known range: convert it to 8 bits first.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
