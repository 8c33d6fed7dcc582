import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub, make_rows, truthful
from vpp_plugins import VPPError
from vpp_plugins.evaluate.answers import ANSWERS, Answer, Ledger, read_answers
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.rows import Row
from vpp_plugins.evaluate.run import evaluate, read_run, write_run

DEFAULT = protocol("default")


def files_of(folder: Path) -> list[str]:
    """What a user sees in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_every_row_is_answered_in_its_order(rows: list[Row], tmp_path: Path) -> None:
    stub = Stub(truthful(rows))
    answers = evaluate(stub, rows, DEFAULT, tmp_path / "out", batch_size=4)

    assert [answer.id for answer in answers] == [row.id for row in rows]
    assert stub.batches == [4, 4, 2]
    assert stub.generation == {"max_new_tokens": 128, "num_beams": 1}
    assert read_answers(tmp_path / "out" / ANSWERS) == answers
    assert files_of(tmp_path / "out") == [ANSWERS, "run.json"]


def test_rows_about_one_image_get_the_very_same_object(rows: list[Row], tmp_path: Path) -> None:
    """Whoever is asked can tell by it that an image comes again."""
    rows[0].image.save(tmp_path / "image.png")  # type: ignore[union-attr]
    rows = [replace(row, image=tmp_path / "image.png", size_hw=(20, 40)) for row in rows[:4]]
    seen: list[Image.Image] = []

    def see(question: str, image: Image.Image) -> str:
        seen.append(image)
        return ""

    evaluate(Stub(see), rows, DEFAULT, tmp_path / "out", batch_size=4)

    assert len(seen) == 4
    assert all(image is seen[0] for image in seen)


def test_a_finished_evaluation_asks_nothing_again(rows: list[Row], tmp_path: Path) -> None:
    first = evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "out")
    again = Stub(truthful(rows))

    assert evaluate(again, rows, DEFAULT, tmp_path / "out") == first
    assert again.batches == []


def test_a_stopped_evaluation_asks_only_what_is_left(rows: list[Row], tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    asked = 0

    def until_the_third(question: str, image: Image.Image) -> str:
        nonlocal asked
        asked += 1
        if asked > 5:
            raise StopError
        return truthful(rows)(question, image)

    with pytest.raises(StopError):
        evaluate(Stub(until_the_third), rows, DEFAULT, tmp_path / "out", batch_size=2)
    rest = Stub(truthful(rows))
    evaluate(rest, rows, DEFAULT, tmp_path / "out", batch_size=2)

    assert rest.batches == [2, 2, 2]


def killed_now_and_then(rows: list[Row], out: Path, randomness: random.Random) -> int:
    """Evaluate in processes that are killed at random points, until one ends; returns how many were killed."""

    def slowly(question: str, image: Image.Image) -> str:
        time.sleep(0.004)
        return truthful(rows)(question, image)

    killed = 0
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads; none runs here
            child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process is killed
            evaluate(Stub(slowly), rows, DEFAULT, out, batch_size=3)
            os._exit(0)
        deadline = time.monotonic() + randomness.uniform(0.01, 0.25)
        while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            return killed
        killed += 1


def test_killed_at_any_point_it_ends_with_the_same_answers(tmp_path: Path) -> None:
    rows = make_rows(60)
    evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "whole", batch_size=3)

    assert killed_now_and_then(rows, tmp_path / "killed", random.Random(0)) > 0
    for name in (ANSWERS, "run.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_torn_line_is_asked_again(rows: list[Row], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0)
    answer = Answer.of(rows[0], "text", None)
    ledger.append(0, [answer])
    with ledger.file.open("ab") as file:
        file.write(b'{"batch": 1, "answers": [{"id": "pic')

    assert ledger.read() == {0: [answer]}
    ledger.cut_torn_line()
    ledger.append(1, [answer])
    assert ledger.read() == {0: [answer], 1: [answer]}


@pytest.mark.parametrize("kept", [0, 1], ids=["none", "one of two"])
def test_a_batch_without_all_of_its_answers_is_named_before_anything_is_asked(kept: int, tmp_path: Path) -> None:
    """It ended the evaluation with a traceback, after all had been asked."""
    rows = make_rows(6)
    answers = evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path, batch_size=2)
    (tmp_path / ANSWERS).unlink()
    Ledger(tmp_path, 0).append(1, answers[:kept])
    stub = Stub(truthful(rows))

    with pytest.raises(VPPError, match=r"batch 1 in '.*batches-\*.jsonl' does not hold .*: delete the line"):
        evaluate(stub, rows, DEFAULT, tmp_path, batch_size=2)
    assert stub.batches == []
    Ledger(tmp_path, 0).clear()
    assert evaluate(stub, rows, DEFAULT, tmp_path, batch_size=2) == answers


def test_a_kill_just_before_the_ledger_is_cleared_leaves_nothing_behind(rows: list[Row], tmp_path: Path) -> None:
    evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path)
    Ledger(tmp_path, 3).append(0, [Answer.of(rows[0], "text", None)])
    evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path)

    assert files_of(tmp_path) == [ANSWERS, "run.json"]


def test_half_a_character_in_an_answer_is_written_as_a_question_mark(rows: list[Row], tmp_path: Path) -> None:
    answers = evaluate(Stub(lambda question, image: "\ud83d [0.1, 0.2, 0.3, 0.4]"), rows, DEFAULT, tmp_path)

    assert answers[0].text == "? [0.1, 0.2, 0.3, 0.4]"


def test_a_family_that_writes_alike_may_stand_in(rows: list[Row], tmp_path: Path) -> None:
    """LLaVA with prompts attached writes as VPP-LLaVA does, so that paper's protocol measures it."""
    evaluate(Stub(truthful(rows)), rows, protocol("vpp-llava"), tmp_path)

    assert read_run(tmp_path)["box_format"] == "llava"


class TestBadInput:
    def test_another_evaluation_s_folder(self, rows: list[Row], tmp_path: Path) -> None:
        evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "out", batch_size=2)

        with pytest.raises(VPPError, match="holds another evaluation: its batch_size is 2, and now 3"):
            evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "out", batch_size=3)

    def begun_by_an_older_version(self, rows: list[Row], folder: Path) -> None:
        evaluate(Stub(truthful(rows)), rows, DEFAULT, folder)
        settings = read_run(folder)
        del settings["batches_sha256"]
        write_run(folder, settings)

    def test_a_folder_begun_with_other_batches(self, rows: list[Row], tmp_path: Path) -> None:
        """Its ledger says which batch was answered, by number: other batches would mix the answers up."""
        self.begun_by_an_older_version(rows, tmp_path)
        (tmp_path / ANSWERS).unlink()

        with pytest.raises(VPPError, match="asks the rows in other batches: finish it with that version"):
            evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path)

    def test_a_folder_that_was_finished_with_other_batches_is_as_good(self, rows: list[Row], tmp_path: Path) -> None:
        self.begun_by_an_older_version(rows, tmp_path)
        stub = Stub(truthful(rows))

        assert len(evaluate(stub, rows, DEFAULT, tmp_path)) == len(rows)
        assert stub.batches == []

    def test_a_folder_that_another_evaluation_is_writing(self, rows: list[Row], tmp_path: Path) -> None:
        out = tmp_path / "out"

        def start_another(question: str, image: Image.Image) -> str:
            with pytest.raises(VPPError, match=f"another evaluation is writing '{out}': wait for its end, or give"):
                evaluate(Stub(truthful(rows)), rows, DEFAULT, out)
            return truthful(rows)(question, image)

        answers = evaluate(Stub(start_another), rows, DEFAULT, out)

        assert [answer.text for answer in evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "alone")] == [
            answer.text for answer in answers
        ]

    def test_a_folder_with_other_files(self, rows: list[Row], tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")

        with pytest.raises(VPPError, match="holds other files"):
            evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path)

    def test_no_rows_and_rows_of_one_name(self, rows: list[Row], tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="nothing to evaluate"):
            evaluate(Stub(truthful(rows)), [], DEFAULT, tmp_path / "out")
        with pytest.raises(VPPError, match="'image0/0' comes twice"):
            evaluate(Stub(truthful(rows)), [rows[0], rows[0]], DEFAULT, tmp_path / "out")

    def test_missing_images_are_named_before_anything_is_asked(self, rows: list[Row], tmp_path: Path) -> None:
        stub = Stub(truthful(rows))

        with pytest.raises(VPPError, match=r"1 images are missing: .*lost\.jpg"):
            evaluate(stub, [replace(rows[0], image=tmp_path / "lost.jpg")], DEFAULT, tmp_path / "out")
        assert stub.batches == []

    def test_a_protocol_of_another_family(self, rows: list[Row], tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"but these boxes are written as 'llava'.*\(--box-format qwen-vl\)"):
            evaluate(Stub(truthful(rows)), rows, protocol("qwen-vl"), tmp_path / "out")

    @pytest.mark.parametrize("broken", [b"no image", b""])
    def test_a_image_that_cannot_be_read_is_an_answer_with_an_error(
        self, broken: bytes, rows: list[Row], tmp_path: Path
    ) -> None:
        (tmp_path / "broken.jpg").write_bytes(broken)
        rows[3] = replace(rows[3], image=tmp_path / "broken.jpg")
        answers = evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "out")

        assert [bool(answer.error) for answer in answers] == [number == 3 for number in range(10)]

    def test_a_image_of_another_size_is_an_answer_with_an_error(self, rows: list[Row], tmp_path: Path) -> None:
        rows[3] = replace(rows[3], size_hw=(11, 11))
        answers = evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "out")

        assert "but its data say 11 x 11" in answers[3].error

    def test_a_folder_without_an_evaluation(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"no 'run\.json' in"):
            read_run(tmp_path)

    def test_answers_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / ANSWERS).write_text('{"id": 1}\n')

        with pytest.raises(VPPError, match=r"line 1 of '.*' is no answer"):
            read_answers(tmp_path / ANSWERS)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.evaluate.conftest import Stub, make_rows, truthful
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.run import evaluate
rows = make_rows(20)
evaluate(Stub(truthful(rows)), rows, protocol("default"), Path({out!r}), batch_size=3)
"""


@pytest.mark.slow
def test_two_processes_share_the_batches(tmp_path: Path, free_port: Callable[[], int]) -> None:
    rows = make_rows(20)
    evaluate(Stub(truthful(rows)), rows, DEFAULT, tmp_path / "one", batch_size=3)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2]), out=str(tmp_path / "two")))
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), str(script)]
    finished = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "two" / ANSWERS).read_bytes() == (tmp_path / "one" / ANSWERS).read_bytes()
    assert json.loads((tmp_path / "two" / "run.json").read_text())["rows"] == 20
