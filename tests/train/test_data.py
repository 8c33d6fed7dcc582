"""Training on data that stay on disk: the same run as from memory, damaged samples counted, processes that share it."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, SequentialSampler

from tests.families import attached_family
from tests.train.runs import SIZE, recipe, samples, write_data, write_shards
from vpp_plugins import VPPError
from vpp_plugins.data import StoredData
from vpp_plugins.data.formats import read_samples
from vpp_plugins.data.sample import Locate, Sample
from vpp_plugins.images import load_image
from vpp_plugins.train.collate import ABOUT
from vpp_plugins.train.data import load_data, load_mixture
from vpp_plugins.train.run import train

MADE = samples(10, text_only=[3, 4])


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", MADE)


@pytest.fixture
def shards(tmp_path: Path, lines: Path) -> Path:
    return write_shards(tmp_path / "shards", MADE, images=lines.parent)


def packed(shards: Path, **changes: Any) -> Any:
    return recipe(shards, shards.parent / "run", data_format="webdataset", **changes)


def test_lines_and_shards_hold_what_the_file_says(lines: Path, shards: Path) -> None:
    listed = list(read_samples(lines, "neutral"))
    digest = hashlib.sha256(b"".join(sample.line() + b"\n" for sample in listed)).hexdigest()
    assert len(list(shards.glob("*.tar"))) > 1
    for made in (recipe(lines, lines.parent / "run"), packed(shards)):
        data = load_data(made)
        assert isinstance(data, StoredData)
        assert [loaded.sample for loaded in data] == listed
        assert data.fingerprint() == digest
        for loaded in data:
            image = load_image(lines.parent / loaded.sample.image) if loaded.sample.image else None
            assert image is loaded.image or (image and loaded.image and image.tobytes() == loaded.image.tobytes())


@pytest.mark.usefixtures("toy")
def test_a_run_on_shards_is_the_run_on_lines(lines: Path, shards: Path) -> None:
    losses = []
    for made in (recipe(lines, lines.parent / "run"), packed(shards, dataloader_num_workers=2)):
        model, processor = attached_family("llava")
        losses.append([row["loss"] for row in train(made, model=model, processor=processor).history if "loss" in row])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.usefixtures("toy")
def test_a_image_that_is_damaged_gives_its_place_to_the_next_sample(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", MADE).parent
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:300])
    shards = write_shards(tmp_path / "shards", MADE, images=folder)
    model, processor = attached_family("llava")
    trained = train(packed(shards, num_train_epochs=1, max_steps=-1), model=model, processor=processor)
    assert sorted(skipped.partition(":")[0] for skipped in trained.skipped) == ["s1", "s5", "s9"]
    assert "damaged or truncated" in trained.skipped[0]


@pytest.mark.usefixtures("toy")
def test_shards_that_change_under_a_run_are_counted(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample that cannot be read gives its place to the next, until there are more than may be lost."""
    first = min(shards.glob("*.tar"))
    real = StoredData.fingerprint

    def changed(data: StoredData) -> str:
        first.write_bytes(b"")
        return real(data)

    monkeypatch.setattr(StoredData, "fingerprint", changed)
    model, processor = attached_family("llava")
    trained = train(packed(shards, num_train_epochs=1, max_steps=-1), model=model, processor=processor)
    assert trained.steps == 5
    assert trained.skipped
    assert all("it was changed after it was converted" in skipped for skipped in trained.skipped)


def test_more_faults_than_allowed_stop_before_the_run(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", samples(4)).parent
    outside = [Sample(f"o{n}", "0.png", *SIZE, (Locate("cup", ((50, 1, 60, 9),)),)) for n in range(3)]
    shards = write_shards(tmp_path / "shards", [*samples(4), *outside], images=folder)
    assert len(load_data(packed(shards))) == 4
    with pytest.raises(VPPError, match=r"more than max_skipped = 2: 3 x box wholly outside"):
        load_data(packed(shards, max_skipped=2))
    with pytest.raises(VPPError, match="hold no sample to train on"):
        load_data(packed(write_shards(tmp_path / "none", outside, images=folder)))


def test_a_recipe_may_name_a_pattern(shards: Path) -> None:
    data = load_data(recipe(shards / "{000000..000001}.tar", shards.parent / "run", data_format="webdataset"))
    assert [loaded.sample.id for loaded in data] == [f"s{n}" for n in range(len(data))]
    assert data[0].image is not None


def test_max_samples_takes_the_first(shards: Path) -> None:
    assert [loaded.sample.id for loaded in load_data(packed(shards, max_samples=3))] == ["s0", "s1", "s2"]


def test_shards_can_be_mixed_with_lines(lines: Path, shards: Path) -> None:
    entry = {"data": str(shards), "data_format": "webdataset", "weight": 0.5}
    data = load_mixture(recipe(lines, lines.parent / "run", mix=[entry]))
    counts = Counter(loaded.sample.id for loaded in data)
    assert len(data) == 15
    assert set(counts.values()) == {1, 2}
    assert all((loaded.image is None) == (not loaded.sample.image) for loaded in data)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_samples_of_their_own(shards: Path, workers: int) -> None:
    data = load_data(packed(shards))
    seen = []
    for process in range(2):
        loader = DataLoader(
            data, 1, sampler=SequentialSampler(data), num_workers=workers, collate_fn=lambda loaded: {ABOUT: loaded}
        )
        shared = prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)
        seen.append([loaded.sample.id for batch in shared for loaded in batch[ABOUT]])
    assert sorted(seen[0] + seen[1]) == sorted(sample.id for sample in MADE)
