import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpp_plugins.errors import TESTED, warn_untested


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages that is looked into first."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    warn_untested.cache_clear()
    yield tmp_path
    warn_untested.cache_clear()


def install(site: Path, name: str, release: str) -> None:
    folder = site / f"{name}-{release}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


def test_what_is_newer_than_tested_is_named_once(site: Path) -> None:
    for name, release in TESTED.items():
        install(site, name, {"transformers": "5.40.0rc1", "torch": "3.0.0+cu140"}.get(name, release))

    with pytest.warns(UserWarning, match="newer") as said:
        warn_untested(stacklevel=2)
    warn_untested(stacklevel=2)

    assert [str(one.message) for one in said] == [
        f"torch 3.0.0+cu140 is newer than {TESTED['torch']} and transformers 5.40.0rc1 is newer than "
        f"{TESTED['transformers']}, up to which this version of vpp-plugins is tested: where something breaks, install "
        "that one."
    ]


def test_what_is_tested_is_not_warned_of(site: Path) -> None:
    for name, release in TESTED.items():
        install(site, name, f"{release}.7+cu132")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_untested(stacklevel=2)
