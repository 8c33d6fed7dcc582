"""Coloured shapes drawn in code: a source of scenes that needs no download."""

from functools import cache
from math import cos, pi, sin
from random import Random

from PIL import Image, ImageDraw

from vpp_plugins.data.scenes.source import Cutout

_MASK_SIDE = 512
_Points = tuple[tuple[float, float], ...]  # x and y between 0 and 1

# Far enough apart that a darker or lighter copy keeps its colour's name.
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (24, 24, 24),
    "blue": (30, 80, 230),
    "green": (30, 160, 50),
    "orange": (255, 135, 0),
    "purple": (140, 40, 180),
    "red": (225, 25, 30),
    "white": (250, 250, 250),
    "yellow": (255, 225, 20),
}


def _regular(corners: int, radii: tuple[float, ...] = (0.5,)) -> _Points:
    """A regular polygon, first corner up; several radii taken in turn make a star."""
    angles = [2 * pi * corner / corners - pi / 2 for corner in range(corners)]
    radius = [radii[corner % len(radii)] for corner in range(corners)]
    return tuple((0.5 + r * cos(angle), 0.5 + r * sin(angle)) for r, angle in zip(radius, angles, strict=True))


def _heart() -> _Points:
    turns = [2 * pi * step / 90 for step in range(90)]
    return tuple(
        (0.5 + sin(t) ** 3 / 2, 0.45 - (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 34) for t in turns
    )


_POLYGONS: dict[str, _Points] = {
    "arrow": ((0, 0.35), (0.55, 0.35), (0.55, 0.15), (1, 0.5), (0.55, 0.85), (0.55, 0.65), (0, 0.65)),
    "cross": tuple(
        (x / 3, y / 3)
        for x, y in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1))
    ),
    "diamond": ((0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)),
    "heart": _heart(),
    "hexagon": _regular(6),
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "star": _regular(10, (0.5, 0.2)),
    "trapezoid": ((0.25, 0.2), (0.75, 0.2), (1, 0.8), (0, 0.8)),
    "triangle": ((0.5, 0.05), (1, 0.95), (0, 0.95)),
}
# The second ellipse is cut out of the first.
_ELLIPSES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "circle": ((0, 0, 1, 1),),
    "crescent": ((0, 0, 1, 1), (0.3, -0.05, 1.2, 0.85)),
    "ring": ((0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75)),
}
_HELD_OUT = frozenset({"arrow", "crescent", "hexagon", "trapezoid"})
_ALIKE = (frozenset({"circle", "ring"}), frozenset({"diamond", "square"}))


class Shapes:
    """The SceneSource of drawn shapes: 8 seen and 4 held-out nouns in 8 colours, the colour as the attribute.

    Training backgrounds are soft blotches, held-out ones a gradient under fine noise, both nearly grey.
    """

    def names(self, heldout: bool) -> tuple[str, ...]:
        """All nouns of one side of the split, sorted."""
        return tuple(name for name in sorted((*_POLYGONS, *_ELLIPSES)) if (name in _HELD_OUT) == heldout)

    def cutouts(self, name: str) -> tuple[Cutout, ...]:
        """The shape in every colour."""
        return tuple(Cutout(name, colour, f"{colour} {name}", *_mask(name).size) for colour in COLOURS)

    def clash(self, first: str, second: str) -> bool:
        """A ring may be called a circle, and a diamond a square."""
        return any(first in pair and second in pair for pair in _ALIKE)

    def countable(self, name: str) -> bool:
        """Every shape can be counted."""
        return True

    def render(self, cutout: Cutout, longest_side: int) -> Image.Image:
        """The shape as RGBA in the colour that its attribute names."""
        mask = _mask(cutout.name)
        scale = longest_side / max(mask.size)
        size_wh = (max(1, round(mask.width * scale)), max(1, round(mask.height * scale)))
        shape = Image.new("RGBA", size_wh, COLOURS[cutout.attribute or "black"])
        shape.putalpha(mask.resize(size_wh, Image.Resampling.LANCZOS, reducing_gap=2.0))
        return shape

    def background(self, rng: Random, heldout: bool, size: int) -> Image.Image:
        """Nearly grey, so that no colour of a shape is lost on it."""
        grey = rng.randint(95, 160)
        blotches = _noise(rng, 2 if heldout else rng.randint(4, 9), grey, 22).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        if not heldout:
            return blotches
        fine = _noise(rng, 64, 128, 60).resize((size, size), Image.Resampling.NEAREST)
        return Image.blend(blotches, fine, 0.3)

    def digest(self) -> str:
        """Drawn in code, so the version of the scenes says it all."""
        return "shapes"


def _noise(rng: Random, side: int, middle: int, spread: int) -> Image.Image:
    """A small square of random colours within `spread` of a grey."""
    table = [middle + round((value / 127.5 - 1) * spread) for value in range(256)]
    return Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).point(table * 3)


@cache
def _mask(name: str) -> Image.Image:
    """The shape in white on black, cropped to its extent."""
    mask = Image.new("L", (_MASK_SIDE, _MASK_SIDE))
    pen = ImageDraw.Draw(mask)
    if name in _POLYGONS:
        pen.polygon([(x * (_MASK_SIDE - 1), y * (_MASK_SIDE - 1)) for x, y in _POLYGONS[name]], fill=255)
    else:
        for ellipse_xyxy, fill in zip(_ELLIPSES[name], (255, 0), strict=False):
            pen.ellipse([value * (_MASK_SIDE - 1) for value in ellipse_xyxy], fill=fill)
    return mask.crop(mask.getbbox())
