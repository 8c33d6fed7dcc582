import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.data.formats.layouts import EVALUATION, GSEVAL, image, lines
from vpp_plugins import VPPError
from vpp_plugins.data.convert import convert


def test_counts_what_it_wrote(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", EVALUATION, {**EVALUATION, "bbox": [1, 2, 3]})
    done = convert(source, tmp_path / "out.jsonl", source_format="eval-jsonl", target_format="neutral", progress=False)
    assert (done.samples, done.turns, done.boxes) == (1, 1, 1)
    assert done.tally.rows()[0][0] == "box with a wrong count of numbers"


def test_an_existing_target_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", EVALUATION)
    (tmp_path / "out.jsonl").write_text("mine")
    names = {"source_format": "eval-jsonl", "target_format": "odvg", "progress": False}
    with pytest.raises(VPPError, match="exists: name another file"):
        convert(source, tmp_path / "out.jsonl", **names)
    convert(source, tmp_path / "out.jsonl", overwrite=True, **names)
    with pytest.raises(VPPError, match="is read and cannot be written at the same time"):
        convert(source, source, overwrite=True, **names)


def test_a_parent_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """The sentence named a temporary folder in it."""
    (tmp_path / "0.tar").touch()
    with pytest.raises(VPPError, match=r"the folder '.*nowhere' does not exist: make it first"):
        convert(tmp_path / "0.tar", tmp_path / "nowhere/x", source_format="webdataset", target_format="webdataset")


def test_nothing_left_names_the_reasons_and_the_command_that_helps(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", {**EVALUATION, "bbox": [1, 2, 3]})
    said = r"nothing of .* as odvg, so nothing was: 1 x box with a wrong.*vpp doctor .*in.jsonl --format eval-jsonl"
    with pytest.raises(VPPError, match=said):
        convert(source, tmp_path / "out.jsonl", source_format="eval-jsonl", target_format="odvg", progress=False)
    assert not (tmp_path / "out.jsonl").exists()


def test_conversion_and_doctor_load_no_torch() -> None:
    """It alone would take most of the memory that a data set of any size may take."""
    modules = "vpp_plugins.data.convert, vpp_plugins.data.doctor.doctor, vpp_plugins.data.vpp_sft, vpp_plugins.cli"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


def test_a_format_that_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="the format 'scenes' can only be read"):
        convert(tmp_path, tmp_path / "x", source_format="eval-jsonl", target_format="scenes", progress=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_long_work_on_a_terminal(
    *, terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spinner that counted to nothing was left in logs, and on the terminal when the work was done."""
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    source = lines(tmp_path / "in.jsonl", *[EVALUATION] * 1500)
    convert(source, tmp_path / "out.jsonl", source_format="eval-jsonl", target_format="neutral")
    assert ("Converting in.jsonl" in capsys.readouterr().out) == terminal


def test_a_broken_file_leaves_the_old_target_and_keeps_the_sizes_it_found(tmp_path: Path) -> None:
    image(tmp_path / "unlabeled2017" / "000000000008.jpg")
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(GSEVAL) + "\n{broken\n")
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(VPPError, match="line 2, column 2"):
        convert(source, tmp_path / "out.jsonl", source_format="gseval", target_format="neutral", images=tmp_path,
                sizes=tmp_path / "sizes.jsonl", overwrite=True, progress=False)  # fmt: skip
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert not list(tmp_path.glob(".*.part"))
    assert json.loads((tmp_path / "sizes.jsonl").read_text())["width"] == 640


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_leaves_no_half_target(tmp_path: Path, how: signal.Signals) -> None:
    lines(tmp_path / "in.jsonl", *[EVALUATION] * 100_000)  # takes longer than it takes to be killed
    code = textwrap.dedent("""
        import signal
        from vpp_plugins.data.convert import convert
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background come with it ignored
        convert("in.jsonl", "out.jsonl", source_format="eval-jsonl", target_format="neutral", progress=False)
    """)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(".out*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child.pid, how)
    assert child.returncode != 0
    assert not (tmp_path / "out.jsonl").exists()
    if how is signal.SIGINT:
        assert not list(tmp_path.glob(".out*.part"))
