"""Photographic cut-outs and backgrounds as a source of scenes: nouns, their split, and small decoded copies."""

from collections.abc import Sequence
from hashlib import sha256
from random import Random

from PIL import Image

from vpp_plugins.data.scenes.assets import Assets, CutoutRecord, list_backgrounds, list_cutouts
from vpp_plugins.data.scenes.source import Cutout

HELD_OUT_NAMES = 50
HELD_OUT_BACKGROUNDS = 8
_BACKGROUND_SIDE = 640  # backgrounds are kept with this shorter side, pixels
_CUTOUT_SIDE = 512  # the largest copy of a cut-out that is kept, pixels

# Planets are proper names ("the second jupiter"); trees stand in the backgrounds.
_LEFT_OUT = frozenset({"jupiter", "mars", "neptune", "pluto", "saturn", "uranus", "venus", "oak tree"})
_UNCOUNTABLE = frozenset({"binoculars", "cherries", "fire", "grapes", "lavender plant", "pliers", "thyme plant"})
# Names that a person may give to each other's image: never in one scene, and on one side of the split.
_FAMILIES = tuple(
    frozenset(family.split(", "))
    for family in (
        "chicken, hen, rooster, turkey, guinea fowl",
        "camel, dromedary",
        "cow, bull, zebu, yak, bison",
        "deer, doe, elk, caribou, antelope",
        "sheep, ram, lamb",
        "goat, mountain goat, antelope",
        "horse, donkey",
        "dog, dingo",
        "rat, mouse",
        "marmot, beaver, capybara, badger, wombat, otter, ferret",
        "pig, wild boar",
        "blackbird, crow, magpie",
        "lark, cuckoo",
        "ostrich, rhea",
        "heron, crane bird",
        "duck, goose, rubber duck",
        "gull, pigeon, pelican",
        "parrot, lorikeet, quetzal",
        "hornet, hoverfly, fly",
        "mantis, grasshopper",
        "lobster, shrimp",
        "dolphin, orca, whale",
        "chimpanzee, gorilla, tamarin monkey",
        "blue fish, striped fish, butterflyfish, clownfish, coral trout, dolphinfish, lionfish, moon wrasse",
        "apricot, mandarin orange, orange, orange slice, lime slice, lemon",
        "mango, apple, pomegranate",
        "potato, yam, ginger root, kiwi",
        "squash, pumpkin",
        "pecan, walnut, almond",
        "football, american football, soccer ball, basketball, cricket ball, tennis ball",
        "mallet, hammer",
        "adjustable wrench, pipe wrench",
        "violin, cello, acoustic guitar, bass guitar, electric guitar",
        "drum, drum kit",
        "marker pen, highlighter pen",
        "teapot, kettle, pitcher",
        "tank, armored vehicle",
        "sailboat, sailing ship",
        "garbage can, compost bin, wheelie bin",
        "post box, mailbox",
        "airplane, fighter jet",
        "space probe, lunar lander",
        "astronaut, firefighter",
        "beetle car, sedan car, sports car, race car",
        "christmas tree, palm tree",
        "lavender plant, thyme plant",
        "abalone, mussel",
        "yellow flower, pink flower, purple flower, violet flower, magenta flower, anemone flower, balsam flower, "
        "gazania flower, hibiscus flower, iris flower, petunia flower, daffodil, marigold, rose",
    )
)


class PhotoCutouts:
    """The SceneSource of photographs. Decoded images are kept in memory: about 120 MB once all have been used."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self._records: dict[str, list[CutoutRecord]] = {}
        for record in list_cutouts():
            if record.name not in _LEFT_OUT:
                self._records.setdefault(record.name, []).append(record)
        held_out = held_out_names(tuple(self._records))
        self._names = {
            side: tuple(sorted(n for n in self._records if (n in held_out) == side)) for side in (False, True)
        }
        self._backgrounds_of = {
            side: tuple(n for n in list_backgrounds() if (n in held_out_backgrounds()) == side)
            for side in (False, True)
        }
        self._copies: dict[str, list[Image.Image]] = {}
        self._backgrounds: dict[str, Image.Image] = {}

    def __reduce__(self) -> tuple[type["PhotoCutouts"], tuple[Assets]]:
        """Travels to another process without its decoded images."""
        return PhotoCutouts, (self.assets,)

    def names(self, heldout: bool) -> tuple[str, ...]:
        """All nouns of one side of the split, sorted."""
        return self._names[heldout]

    def cutouts(self, name: str) -> tuple[Cutout, ...]:
        """The photographs of one noun."""
        return tuple(
            Cutout(name, record.attribute, record.path, *self._shrunk_copies(record.path)[0].size)
            for record in self._records[name]
        )

    def clash(self, first: str, second: str) -> bool:
        """True where one noun could be said of the other's image."""
        return names_clash(first, second)

    def countable(self, name: str) -> bool:
        """False for nouns such as "pliers"."""
        return name not in _UNCOUNTABLE

    def render(self, cutout: Cutout, longest_side: int) -> Image.Image:
        """The cut-out as RGBA, made from the smallest kept copy that is large enough."""
        copies = self._shrunk_copies(cutout.key)
        best = next((copy for copy in reversed(copies) if max(copy.size) >= longest_side), copies[0])
        scale = longest_side / max(best.size)
        size_wh = (max(1, round(best.width * scale)), max(1, round(best.height * scale)))
        return best.resize(size_wh, Image.Resampling.BICUBIC).convert("RGBA")

    def background(self, rng: Random, heldout: bool, size: int) -> Image.Image:
        """A random square crop, 60 to 100 % of the photograph's shorter side, mirrored in half of the cases."""
        photo = self._shrunk_background(rng.choice(self._backgrounds_of[heldout]))
        side = rng.uniform(0.6, 1.0) * min(photo.size)
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def digest(self) -> str:
        """The hash over all images of the assets folder."""
        return self.assets.digest()

    def _shrunk_copies(self, path: str) -> list[Image.Image]:
        """The cut-out cropped to what is visible, largest first, each further copy half as large."""
        if path not in self._copies:
            with Image.open(self.assets.folder / "stamps" / path) as stored:
                image = stored.convert("RGBA")
            image = image.crop(image.getchannel("A").point([0] * 49 + [255] * 207).getbbox())
            # Premultiplied, so that shrinking mixes no colour of invisible pixels into the edge.
            copy = image.convert("RGBa")
            if max(copy.size) > _CUTOUT_SIDE:
                copy.thumbnail((_CUTOUT_SIDE, _CUTOUT_SIDE), Image.Resampling.LANCZOS)
            copies = [copy]
            while max(copies[-1].size) >= 64:
                copies.append(copies[-1].reduce(2))
            self._copies[path] = copies
        return self._copies[path]

    def _shrunk_background(self, name: str) -> Image.Image:
        if name not in self._backgrounds:
            with Image.open(self.assets.folder / "backgrounds" / name) as stored:
                scale = _BACKGROUND_SIDE / min(stored.size)
                size_wh = (round(stored.width * scale), round(stored.height * scale))
                stored.draft("RGB", size_wh)
                photo = stored.convert("RGB")
            if name == "mossy_bark.jpg":  # letterboxed: black bars above and below
                photo = photo.crop((0, photo.height // 10, photo.width, photo.height * 19 // 20))
            self._backgrounds[name] = photo.resize(size_wh, Image.Resampling.LANCZOS) if scale < 1 else photo
        return self._backgrounds[name]


def names_clash(first: str, second: str) -> bool:
    """True within a family, and where the words of one name are among the other's ("orange", "orange slice")."""
    words = set(first.split()), set(second.split())
    within = words[0] <= words[1] or words[1] <= words[0]
    return within or any(first in family and second in family for family in _FAMILIES)


def held_out_names(names: Sequence[str]) -> frozenset[str]:
    """About 50 nouns, fixed by a hash. Nouns that clash stay on one side; larger families stay seen."""
    groups: list[set[str]] = []
    for name in names:
        touching = [group for group in groups if any(names_clash(name, other) for other in group)]
        groups = [group for group in groups if group not in touching] + [{name}.union(*touching)]
    held_out: set[str] = set()
    for group in sorted(groups, key=lambda group: _order(min(group))):
        if len(group) <= 3 and len(held_out) + len(group) <= HELD_OUT_NAMES:
            held_out |= group
    return frozenset(held_out)


def held_out_backgrounds() -> frozenset[str]:
    """The background photographs of the test and heldout splits, fixed by a hash."""
    return frozenset(sorted(list_backgrounds(), key=_order)[:HELD_OUT_BACKGROUNDS])


def _order(text: str) -> str:
    return sha256(f"vpp-scenes/{text}".encode()).hexdigest()
