import errno
import fcntl
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vpp_plugins import VPPError, files

HOLDING = """
import sys, time
from pathlib import Path
from vpp_plugins.files import only_one
with only_one(Path(sys.argv[1]), "evaluation", advice="give another folder"):
    print("held", flush=True)
    time.sleep(60)
"""


only_one = partial(files.only_one, what="evaluation", advice="give another folder")


def test_a_folder_is_held_until_the_block_ends(tmp_path: Path) -> None:
    for _ in range(2):
        with only_one(tmp_path / "new" / "folder"):
            assert (tmp_path / "new" / "folder").is_dir()
            with (
                pytest.raises(VPPError, match=r"another evaluation is writing '.*folder': wait"),
                only_one(tmp_path / "new" / "folder"),
            ):
                pass


def test_another_folder_is_free(tmp_path: Path) -> None:
    with only_one(tmp_path / "a"), only_one(tmp_path / "b"):
        pass


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(VPPError, match="another evaluation is writing"), only_one(tmp_path):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()

    with only_one(tmp_path):
        pass


def test_a_file_system_without_locks_is_said_once_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.warns(UserWarning, match=r"has no locks \(.*\): start no second evaluation in it"), only_one(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(VPPError, match="cannot be written"), only_one(tmp_path / "out"):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(VPPError, match=r"the folder '.*out' cannot be written .*: give"), only_one(tmp_path / "out"):
        pass
