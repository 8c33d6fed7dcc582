import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vpp_plugins.evaluate.demo
import vpp_plugins.ground
import vpp_plugins.pocket
from tests.test_demo import Stub
from tests.tiny import attached, image
from vpp_plugins import VPPError
from vpp_plugins.cli import main
from vpp_plugins.prompts.generators.heads import DetectionHeads

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vpp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in an empty folder; returns its exit code, what it printed, and what it complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vpp", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def pocket(monkeypatch: pytest.MonkeyPatch, toy: None) -> list[bool]:
    """In the pocket model's place a toy that always gives one answer; returns which of the twins were loaded."""
    loaded: list[bool] = []

    def load(*, vpp: bool) -> tuple[Any, Any]:
        loaded.append(vpp)
        model, processor = attached()
        processor.batch_decode = lambda ids, **_: ["[0.1, 0.2, 0.3, 0.4]" for _ in ids]
        return model, processor

    monkeypatch.setattr(vpp_plugins.pocket, "load_pocket", load)
    heads = DetectionHeads(attached()[0].vpp.local_vpp.generator.width, 1), ["cup"]
    monkeypatch.setattr(vpp_plugins.pocket, "load_detection_heads", lambda: heads)
    return loaded


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    image(0, (100, 100)).save(path)
    return path


def is_one_sentence(complaint: str) -> bool:
    return complaint.startswith("vpp: ") and complaint.count("\n") == 1 and complaint.endswith(("\n",))


class TestGround:
    def test_prints_the_boxes_as_json_and_draws_them(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        code, out, err = vpp("ground", "--image", photo, "--expr", "the cup", "--out", "boxed.png")

        assert (code, err) == (0, "")
        assert json.loads(out) == {
            "image": str(photo),
            "width": 100,
            "height": 100,
            "expression": "the cup",
            "boxes": [[10, 20, 30, 40]],
            "status": "ok",
            "text": "[0.1, 0.2, 0.3, 0.4]",
        }
        with Image.open("boxed.png") as boxed, Image.open(photo) as before:
            assert boxed.size == (100, 100)
            assert boxed.tobytes() != before.tobytes()
        assert pocket == [True]

    def test_can_ask_the_twin(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        assert vpp("ground", "--image", photo, "--expr", "cup", "--without-vpp")[0] == 0
        assert pocket == [False]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--image", "missing.jpg"), "'missing.jpg' does not exist"),
            (("--image", "."), "'.' is a folder"),
            (("--image", "text.jpg"), "is not an image"),
            (("--image", "empty.jpg"), "is empty"),
            (("--image", "short.png"), "damaged or truncated"),
            (("--image", "tiny.png"), "is 1 x 1 pixels"),
            (("--image", "photo.png", "--out", "boxed"), "name it .png or .jpg"),
            (("--image", "photo.png", "--out", "boxed.psd"), "name it .png or .jpg"),
            (("--image", "photo.png", "--out", "no/where/boxed.png"), "'no/where' does not exist"),
            (("--image", "photo.png", "--out", "folder.png"), "'folder.png' is a folder"),
        ],
    )
    def test_bad_input_ends_in_one_sentence_before_any_model_is_loaded(
        self, vpp: Run, pocket: list[bool], photo: Path, words: Sequence[str], message: str
    ) -> None:
        Path("text.jpg").write_text("no image")
        Path("empty.jpg").touch()
        Path("short.png").write_bytes(photo.read_bytes()[:500])
        Image.new("L", (1, 1)).save("tiny.png")
        Path("folder.png").mkdir()

        code, out, err = vpp("ground", *words, "--expr", "the cup")

        assert (code, out) == (1, "")
        assert is_one_sentence(err)
        assert message in err
        assert pocket == []

    def test_a_place_that_may_not_be_written_is_refused(
        self, vpp: Run, pocket: list[bool], photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # root would be let through

        code, _, err = vpp("ground", "--image", photo, "--expr", "cup", "--out", "boxed.png")

        assert code == 1
        assert is_one_sentence(err)
        assert "'boxed.png' may not be written" in err

    def test_an_empty_expression_is_refused(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        code, _, err = vpp("ground", "--image", photo, "--expr", " ")

        assert code == 1
        assert is_one_sentence(err)
        assert "the expression is empty" in err

    def test_a_full_disk_ends_in_one_sentence(
        self, vpp: Run, pocket: list[bool], photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device", "boxed.png")

        monkeypatch.setattr(Image.Image, "save", full)

        code, _, err = vpp("ground", "--image", photo, "--expr", "cup", "--out", "boxed.png")

        assert (code, err) == (1, "vpp: No space left on device: boxed.png\n")


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


class TestDemo:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_network(folder: Path, *, progress: Any) -> None:
            raise VPPError("There is no [network].")

        monkeypatch.setattr(vpp_plugins.evaluate.demo, "PHOTOS", 2)
        monkeypatch.setattr(vpp_plugins.evaluate.demo, "SCENES", 1)
        monkeypatch.setattr(vpp_plugins.evaluate.demo, "fetch_assets", no_network)
        monkeypatch.setattr(vpp_plugins.ground, "Grounder", lambda model, processor: Stub())

    def test_prints_a_table_and_writes_a_page(self, vpp: Run, pocket: list[bool]) -> None:
        code, out, err = vpp("demo", "--out", "a[b]/page")

        assert (code, err) == (0, "")
        assert "There is no [network]. The demo goes on with these." in out.replace("\n", " ")
        assert "VPP: Acc@0.5 = 1.000" in out
        assert "without VPP: Acc@0.5 = 1.000" in out.replace("\n", " ")
        assert out.endswith("The images: a[b]/page/index.html\n")
        assert Path("a[b]/page/index.html").is_file()
        assert pocket == [True, False]

    def test_a_place_that_is_no_folder_is_refused_before_any_model_is_loaded(
        self, vpp: Run, pocket: list[bool], photo: Path
    ) -> None:
        for out in ("photo.png", "photo.png/below"):
            code, _, err = vpp("demo", "--out", out)
            assert code == 1
            assert is_one_sentence(err)
            assert out in err
        assert pocket == []


class TestConvert:
    """What is written, and every kind of bad checkpoint, is tested with the converter itself."""

    @pytest.mark.parametrize(("option", "dtype"), [((), torch.float16), (("--dtype", "float32"), torch.float32)])
    def test_writes_a_folder_that_loads(
        self, vpp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        from tests.reference import FOLDER, resnet
        from vpp_adapters.vpp_llava import config as vpp_llava_config

        monkeypatch.setitem(vpp_llava_config.RESNETS, (resnet.STEM, resnet.DEPTHS), resnet.NAME)

        code, out, _ = vpp("convert", FOLDER / "checkpoint", tmp_path / "new", *option)

        assert code == 0
        assert f"written to {tmp_path / 'new'}" in out
        assert load_file(tmp_path / "new" / "vpp.safetensors")["global_prompt.prompt"].dtype == dtype

    def test_what_no_plugin_knows(self, vpp: Run, tmp_path: Path) -> None:
        for source in (tmp_path, tmp_path / "missing"):
            code, out, err = vpp("convert", source, tmp_path / "new")

            assert (code, out) == (1, "")
            assert is_one_sentence(err)
            assert not (tmp_path / "new").exists()


def test_plugins_lists_the_adapters_and_their_modules(vpp: Run) -> None:
    code, out, err = vpp("plugins")

    assert (code, err) == (0, "")
    assert "llava\tvpp_adapters.llava" in out.splitlines()
    assert out.splitlines() == sorted(out.splitlines())


@pytest.mark.parametrize(
    "command", [(), ("ground",), ("demo",), ("plugins",), ("convert",), ("data",), ("data", "scenes")]
)
def test_every_command_explains_itself(vpp: Run, command: Sequence[str]) -> None:
    code, out, _ = vpp(*command, "--help")

    assert code == 0
    assert "Usage: vpp" in out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("grond",),
        ("ground",),
        ("ground", "--expr", "cup"),
        ("data", "scenes", "--shapes"),
        ("data", "scenes", "--out", "new", "--split", "tset"),
        ("data", "scenes", "--out", "new", "--count", "0"),
        ("data", "scenes", "--out", "new", "--count", "three"),
    ],
)
def test_wrong_words_are_explained_with_exit_code_2(vpp: Run, words: Sequence[str]) -> None:
    code, out, err = vpp(*words)

    assert code == 2
    assert "Usage: vpp" in out + err
    assert "Traceback" not in out + err


def test_in_a_process_of_its_own_there_is_no_traceback(tmp_path: Path) -> None:
    words = ["-c", "from vpp_plugins.cli import main; main()", "ground", "--image", "missing.jpg", "--expr", "cup"]

    finished = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert finished.returncode == 1
    assert finished.stderr == "vpp: 'missing.jpg' does not exist: give the path of an image.\n"


def test_without_typer_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; import vpp_plugins.cli"

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert finished.stderr == "The command line needs typer: pip install 'vpp-plugins[demo]'.\n"
