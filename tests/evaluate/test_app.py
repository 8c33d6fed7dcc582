import importlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.evaluate.test_attention import asker
from tests.tiny import image, tiny_llava, tiny_processor
from vpp_plugins import Grounder, VPPError
from vpp_plugins.evaluate import app
from vpp_plugins.evaluate.app import SideBySide, answer_app, export_app, serve_app
from vpp_plugins.report import COLOURS

pytestmark = pytest.mark.usefixtures("toy")
BOX = "[0.1, 0.2, 0.3, 0.4]"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    image(0, (100, 80)).save(path)
    return path


@pytest.fixture
def gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its version is asked for."""
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="6.1.2"))


def bare() -> Grounder:
    return Grounder(tiny_llava(), tiny_processor(), max_new_tokens=3)


class TestSides:
    def test_the_twin_answers_beside_the_model(self) -> None:
        answers = SideBySide(asker(), bare()).ask(image(0), "cup")
        assert list(answers) == ["with VPP", "its twin, trained without VPP"]

    def test_without_a_twin_the_same_weights_answer_with_their_prompts_off(self) -> None:
        grounder, seen = asker(), []
        grounder.model.vpp.register_forward_hook(lambda *_: seen.append("prompts"))

        answers = SideBySide(grounder).ask(image(0), "cup")

        assert list(answers) == ["with VPP", "the same weights, prompts off"]
        assert len(seen) == 1

    def test_a_model_without_prompts_gives_one_answer(self) -> None:
        assert list(SideBySide(bare()).ask(image(0), "cup")) == ["the model, no prompts attached"]


class TestAnswer:
    def test_both_boxes_are_drawn_and_both_answers_stand_in_the_table(self, photo: Path) -> None:
        arms = asker(), bare()
        for arm, text in zip(arms, (BOX, "[0.5, 0.5, 0.9, 0.9]"), strict=True):
            arm._decode = lambda ids, text=text: [text]  # type: ignore[method-assign, misc]

        shown = answer_app(SideBySide(*arms), photo, "cup", inside=False)

        colours = {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in shown.drawn.get_flattened_data()}
        assert set(COLOURS[:2]) <= colours
        assert shown.words == [
            f"- **with VPP**: 10 10 30 30 (ok), from `{BOX}`",
            "- **its twin, trained without VPP**: 50 40 90 80 (ok), from `[0.5, 0.5, 0.9, 0.9]`",
        ]
        assert shown.inside == []

    def test_shows_what_queries_and_axes_see(self, photo: Path) -> None:
        captions = [caption for _, caption in answer_app(SideBySide(asker()), photo, "cup", inside=True).inside]
        assert [caption.partition(" ")[0] for caption in captions] == ["Where", "Attention", "The"]
        assert answer_app(SideBySide(bare()), photo, "cup", inside=True).inside == []

    @pytest.mark.parametrize(
        ("source", "expression", "sentence"),
        [
            (None, "cup", "there is no image yet"),
            ("photo.png", " ", "the expression is empty"),
            ("notes.png", "cup", "the image is not an image that can be read"),
            ("large.png", "cup", "has 12000 x 12000 pixels, and at most 64,000,000 are decoded: resize it first"),
        ],
    )
    def test_bad_input_is_one_sentence(self, photo: Path, source: str | None, expression: str, sentence: str) -> None:
        (photo.parent / "notes.png").write_text("no image")
        if source == "large.png":
            Image.new("1", (12_000, 12_000)).save(photo.parent / source)

        with pytest.raises(VPPError, match=sentence):
            answer_app(SideBySide(bare()), source and photo.parent / source, expression, inside=False)

    def test_a_large_image_is_shown_small(self, tmp_path: Path) -> None:
        Image.new("RGB", (12_000, 60)).save(tmp_path / "wide.png")
        assert answer_app(SideBySide(bare()), tmp_path / "wide.png", "cup", inside=False).drawn.width == app.SIDE


class TestServe:
    def test_a_port_in_use_is_named_before_anything_is_loaded(self, gradio: None, monkeypatch: Any) -> None:
        monkeypatch.setattr(app, "load_grounder", lambda *_, **__: pytest.fail("loaded"))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(VPPError, match=f"port {port} of 127.0.0.1 cannot be had .*name another by --port"):
                serve_app(port=port)

    def test_a_folder_that_is_no_model_is_refused(self, gradio: None, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="could not be loaded as an image-text-to-text model"):
            serve_app(str(tmp_path))


class TestExport:
    def test_the_folder_runs_where_nothing_of_ours_is_installed(self, gradio: None, tmp_path: Path) -> None:
        """Its copy of the library finds its adapters by its own entry points."""
        folder = export_app(tmp_path / "app")

        assert (folder / "app.py").read_text().splitlines()[-1] == "serve_app('pocket', vpp=None)"
        assert (folder / "README.md").read_text().startswith("---\ntitle: ")
        assert "sdk: gradio\nsdk_version: 6.1.2\napp_file: app.py\n" in (folder / "README.md").read_text()
        required = (folder / "requirements.txt").read_text().splitlines()
        assert {re.split("[<>=]", line)[0] for line in required} > {"torch", "transformers", "timm", "pluggy"}
        assert not [line for line in required if "vpp" in line or ";" in line]
        code = (
            "import importlib.metadata as m, vpp_plugins; print(vpp_plugins.__file__);"
            "print(m.distribution('vpp-plugins').locate_file(''), len(m.distribution('vpp-plugins').entry_points))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(folder)}
        )
        package, place, entries = said.stdout.split()
        assert Path(package).is_relative_to(folder), said.stderr
        assert Path(place) == folder
        assert int(entries) > 7

    def test_folders_are_copied_in_and_hub_ids_are_not(self, gradio: None, tmp_path: Path) -> None:
        for name, file in (("mine", "config.json"), ("prompts", "vpp_config.json")):
            (tmp_path / name).mkdir()
            (tmp_path / name / file).write_text("{}")

        folder = export_app(tmp_path / "a", str(tmp_path / "mine"), vpp=str(tmp_path / "prompts"))
        assert "serve_app('model', vpp='vpp')" in (folder / "app.py").read_text()
        assert (folder / "model/config.json").is_file()
        assert (folder / "vpp/vpp_config.json").is_file()
        assert "serve_app('some/model', vpp=None)" in (export_app(tmp_path / "b", "some/model") / "app.py").read_text()

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("there",), "is there already: name a new folder"),
            (("app", "there"), "is a folder without a model's config.json"),
            (("app", "pocket", "there"), "holds no vpp_config.json"),
        ],
    )
    def test_what_cannot_be_exported(
        self, gradio: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("there").mkdir()

        with pytest.raises(VPPError, match=sentence):
            export_app(*words[:2], vpp=words[2] if len(words) > 2 else None)
        assert not Path("app").exists()


@pytest.mark.slow
class TestInTheBrowser:
    """Needs what constraints.txt has not: Chromium, and `pip install -e '.[app]' playwright`."""

    @pytest.fixture
    def address(self) -> Iterator[str]:
        pytest.importorskip("gradio", reason="gradio is not installed: the extra 'app'")
        built = app.build_app(app.load_side_by_side())
        _, address, _ = built.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(app.FOLDER)])
        yield address
        built.close()

    @pytest.fixture
    def page(self) -> Iterator[Any]:
        pytest.importorskip("playwright", reason="playwright is not installed")
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium is None:
            pytest.skip("there is no Chromium on this machine")
        with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            yield browser.new_page(viewport={"width": 1280, "height": 1500})
            browser.close()

    @pytest.mark.timeout(600)
    @pytest.mark.filterwarnings("ignore")  # gradio's and its server's own
    def test_upload_ask_both_boxes_and_errors(self, address: str, page: Any, tmp_path: Path) -> None:
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("there is no image yet").wait_for()

        page.locator("input[type=file]").first.set_input_files(app.FOLDER / "farm_animals_dog.jpg")
        page.get_by_alt_text("").first.wait_for()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("the expression is empty").wait_for()

        page.get_by_label("Expression").fill("the dog")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("its twin, trained without VPP").wait_for()
        page.get_by_text("Where the queries look").first.wait_for()
        page.screenshot(path=tmp_path / "answer.png")
        with Image.open(tmp_path / "answer.png") as shown:
            colours = set(shown.convert("RGB").get_flattened_data())
        for colour in COLOURS[:2]:
            target = tuple(bytes.fromhex(colour[1:]))
            assert any(max(abs(a - b) for a, b in zip(one, target, strict=True)) < 12 for one in colours), colour

        (tmp_path / "notes.png").write_text("no image")
        page.get_by_label("Remove Image").first.click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.png")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("the image is not an image that can be read").wait_for()
