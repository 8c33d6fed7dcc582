"""`vpp data`: scenes, convert, build-vpp-sft and formats."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import Run, is_one_sentence
from tests.data.formats import layouts
from tests.data.formats.layouts import lines, refer_folder
from vpp_plugins.cli.data import data
from vpp_plugins.data.formats import FORMATS
from vpp_plugins.pocket import build_pocket

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_convert_says_what_it_wrote_and_what_it_met() -> None:
    refer_folder(Path("refcoco"))
    words = ["convert", "refcoco", "val.jsonl", "--from", "refer", "--to", "eval-jsonl", "--split", "testA"]
    found = RUNNER.invoke(data, words)
    assert found.exit_code == 0, found.output
    assert "2 samples, 2 turns, 2 boxes in val.jsonl" in found.output
    assert "1 x count differs from the published one: testA: 2 sentences, published 5,657" in found.output
    assert [json.loads(line)["sent"] for line in Path("val.jsonl").read_text().splitlines()] == ["white cup", "cup"]


def test_build_compares_the_counts_with_the_published_ones() -> None:
    lines(Path("g.jsonl"), layouts.GENIXER)
    found = RUNNER.invoke(data, ["build-vpp-sft", "out.json", "--genixer", "g.jsonl"])
    assert found.exit_code == 0, found.output
    assert "1 dialogues, published   130,000  differs by -129,999" in found.output
    assert len(json.loads(Path("out.json").read_text())) == 1


def test_formats_lists_all() -> None:
    found = RUNNER.invoke(data, ["formats"])
    assert [line.split()[0] for line in found.output.splitlines()] == list(FORMATS)


class TestScenes:
    def test_writes_identical_bytes_twice(self, vpp: Run) -> None:
        for folder in ("one", "two"):
            code, out, err = vpp("data", "scenes", "--out", folder, "--count", "3", "--size", "128", "--shapes")
            assert (code, err) == (0, "")
            assert f"3 scenes in {folder}" in out

        one, two = (
            {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
            for folder in ("one", "two")
        )
        assert one == two
        assert len(one) == 3 + 2

    def test_another_seed_and_another_split_write_others(self, vpp: Run) -> None:
        options = ["--count", "1", "--size", "128", "--shapes"]
        for number, more in enumerate((["--seed", "1"], ["--seed", "2"], ["--seed", "1", "--split", "test"])):
            assert vpp("data", "scenes", "--out", str(number), *options, *more)[0] == 0

        assert len({next(Path(str(number)).glob("images/*")).read_bytes() for number in range(3)}) == 3

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--out", "photo.png"), "photo.png exists"),
            (("--out", "full"), "full"),
            (("--out", "photo.png/below"), "photo.png"),
            (("--out", "new", "--size", "20"), "size must be at least 96"),
        ],
    )
    def test_bad_input_ends_in_one_sentence(self, vpp: Run, photo: Path, words: Sequence[str], message: str) -> None:
        Path("full").mkdir()
        Path("full/other.txt").touch()

        code, out, err = vpp("data", "scenes", "--shapes", *words)

        assert (code, out) == (1, "")
        assert is_one_sentence(err)
        assert message in err


class TestSplit:
    def test_says_what_it_wrote_and_that_nothing_leaks(self, vpp: Run) -> None:
        rows = [{**layouts.EVALUATION, "image": f"{number}.png", "bbox": [1, 2, 30, 40]} for number in range(10)]
        lines(Path("all.jsonl"), *rows, {**rows[0], "bbox": [1, 2]})
        code, out, err = vpp("data", "split", "all.jsonl", "parts", "--from", "eval-jsonl", "--test", "0.2")
        assert (code, err) == (0, "")
        assert "parts/train.jsonl: 7 samples of 7 images" in out
        assert "parts/val.jsonl: 1 samples of 1 images" in out
        assert "No image is on two sides: the bytes of 0 of 10 were compared, of the others names alone" in out
        assert out.count("1 x box with a wrong count of numbers") == 1

    def test_of_one_image_ends_in_one_sentence(self, vpp: Run) -> None:
        lines(Path("all.jsonl"), layouts.EVALUATION)
        code, out, err = vpp("data", "split", "all.jsonl", "parts", "--from", "eval-jsonl")
        assert (code, out) == (1, "")
        assert is_one_sentence(err)
        assert "needs as many different images, and there are 1" in err


class TestHead:
    def test_shows_the_first_samples(self, vpp: Run) -> None:
        lines(Path("all.jsonl"), *[{**layouts.EVALUATION, "sent": f"cup {number}"} for number in range(9)])
        code, out, err = vpp("data", "head", "all.jsonl", "--from", "eval-jsonl", "-n", "2")
        assert (code, err) == (0, "")
        assert "locate 'cup 1': [64, 96, 320, 384]" in out
        assert "cup 2" not in out

    def test_of_nothing_names_the_command_that_helps(self, vpp: Run) -> None:
        lines(Path("all.jsonl"), {**layouts.EVALUATION, "bbox": []})
        code, out, err = vpp("data", "head", "all.jsonl", "--from", "eval-jsonl")
        assert (code, out) == (1, "")
        assert is_one_sentence(err)
        assert "vpp doctor all.jsonl --format eval-jsonl" in err


class TestChats:
    def test_a_model_answers_the_questions_of_a_file(self, vpp: Run, tmp_path: Path) -> None:
        model, processor = build_pocket(image_size=64, hidden_size=32, layers=1, heads=2, intermediate_size=32)
        for part in (model, processor):
            part.save_pretrained(tmp_path / "host")
        asked = [f"What is cup {number}?" for number in range(30)]
        (tmp_path / "asked.txt").write_text("\n\n".join(asked))

        code, out, err = vpp("data", "chats", "chats.jsonl", "--model", "host", "--questions", "asked.txt")
        assert code == 0, err
        rows = [json.loads(line) for line in Path("chats.jsonl").read_text().splitlines()]
        assert f"{len(rows)} answers in chats.jsonl" in out
        assert {row["turns"][0]["ask"] for row in rows} <= {*asked}

    def test_answers_that_took_minutes_are_not_overwritten(self, vpp: Run) -> None:
        Path("chats.jsonl").write_text("mine")

        assert vpp("data", "chats", "chats.jsonl", "--model", "host")[2].startswith("vpp: 'chats.jsonl' exists: name")
        assert Path("chats.jsonl").read_text() == "mine"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--model", "host", "--count", "801"], "there are 800 questions"),
            (["--model", "host", "--questions", "none.txt"], "'none.txt' cannot be read"),
            (["--model", "no-such-host"], "'no-such-host' could not be loaded"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, vpp: Run, words: Sequence[str], said: str) -> None:
        code, _, err = vpp("data", "chats", "chats.jsonl", *words)
        assert code == 1
        assert said in err
        assert is_one_sentence(err)
        assert not Path("chats.jsonl").exists()
