"""The scene benchmark: 3 to 6 cut-outs on a background, with expressions that each mean exactly one of them.

In the split `sets` they mean any number of them, also none.

A scene is a function of (version, split, seed, index) and of the generator's settings: the order of the calls, the
process and the global random state do not matter.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from random import Random

from PIL import Image, ImageFilter

from vpp_plugins.data.scenes.assets import Assets
from vpp_plugins.data.scenes.cutouts import PhotoCutouts
from vpp_plugins.data.scenes.expressions import Expression, SceneObject, refer, refer_to_sets
from vpp_plugins.data.scenes.source import Cutout, SceneSource
from vpp_plugins.errors import VPPError, known_name

SCENES_VERSION = 1
"""Raised whenever the same (split, seed, index) would give another image or other texts."""

SPLITS = ("train", "val", "test", "heldout", "sets")

LARGEST_SIZE = 4096  # of a scene, in pixels
SMALLEST_SIDE, LARGEST_SIDE = 0.14, 0.50  # longest side of an object, fraction of the scene's side
SMALLEST_ROOT_AREA = 0.10  # root of width times height, so that syringes and the like are no mere lines
MOST_UPSCALING = 2.0  # small stamps are never blown up further than this
MOST_OVERLAP = 0.08  # share of the smaller box that another box may cover
VISIBLE_ALPHA = 48  # of 255: fainter pixels do not count as the object when its box is taken
_VISIBLE = [255 if alpha > VISIBLE_ALPHA else 0 for alpha in range(256)]
_ONLY = [[255 if value == number else 0 for value in range(256)] for number in range(9)]
_SHADOW = [round(alpha * 0.45) for alpha in range(256)]


@dataclass(frozen=True)
class Scene:
    """One image with its objects and expressions. Boxes are xyxy pixels, right and bottom edges exclusive.

    `key` names the image in logs and result files, such as "val-0-000017". `objects` is empty where an image's
    things are not listed (the real photographs).
    """

    key: str
    image: Image.Image
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    expressions: tuple[Expression, ...]


@dataclass(frozen=True)
class _Placed:
    """A rendered cut-out and the pixel of its top left corner."""

    cutout: Cutout
    image: Image.Image
    left: int
    top: int

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.image.width, self.top + self.image.height


class SceneGenerator:
    """Makes scenes on demand: `SceneGenerator(find_assets("assets"), split="train", seed=0).scene(17)`.

    `source` is what `find_assets` or `fetch_assets` returned, or `Shapes()`, or any other SceneSource. train and val
    show seen nouns on training backgrounds (different random streams), test seen nouns on held-out backgrounds,
    heldout held-out nouns on held-out backgrounds; sets is as test, but asks for several objects and absent ones too.
    `size` is the image's side in pixels. `min_objects` and `max_objects` bound the number of objects; a curriculum
    starts with 1 and 1. `distractors` is the share of the scenes with two or more objects that show one noun at least
    twice. Raises VPPError for settings that cannot be met.
    """

    def __init__(
        self,
        source: Assets | SceneSource,
        *,
        split: str,
        seed: int,
        size: int = 448,
        min_objects: int = 3,
        max_objects: int = 6,
        distractors: float = 0.67,
    ) -> None:
        known_name(split, SPLITS, "split")
        if not 1 <= min_objects <= max_objects <= 8:
            raise VPPError(
                f"A scene holds 1 to 8 objects with min_objects <= max_objects, "
                f"but min_objects={min_objects} and max_objects={max_objects}."
            )
        if size < 96:
            raise VPPError(f"size must be at least 96 pixels, not {size}: smaller objects could not be recognised.")
        if size > LARGEST_SIZE:
            raise VPPError(f"size must be at most {LARGEST_SIZE} pixels, not {size}: no model sees so many.")
        if not 0 <= distractors <= 1:
            raise VPPError(f"distractors is a share between 0 and 1, not {distractors}.")
        self.source: SceneSource = PhotoCutouts(source) if isinstance(source, Assets) else source
        self.split = split
        self.seed = seed
        self.size = size
        self.min_objects = min_objects
        self.max_objects = max_objects
        self.distractors = distractors
        self._names = self.source.names(heldout=split == "heldout")

    def scene(self, index: int) -> Scene:
        """The scene with this index, any integer from 0. Holds at least one expression."""
        stream = sha256(f"{SCENES_VERSION}/{self.split}/{self.seed}/{index}".encode()).digest()
        rng = Random(int.from_bytes(stream, "big"))
        while True:
            layout = self._arrange(self._choose_cutouts(rng), rng)
            if len(layout) < self.min_objects:
                continue
            image, objects = self._paint(layout, rng)
            expressions = refer(objects, self.size, rng)
            if expressions and self.split == "sets":
                expressions = refer_to_sets(objects, expressions, self._absent(objects, rng), rng)
            if expressions:
                return Scene(f"{self.split}-{self.seed}-{index:06d}", image, self.size, self.size, objects, expressions)

    def _absent(self, objects: tuple[SceneObject, ...], rng: Random) -> list[str]:
        """A noun of which nothing is there, and where there is one, a noun that is there with another attribute."""
        shown = {item.name for item in objects}
        names = [name for name in self._names if not any(name == one or self.source.clash(name, one) for one in shown)]
        absent = [rng.choice(names)] if names else []
        others = [
            f"{cutout.attribute} {name}"
            for name in sorted(shown)
            for cutout in self.source.cutouts(name)
            if cutout.attribute and all(_differs(cutout.attribute, item) for item in objects if item.name == name)
        ]
        return absent + ([rng.choice(others)] if others else [])

    def _choose_cutouts(self, rng: Random) -> list[Cutout]:
        count = rng.randint(self.min_objects, self.max_objects)
        repeats = [1] * count
        if count >= 2 and rng.random() < self.distractors:
            copies = min(count, rng.choice((2, 2, 3)))
            repeats = [copies] + [1] * (count - copies)
            if count - copies >= 3 and rng.random() < 0.3:
                repeats = [copies, 2] + [1] * (count - copies - 2)
        cutouts: list[Cutout] = []
        for copies in repeats:
            name = self._choose_name({cutout.name for cutout in cutouts}, copies, rng)
            images = list(self.source.cutouts(name))
            rng.shuffle(images)
            cutouts += [images[copy % len(images)] for copy in range(copies)]
        rng.shuffle(cutouts)
        return cutouts

    def _choose_name(self, taken: set[str], copies: int, rng: Random) -> str:
        """A noun that is new to the scene; of a source with few nouns, one that is there already."""
        names = [name for name in self._names if copies == 1 or self.source.countable(name)]
        for _ in range(50):
            name = rng.choice(names)
            if not any(name == other or self.source.clash(name, other) for other in taken):
                return name
        return rng.choice([name for name in sorted(taken) if self.source.countable(name)])

    def _arrange(self, cutouts: list[Cutout], rng: Random) -> list[_Placed]:
        """Finds room for the cut-outs one after another; one that finds none is left out."""
        placed: list[_Placed] = []
        for cutout in cutouts:
            for attempt in range(5):
                image = self.source.render(cutout, self._choose_side(cutout, attempt, rng))
                corner = self._find_room(image.size, placed, rng)
                if corner is not None:
                    placed.append(_Placed(cutout, _vary(image, rng), *corner))
                    break
        return placed

    def _choose_side(self, cutout: Cutout, attempt: int, rng: Random) -> int:
        """Longest side in pixels: small, middle and large objects equally often, smaller once room runs out."""
        low, high = rng.choice(((SMALLEST_SIDE, 0.24), (0.22, 0.36), (0.32, LARGEST_SIDE)))
        longest, shortest = max(cutout.width, cutout.height), min(cutout.width, cutout.height)
        long_enough = SMALLEST_ROOT_AREA * self.size * sqrt(longest / shortest)
        side = max(rng.uniform(low, high) * self.size * 0.85**attempt, long_enough)
        return round(max(min(side, MOST_UPSCALING * longest), SMALLEST_SIDE * self.size))

    def _find_room(self, size_wh: tuple[int, int], placed: list[_Placed], rng: Random) -> tuple[int, int] | None:
        width, height = size_wh
        for _ in range(8):
            left, top = rng.randint(1, self.size - width - 1), rng.randint(1, self.size - height - 1)
            box = (left, top, left + width, top + height)
            if all(_covered_share(box, other.box_xyxy) <= MOST_OVERLAP for other in placed):
                return left, top
        return None

    def _paint(self, placed: list[_Placed], rng: Random) -> tuple[Image.Image, tuple[SceneObject, ...]]:
        image = self.source.background(rng, self.split in ("test", "heldout", "sets"), self.size)
        owner = Image.new("L", image.size)  # which object, counted from 1, each pixel shows
        for number, item in enumerate(placed, start=1):
            if rng.random() < 0.6:
                _cast_shadow(image, item)
            image.paste(item.image, (item.left, item.top), item.image)
            visible = item.image.getchannel("A").point(_VISIBLE)
            owner.paste(number, (item.left, item.top), visible)
        objects = []
        for number, item in enumerate(placed, start=1):
            left, top, right, bottom = owner.point(_ONLY[number]).getbbox() or item.box_xyxy
            box = (float(left), float(top), float(right), float(bottom))
            objects.append(SceneObject(item.cutout.name, box, item.cutout.attribute))
        return image, tuple(objects)


def _differs(attribute: str, item: SceneObject) -> bool:
    """Whether an object is surely not so: its own attribute is known and shares no word with this one."""
    return bool(item.attribute) and not set(attribute.split()) & set(f"{item.attribute} {item.name}".split())


def _covered_share(first_xyxy: tuple[int, int, int, int], second_xyxy: tuple[int, int, int, int]) -> float:
    """Intersection over the area of the smaller box."""
    width = min(first_xyxy[2], second_xyxy[2]) - max(first_xyxy[0], second_xyxy[0])
    height = min(first_xyxy[3], second_xyxy[3]) - max(first_xyxy[1], second_xyxy[1])
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (first_xyxy, second_xyxy)]
    return max(width, 0) * max(height, 0) / min(areas)


def _vary(image: Image.Image, rng: Random) -> Image.Image:
    """Mirrors the cut-out in half of the cases and changes its brightness in most."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.7:
        factor = rng.uniform(0.75, 1.15)
        brighter = [min(255, round(value * factor)) for value in range(256)]
        image = image.point(brighter * 3 + list(range(256)))
    return image


def _cast_shadow(image: Image.Image, item: _Placed) -> None:
    """Darkens the background softly below and to the right of the place where the cut-out will lie."""
    width, height = item.image.size
    blur = max(2, max(width, height) // 25)
    margin = 3 * blur
    shadow = Image.new("L", (width + 2 * margin, height + 2 * margin))
    shadow.paste(item.image.getchannel("A").point(_SHADOW), (margin, margin))
    shadow = shadow.filter(ImageFilter.BoxBlur(blur)).filter(ImageFilter.BoxBlur(blur))
    image.paste((0, 0, 0), (item.left - margin + blur, item.top - margin + blur), shadow)
