import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpp_plugins.errors import TESTED, install_command, warn_untested


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


WHEEL = "file:///tmp/vpp_plugins-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///a%20clone", "dir_info": {"editable": True}}, "pip install -e '/a clone[train]'"),
        ({"url": "file:///clone", "dir_info": {}}, "pip install 'vpp-plugins[train] @ file:///clone'"),
        ({"url": WHEEL, "archive_info": {}}, f"pip install 'vpp-plugins[train] @ {WHEEL}'"),
        (
            {"url": "https://host/vpp", "vcs_info": {"vcs": "git", "commit_id": "e83c516"}},
            "pip install 'vpp-plugins[train] @ git+https://host/vpp@e83c516'",
        ),
        (None, "pip install 'vpp-plugins[train]'"),
        (
            {"url": "file:///it's/clone", "dir_info": {"editable": True}},
            """pip install -e '/it'"'"'s/clone[train]'""",
        ),
    ],
    ids=["editable clone", "clone", "wheel", "git", "index", "quote in the path"],
)
def test_an_extra_comes_from_where_the_library_came(site: Path, origin: dict[str, object] | None, command: str) -> None:
    """`pip install 'vpp-plugins[train]'` was said to all, and no index has the library."""
    install(site, "vpp_plugins", "0.1.0")
    if origin is not None:
        (site / "vpp_plugins-0.1.0.dist-info/direct_url.json").write_text(json.dumps(origin))

    assert install_command("train") == command


def test_a_clone_that_was_never_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: iter(()))
    assert install_command("train") == f"pip install -e '{Path(__file__).parents[1]}[train]'"
