"""Kind 5: a converted data set that is no longer as it was written is made anew, never read."""

import shutil
from pathlib import Path

import pytest

from tests.faults.damage import DAMAGES, damaged, files_of
from tests.train.runs import samples, write_data
from vpp_plugins.data.dataset import StoredData, open_data


def content(data: StoredData) -> tuple[object, ...]:
    return (
        data.fingerprint(),
        data.has_images,
        data.tally.counts,
        data.tally.examples,
        [data[number].sample for number in range(len(data))],
    )


def check_every_file(tmp_path: Path, seeds: range) -> None:
    source = write_data(tmp_path / "data", samples(8, text_only=[3]))
    expected = content(open_data(source, "neutral", cache=tmp_path / "whole"))
    for path in files_of(tmp_path / "whole"):
        for damage in DAMAGES:
            for seed in seeds:
                damaged(tmp_path / "whole", tmp_path / "copy", path, damage, f"{path.name} {damage.__name__} {seed}")
                assert content(open_data(source, "neutral", cache=tmp_path / "copy")) == expected
                shutil.rmtree(tmp_path / "copy")


def test_damage_to_any_file_gives_the_same_samples(tmp_path: Path) -> None:
    check_every_file(tmp_path, range(2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_much_damage_to_any_file_gives_the_same_samples(tmp_path: Path) -> None:
    check_every_file(tmp_path, range(2, 100))
