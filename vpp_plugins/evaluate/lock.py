"""One evaluation at a time writes a folder."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpp_plugins.errors import VPPError

LOCK = ".lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for this evaluation; whatever ends the process lets it go.

    One process of a launch holds it for all. The lock is the operating system's, on a hidden file: it also keeps off
    other machines where the file system says so to all of them, as NFS does unless mounted with `nolock`. Where there
    are no locks at all, a warning says that nothing is kept off.

    Raises VPPError where another evaluation holds the folder, and where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise VPPError(f"the folder '{folder}' cannot be written ({error}): give another one.") from None
    with file:
        try:
            import fcntl  # not at the top: Windows has none

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # NFS may give the second
            raise VPPError(
                f"another evaluation is writing '{folder}': wait for its end, or give another folder."
            ) from None
        except (ImportError, OSError) as error:
            warnings.warn(
                f"the folder '{folder}' has no locks ({error}): start no second evaluation in this folder "
                "before this one ends.",
                stacklevel=3,
            )
        yield  # closing the file lets go
