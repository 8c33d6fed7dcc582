"""A recipe's mix: several sets in one run, each with its own folder of images."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.families import attached_family
from tests.tiny import image
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.data.sample import Sample, Talk
from vpp_plugins.train.data import load_mixture
from vpp_plugins.train.run import train


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    return write_data(tmp_path / "boxes", samples(8))


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    said = [Sample(f"chat{n}", "0.png", 16, 12, (Talk("where", "red cup"),)) for n in range(3)]
    path = write_data(tmp_path / "chats", said)
    image(9, (16, 12)).save(path.parent / "0.png")
    return path


def mixed(boxes: Path, chats: Path, **entry: Any) -> Any:
    return recipe(boxes, boxes.parent / "out", mix=[{"data": str(chats), **entry}])


def test_shares_are_as_said_and_the_data_itself_comes_once(boxes: Path, chats: Path) -> None:
    data = load_mixture(mixed(boxes, chats, weight=0.5))
    counts = Counter(loaded.sample.id for loaded in data)
    assert len(data) == 12
    assert {counts[f"s{n}"] for n in range(8)} == {1}
    assert sum(counts[f"chat{n}"] for n in range(3)) == 4
    assert [data[index].index for index in range(12)] == list(range(12))


def test_each_sample_has_its_own_sets_image(boxes: Path, chats: Path) -> None:
    """Both folders have a 0.png: names are no one's alone."""
    data = load_mixture(mixed(boxes, chats))
    images = [(loaded.sample.id[0], loaded.image) for loaded in data]
    sizes = {(name, image.size) for name, image in images if image}
    assert sizes == {("s", (40, 24)), ("c", (16, 12))}


def test_the_order_is_always_the_same(boxes: Path, chats: Path) -> None:
    """A resumed run compares fingerprints, and goes on by its step."""
    assert load_mixture(mixed(boxes, chats)).fingerprint() == load_mixture(mixed(boxes, chats)).fingerprint()


def test_a_run_that_goes_through_the_data_in_order_does_so_in_each_set(boxes: Path, chats: Path) -> None:
    """Drawn scenes are easy at first; mixing chats in gave them a random order."""
    of = mixed(boxes, chats)
    data = load_mixture(replace(of, trainer={**of.trainer, "train_sampling_strategy": "sequential"}))
    names = [loaded.sample.id for loaded in data]
    assert [name for name in names if name.startswith("s")] == [f"s{n}" for n in range(8)]
    assert [name for name in names if name.startswith("c")] == [f"chat{n % 3}" for n in range(8)]


def test_a_set_that_is_not_there_may_be_made(boxes: Path) -> None:
    with pytest.raises(VPPError, match=r"there is no .*chats\.jsonl', which an entry of mix names: `vpp data chats`"):
        load_mixture(mixed(boxes, boxes.parent / "chats.jsonl"))


def test_faults_of_all_sets_are_told(boxes: Path, chats: Path) -> None:
    (chats.parent / "0.png").unlink()
    (boxes.parent / "1.png").unlink()
    spoiled = write_data(chats.parent, [Sample("t", "", 0, 0, (Talk("where", "cup"),)), *samples(1)])
    (spoiled.parent / "0.png").unlink()
    data = load_mixture(mixed(boxes, spoiled))
    assert sum(count for _, count, _ in data.tally.rows()) == 3


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"wieght": 2}, r"no key 'wieght'.*Did you mean 'weight'\?"),
        ({"weight": 0}, "a number above 0, but is 0"),
        ({"weight": "much"}, "a number above 0"),
        ({"data": 3}, "names its file"),
    ],
)
def test_faulty_entries_are_refused(boxes: Path, chats: Path, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(VPPError, match=said):
        load_mixture(mixed(boxes, chats, **entry))


@pytest.mark.usefixtures("toy")
def test_a_run_trains_on_it(boxes: Path, chats: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    trained = train(mixed(boxes, chats, weight=1), model=model, processor=processor)
    assert trained.steps == 4
    assert not trained.skipped
