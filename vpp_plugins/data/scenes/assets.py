"""Fetches and finds the images of the scene benchmark: photographic cut-outs and backgrounds from Debian packages.

The images are under the GPL-2, GPL-2+ and CC-BY(-SA). They are downloaded where they are used and never committed;
this file and the list of cut-outs beside it are all that ships.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_folder

DEFAULT_FOLDER = Path("assets")
"""Where assets are kept unless a folder is given; relative to the current folder, ignored by git."""

_WITHOUT = (
    "Scenes of shapes drawn in code (--shapes) and the committed photographs (load_real_photos) work without them."
)
_INDEX = "assets.json"
# Package, folder, photographs that show no thing which an expression could name; the packages' other images do.
_BACKGROUNDS = (
    (
        "tuxpaint-data",
        "usr/share/tuxpaint/templates",
        "burnt_bark, cliff, corn_maze, mossy_bark, mossy_log, mudstone, ocean_splash, ocean_waves, redwoods_above, "
        "rocks, sun_behind_clouds, sun_behind_leaves, trees_above, trees_at_dusk, wool_mill_machine",
    ),
    (
        "mate-backgrounds",
        "usr/share/backgrounds/mate/nature",
        "Aqua, Blinds, Dune, GreenMeadow, RainDrops, Storm, Wood",
    ),
    (
        "lomiri-wallpapers-16.04",
        "usr/share/backgrounds",
        "Bridge_by_Sander_Klootwijk, aitzgorri_by_Aitzol_Berasategi, analogpattern_by_Peter_Nerlich, "
        "life_by_Aitzol_Berasategi, picosdeeuropa_by_Aitzol_Berasategi, sunset_by_Aitzol_Berasategi",
    ),
)
_STAMPS_PACKAGE = "tuxpaint-stamps-default"
_STAMPS_ROOT = "usr/share/tuxpaint/stamps"
PACKAGES = (_STAMPS_PACKAGE, *(package for package, _, _ in _BACKGROUNDS))


@dataclass(frozen=True)
class CutoutRecord:
    """One line of the list of cut-outs: where the PNG lies below `stamps/`, what it shows, what sets it apart."""

    path: str
    name: str
    attribute: str | None


@dataclass(frozen=True)
class Assets:
    """A complete folder of images: `stamps/` (PNG with alpha), `backgrounds/` (JPEG) and their SHA-256 by path."""

    folder: Path
    sha256_by_path: Mapping[str, str]

    def digest(self) -> str:
        """One hash over all images."""
        listing = "\n".join(f"{path} {value}" for path, value in sorted(self.sha256_by_path.items()))
        return sha256(listing.encode()).hexdigest()


def list_cutouts() -> tuple[CutoutRecord, ...]:
    """The photographic stamps of `tuxpaint-stamps-default`, as the committed list names them, sorted by path."""
    listing = json.loads(Path(__file__).with_name("tuxpaint_photo_objects.json").read_text(encoding="utf-8"))
    records = [CutoutRecord(entry["path"], entry["name"], entry["attr"]) for entry in listing]
    return tuple(sorted(records, key=lambda record: record.path))


def list_backgrounds() -> tuple[str, ...]:
    """File names of the background photographs, sorted."""
    return tuple(sorted(f"{name}.jpg" for _, _, names in _BACKGROUNDS for name in names.split(", ")))


def find_assets(folder: str | Path = DEFAULT_FOLDER) -> Assets:
    """Checks that `folder` holds every image and returns it. Raises VPPError that says what is missing."""
    folder = Path(folder).absolute()
    index = folder / _INDEX
    if not index.is_file():
        raise VPPError(f"No scene images in {folder}. Fetch them with fetch_assets({str(folder)!r}). {_WITHOUT}")
    hashes: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
    wanted = wanted_images()
    if damaged := [path for path in wanted if path not in hashes or _hash(folder / path) != hashes[path]]:
        raise VPPError(
            f"{len(damaged)} of {len(wanted)} scene images are missing or changed in {folder}, such as {damaged[0]}. "
            f"Delete the folder and fetch it again. {_WITHOUT}"
        )
    return Assets(folder, hashes)


def fetch_assets(folder: str | Path = DEFAULT_FOLDER, *, progress: Callable[[str], None] | None = None) -> Assets:
    """Downloads the Debian packages with `apt-get download`, unpacks them with `dpkg-deb`, keeps the wanted images.

    Nothing is installed. A complete folder is returned as it is. Packages that an interrupted run brought in stay
    beside the folder and are used again; the folder itself appears only when complete. `progress` gets one sentence
    per step: about 180 MB come in.
    Raises VPPError where the tools or the network are missing.
    """
    folder = Path(folder).absolute()
    tell = progress or (lambda sentence: None)
    if (folder / _INDEX).is_file():
        return find_assets(folder)
    if folder.exists() and any(folder.iterdir()):
        raise VPPError(f"{folder} exists and holds something else. Name an empty or a new folder for the images.")
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise VPPError(
            f"The scene images come from Debian packages, this machine has no {' and no '.join(missing)}. {_WITHOUT}"
        )
    downloads = folder.parent / f".{folder.name}-packages"
    downloads.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as ready, tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unpacked = Path(temporary, "unpacked")
        for package in PACKAGES:
            tell(f"Downloading {package}")
            archive = _download(package, downloads)
            tell(f"Unpacking {package}")
            _run(["dpkg-deb", "-x", str(archive), str(unpacked)], unpacked.parent)
        tell("Keeping the photographic images")
        keep_images(unpacked, ready)
    shutil.rmtree(downloads)
    return find_assets(folder)


def keep_images(unpacked: Path, folder: Path) -> None:
    """Copies the wanted images from unpacked packages to a new `folder` and writes their hashes beside them."""
    hashes = {}
    for path, origin in wanted_images().items():
        source, target = unpacked / origin, folder / path
        if not source.is_file():
            raise VPPError(f"The packages hold no {origin}: another release of them? Expected {', '.join(PACKAGES)}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        hashes[path] = _hash(target)
    (folder / _INDEX).write_text(json.dumps(hashes, indent=1, sort_keys=True), encoding="utf-8")


def _hash(path: Path) -> str | None:
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def wanted_images() -> dict[str, str]:
    """Path in the assets folder to path in the unpacked packages."""
    wanted = {f"stamps/{record.path}": f"{_STAMPS_ROOT}/{record.path}" for record in list_cutouts()}
    for _, origin, names in _BACKGROUNDS:
        wanted |= {f"backgrounds/{name}.jpg": f"{origin}/{name}.jpg" for name in names.split(", ")}
    return wanted


def _download(package: str, downloads: Path) -> Path:
    """The package's archive; a finished one from an earlier run is used again."""
    done = downloads / f"{package}.deb"
    if done.is_file():
        return done
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        try:
            _run(["apt-get", "download", package], Path(temporary))
        except VPPError:
            _run(["apt-get", "update"], Path(temporary))  # a fresh machine has no package lists yet
            _run(["apt-get", "download", package], Path(temporary))
        archives = list(Path(temporary).glob("*.deb"))
        if len(archives) != 1:
            raise VPPError(f"apt-get download {package} left {len(archives)} archives, expected one. {_WITHOUT}")
        archives[0].rename(done)
    return done


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr.strip().splitlines() or ["nothing"])[-1]
        raise VPPError(f"`{' '.join(command)}` failed and said: {said}. Is there a network? {_WITHOUT}")
