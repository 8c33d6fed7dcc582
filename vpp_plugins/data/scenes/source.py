"""What a scene is made from: cut-outs to paste and backgrounds to paste them on."""

from dataclasses import dataclass
from random import Random
from typing import Protocol, runtime_checkable

from PIL import Image


@dataclass(frozen=True)
class Cutout:
    """One image that can be pasted.

    `attribute` tells images of one name apart ("green" for one frog, "brown" for another) or is None.
    `width` and `height` are the stored image's own pixels; it can be rendered at any size, but not sharper.
    """

    name: str
    attribute: str | None
    key: str
    width: int
    height: int


@runtime_checkable
class SceneSource(Protocol):
    """Anything `SceneGenerator` can draw from. Every random choice comes from the `rng` that is passed in."""

    def names(self, heldout: bool) -> tuple[str, ...]:
        """All nouns of one side of the split, sorted."""

    def cutouts(self, name: str) -> tuple[Cutout, ...]:
        """The images of one noun, at least one."""

    def clash(self, first: str, second: str) -> bool:
        """True where one noun could be said of the other's image, so the two never share a scene."""

    def countable(self, name: str) -> bool:
        """False for nouns such as "pliers", of which a scene shows one at most ("the second pliers" is no English)."""

    def render(self, cutout: Cutout, longest_side: int) -> Image.Image:
        """The cut-out as RGBA, cropped to its visible extent, its longest side as asked (pixels)."""

    def background(self, rng: Random, heldout: bool, size: int) -> Image.Image:
        """A square RGB background, `size` pixels wide, from one side of the split."""

    def digest(self) -> str:
        """A hash of everything the images depend on, for the manifest."""
