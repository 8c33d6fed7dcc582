import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import vpp_plugins.evaluate.demo
import vpp_plugins.ground
from tests.cli.conftest import Run, is_one_sentence
from tests.evaluate.test_demo import Stub
from vpp_plugins import VPPError
from vpp_plugins.cli.demo import Progress
from vpp_plugins.evaluate.attention import Attention


def attended(grounder: Any, image: Image.Image, expression: str) -> Attention:
    return Attention(image, torch.ones(4) / 4, torch.zeros(0))


class TestDemo:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_network(folder: Path, *, progress: Any) -> None:
            raise VPPError("There is no [network].")

        monkeypatch.setattr(vpp_plugins.evaluate.demo, "PHOTOS", 2)
        monkeypatch.setattr(vpp_plugins.evaluate.demo, "SCENES", 1)
        monkeypatch.setattr(vpp_plugins.evaluate.demo, "fetch_assets", no_network)
        monkeypatch.setattr(vpp_plugins.ground, "Grounder", lambda model, processor: Stub(model=model))
        monkeypatch.setattr(vpp_plugins.evaluate.demo, "attend", attended)

    def test_prints_as_it_goes_and_writes_a_page(self, vpp: Run, pocket: list[bool]) -> None:
        code, out, err = vpp("demo", "--out", "a[b]/page")

        assert (code, err) == (0, "")
        assert "There is no [network]. The demo goes on with these." in out.replace("\n", " ")
        lines = out.splitlines()
        assert len([line for line in lines if " 1.00 1.00 " in line]) == 3
        assert "Composing scenes" in lines
        (heading,) = (line for line in lines if line.startswith("image "))
        assert " ms  " in lines[lines.index(heading) + 1]
        assert "VPP: Acc@0.5 = 1.000" in out
        assert "without VPP: Acc@0.5 = 1.000" in out.replace("\n", " ")
        assert "0 lies within: these images do not tell the two apart." in out
        assert "all of them: README) what it is asked for is worth " in out
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


class TestProgress:
    def test_elsewhere_than_on_a_terminal_every_tenth_has_a_line_that_comes_at_once(self) -> None:
        page = io.StringIO()

        progress = Progress(Console(file=page))

        seen = [(item, page.getvalue().splitlines()[-1]) for item in progress.track(range(25), "Counting [them]")]

        assert [item for item, _ in seen] == list(range(25))
        assert seen[0][1] == "Counting [them]"
        assert seen[3][1] == "  12 % done"
        assert page.getvalue().splitlines()[-1] == "  100 % done"
        assert len(page.getvalue().splitlines()) == 1 + 10

    def test_on_a_terminal_a_bar_counts_and_lines_stay_above_it(self) -> None:
        page = io.StringIO()
        progress = Progress(Console(file=page, force_terminal=True, width=120))

        for item in progress.track(range(3), "Counting"):
            progress.say(f"line {item}")

        assert "% done" not in page.getvalue()
        assert "Counting" in page.getvalue()
        assert [f"line {item}" in page.getvalue() for item in range(3)] == [True] * 3
