import shutil
import stat
from pathlib import Path

import pytest

from vpp_plugins.data.scenes.assets import PACKAGES, Assets, fetch_assets, find_assets, keep_images, list_cutouts
from vpp_plugins.errors import VPPError


@pytest.fixture
def tools(tmp_path: Path, unpacked_packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins for apt-get and dpkg-deb, the only programs found; returns the log of their calls.

    Downloading fails until `apt-get update` has been run, as on a fresh machine.
    """
    folder, log = tmp_path / "bin", tmp_path / "calls.log"
    folder.mkdir()
    log.touch()
    write_program(
        folder / "apt-get",
        f'echo "apt-get $*" >> {log}\n'
        f'if [ "$1" = update ]; then touch {tmp_path}/updated; exit 0; fi\n'
        f'if [ ! -e {tmp_path}/updated ]; then echo "E: Unable to locate package $2" >&2; exit 100; fi\n'
        "touch $2_1.0_all.deb\n",
    )
    write_program(folder / "dpkg-deb", f'echo "dpkg-deb $*" >> {log}\nmkdir -p $3 && cp -r {unpacked_packages}/. $3\n')
    for program in ("sh", "touch", "mkdir", "cp"):
        (folder / program).symlink_to(shutil.which(program) or program)
    monkeypatch.setenv("PATH", str(folder))
    return log


def write_program(path: Path, lines: str) -> None:
    path.write_text(f"#!/bin/sh\n{lines}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_fetching_brings_every_image_and_leaves_nothing_else(tools: Path, tmp_path: Path) -> None:
    sentences: list[str] = []
    target = tmp_path / "here" / "assets"
    assets = fetch_assets(target, progress=sentences.append)
    assert {path.split("/")[0] for path in assets.sha256_by_path} == {"stamps", "backgrounds"}
    assert len(assets.sha256_by_path) == len(list_cutouts()) + 28
    assert sum(sentence.startswith("Downloading") for sentence in sentences) == len(PACKAGES)
    assert [path.name for path in target.parent.iterdir()] == ["assets"]
    calls = tools.read_text().splitlines()
    assert calls.count("apt-get update") == 1, "only because the first download failed"
    fetch_assets(target)
    assert tools.read_text().splitlines() == calls, "a complete folder asks for nothing"


def test_an_interrupted_fetch_keeps_the_packages_it_had(tools: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "dpkg-deb"
    working = program.read_text()
    write_program(program, "echo 'no space left' >&2; exit 2\n")
    with pytest.raises(VPPError, match=r"dpkg-deb.*no space left.*--shapes"):
        fetch_assets(tmp_path / "assets")
    assert not (tmp_path / "assets").exists()
    program.write_text(working)
    fetch_assets(tmp_path / "assets")
    assert tools.read_text().count(f"download {PACKAGES[0]}\n") == 2, "failed once, downloaded once, then used again"


def test_without_a_network_the_error_says_what_still_works(tools: Path, tmp_path: Path) -> None:
    write_program(tmp_path / "bin" / "apt-get", "echo 'E: Temporary failure resolving' >&2; exit 100\n")
    with pytest.raises(VPPError, match=r"Temporary failure resolving.*network.*--shapes.*load_real_photos"):
        fetch_assets(tmp_path / "assets")


def test_without_apt_the_error_says_what_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VPPError, match=r"no apt-get and no dpkg-deb.*--shapes.*load_real_photos"):
        fetch_assets(tmp_path / "assets")


def test_a_folder_with_other_things_is_not_touched(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "thesis.txt").touch()
    with pytest.raises(VPPError, match="holds something else"):
        fetch_assets(tmp_path / "assets")
    assert tools.read_text() == ""


def test_finding_notices_missing_and_changed_images(assets: Assets, tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=r"fetch_assets.*--shapes"):
        find_assets(tmp_path / "nothing")
    copy = tmp_path / "copy"
    shutil.copytree(assets.folder, copy)
    assert find_assets(copy).digest() == assets.digest()
    (copy / "backgrounds" / "cliff.jpg").write_bytes(b"half a pict")
    (copy / "stamps" / list_cutouts()[0].path).unlink()
    with pytest.raises(VPPError, match="2 of 325 scene images are missing or changed"):
        find_assets(copy)


def test_packages_of_another_release_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VPPError, match="another release"):
        keep_images(tmp_path / "empty", tmp_path / "assets")
