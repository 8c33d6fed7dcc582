"""What can happen to files on a disk: each kind of damage, with the file and the place drawn by a seed."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path


def delete(path: Path, others: Sequence[Path], draw: random.Random) -> None:
    path.unlink()


def truncate(path: Path, others: Sequence[Path], draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(max(1, len(content)))])


def flip(path: Path, others: Sequence[Path], draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def swap(path: Path, others: Sequence[Path], draw: random.Random) -> None:
    other = draw.choice([one for one in others if one != path])
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


def duplicate(path: Path, others: Sequence[Path], draw: random.Random) -> None:
    """Put a copy of another file, or of a line of its own, in its place."""
    lines = path.read_bytes().splitlines(keepends=True)
    if path.suffix == ".jsonl" and draw.random() < 0.5:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
        path.write_bytes(b"".join(lines))
    else:
        shutil.copyfile(draw.choice([one for one in others if one != path]), path)


DAMAGES: list[Callable[[Path, Sequence[Path], random.Random], None]] = [delete, truncate, flip, swap, duplicate]


def files_of(folder: Path) -> list[Path]:
    """All files that are not hidden, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def damaged(whole: Path, copy: Path, path: Path, damage: Callable[..., None], seed: str) -> None:
    """Make `copy` a copy of the folder `whole` in which `path`, a file of `whole`, is damaged."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    damage(copy / path.relative_to(whole), files_of(copy), random.Random(seed))


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    held = [{path.relative_to(folder): path.read_bytes() for path in files_of(folder)} for folder in (one, other)]
    return held[0] == held[1]
