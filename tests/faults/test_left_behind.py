"""What a killed or failed process leaves: the next one removes it, and nothing of one that lives."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vpp_plugins import VPPError
from vpp_plugins.files import whole_file, whole_folder, write_whole
from vpp_plugins.train.checkpoints import open_run

WRITING = """
import sys, time
from pathlib import Path
from vpp_plugins.files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def parts(folder: Path) -> list[Path]:
    found = list(folder.glob(".*.part"))
    for part in found:
        os.utime(part, (0, 0))  # else it may be one whose writer has not locked it yet
    return found


def test_the_part_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    """Every killed conversion left one for ever."""
    target = tmp_path / "data[1].jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITING, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"

    assert len(parts(tmp_path)) == 1
    write_whole(target, "ours")
    assert len(parts(tmp_path)) == 1

    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    write_whole(target, "ours again")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_parts_of_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / ".other.01234567.part").write_text("half")
    (tmp_path / ".data.part").write_text("somebody's")
    parts(tmp_path)
    write_whole(tmp_path / "data", "whole")
    assert len(parts(tmp_path)) == 2


def test_what_a_killed_run_left_of_checkpoints_is_removed(tmp_path: Path) -> None:
    """The next run may save at other steps, and so never come by that name again."""
    for name in ("checkpoint-7", "final"):
        (tmp_path / f".{name}.part" / name).mkdir(parents=True)
    assert open_run(tmp_path, None) is None
    assert list(tmp_path.iterdir()) == []


class RustError(Exception):
    """As safetensors raises it."""


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RustError("I/O error: No space left on device (os error 28)")],
)
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_full_disk_is_said_in_one_sentence(
    whole: Callable[[Path], AbstractContextManager[object]], error: Exception, tmp_path: Path
) -> None:
    with (
        pytest.raises(VPPError, match="is full, so out was not saved; what was saved before is whole"),
        whole(tmp_path / "out"),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []
