import pickle
import random

import pytest

from vpp_plugins.data.scenes.assets import Assets, list_backgrounds, list_cutouts
from vpp_plugins.data.scenes.cutouts import PhotoCutouts, held_out_backgrounds, held_out_names, names_clash


@pytest.fixture(scope="module")
def photos(assets: Assets) -> PhotoCutouts:
    return PhotoCutouts(assets)


def test_the_split_of_the_nouns_is_fixed(photos: PhotoCutouts) -> None:
    """The numbers of the benchmark hang on it: another split needs another SCENES_VERSION."""
    seen, held_out = photos.names(heldout=False), photos.names(heldout=True)
    assert (len(seen), len(held_out)) == (202, 50)
    assert not set(seen) & set(held_out)
    assert held_out[:6] == ("adhesive bandage", "airplane", "almond", "bear", "broccoli", "camel")
    assert held_out_names(tuple(reversed(seen + held_out))) == set(held_out), "the order of the list must not matter"


def test_nouns_that_clash_stand_on_one_side(photos: PhotoCutouts) -> None:
    for seen in photos.names(heldout=False):
        assert not any(names_clash(seen, held_out) for held_out in photos.names(heldout=True))


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("orange", "orange slice", True),
        ("gnu", "baby gnu", True),
        ("hen", "chicken", True),
        ("kettle", "kettle", True),
        ("tractor wheel", "car wheel", False),
        ("rat", "garlic", False),
    ],
)
def test_clashes_are_mutual(first: str, second: str, clash: bool) -> None:
    assert names_clash(first, second) == names_clash(second, first) == clash


def test_every_noun_of_a_family_is_in_the_list() -> None:
    """A misspelt noun would guard nothing."""
    from vpp_plugins.data.scenes import cutouts

    names = {record.name for record in list_cutouts()}
    mentioned = set().union(*cutouts._FAMILIES, cutouts._LEFT_OUT, cutouts._UNCOUNTABLE)
    assert mentioned <= names


def test_the_split_of_the_backgrounds_is_fixed() -> None:
    assert len(list_backgrounds()) == 28
    assert len(held_out_backgrounds()) == 8
    assert {"ocean_waves.jpg", "Dune.jpg"} < held_out_backgrounds() < set(list_backgrounds())


def test_cutouts_are_cropped_and_have_the_size_asked_for(photos: PhotoCutouts) -> None:
    (kettle,) = photos.cutouts("kettle")
    for longest_side in (20, 64, 150):
        image = photos.render(kettle, longest_side)
        assert image.mode == "RGBA"
        assert max(image.size) == longest_side
        assert image.getchannel("A").point(lambda alpha: 255 * (alpha > 48)).getbbox() == (0, 0, *image.size)


def test_backgrounds_come_from_their_side_of_the_split(photos: PhotoCutouts) -> None:
    """Every stand-in background has a colour of its own."""
    colours = {
        heldout: {photos.background(random.Random(seed), heldout, 100).getpixel((50, 50)) for seed in range(150)}
        for heldout in (False, True)
    }
    assert len(colours[False]) == 20
    assert len(colours[True]) == 8
    assert not colours[False] & colours[True]


def test_decoded_images_do_not_travel_to_other_processes(photos: PhotoCutouts) -> None:
    photos.background(random.Random(0), False, 100)
    assert len(pickle.dumps(photos)) < 100_000
    assert pickle.loads(pickle.dumps(photos)).names(True) == photos.names(True)
