"""The pages: what they include, link to and quote exists."""

import html
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

import vpp_plugins
from docs import diagrams, include
from vpp_plugins.boxes import BOX_CODECS, ImageMeta
from vpp_plugins.plugins import hookspecs
from vpp_plugins.testing.check import PROMISES

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
HOOKS = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("vpp_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_heading_and_a_test(hook: str) -> None:
    assert f"\n## `{hook}`\n" in (ROOT / "docs/plugins.md").read_text()
    assert hook in (ROOT / "tests/plugins/test_registry.py").read_text()


@pytest.mark.parametrize("promise", list(PROMISES))
def test_every_promise_of_the_conformance_suite_is_in_its_table(promise: str) -> None:
    table = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/plugins.md").read_text(), re.MULTILINE)
    names = re.findall(r"`([^`…]+)(…?)`", " ".join(table))
    assert any(promise == name or (more and promise.startswith(name)) for name, more in names)


def test_the_navigation_names_every_page_once() -> None:
    named = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in DOCS)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_code_on_a_page_is_that_of_its_file(page: Path) -> None:
    text = page.read_text()
    assert include.brought_up_to_date(text) == text, "run python docs/include.py"
    assert text.count("<!-- from ") == text.count("<!-- end -->") == len(include.INCLUDED.findall(text))


def test_an_included_section_has_the_imports_that_it_needs_and_fits_the_column() -> None:
    page = "<!-- from examples/families/llava.py:load+attach -->\nold\n<!-- end -->\n"
    shown = include.brought_up_to_date(page)
    (code,) = re.findall(r"^```python\n(.*?)^```$", shown, re.MULTILINE | re.DOTALL)
    *imports, code = code.split("\n\n")
    assert imports == [
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "from vpp_plugins import VPPProcessor, attach_vpp",
    ]
    assert code.startswith("# checkpoint")
    assert "tiny_host" not in code
    assert re.search(r"^# LLaVA's defaults: .*, both untrained\nattach_vpp\(model\)$", code, re.MULTILINE)
    assert all(len(line) <= include.WIDTH for line in code.splitlines())
    assert include.brought_up_to_date(shown) == shown
    with pytest.raises(ValueError, match="no section none"):
        include.brought_up_to_date(page.replace("load+attach", "none"))


def test_of_a_table_rows_are_included_by_their_last_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(include, "ROOT", tmp_path)
    table = "Measured.\n\n| Row | Status |\n| --- | --- |\n"
    (tmp_path / "results.md").write_text(f"{table}| a | pass |\n| b | no bar |\n| c | fail |\n\n- a: a note\n")
    page = "<!-- from results.md:pass+fail -->\n<!-- end -->\n"
    assert include.brought_up_to_date(page) == page.replace("<!-- end", f"{table}| a | pass |\n| c | fail |\n<!-- end")


@pytest.mark.parametrize("mark", ["results.md:no bar", "results.md:a-b", "results.md -->\n\n<!-- from results.md:a"])
def test_a_mark_that_cannot_be_read_is_not_passed_over(mark: str) -> None:
    with pytest.raises(ValueError, match="a mark is not written as"):
        include.brought_up_to_date(f"<!-- from {mark} -->\nold\n<!-- end -->\n")


EXAMPLES = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if "load_pocket" in page.read_text() else [])
    for page in DOCS
    if page.parent.name == "api" or page.stem in ("own-detector", "own-model", "read-answers", "serve")
]


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_of_the_reference_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples/toy_adapter")
    # tracing for ONNX counts images by a symbol, and checking a signature would pin it to a number
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", page.stem == "serve")
    names: dict[str, Any] = {}
    for example in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(example, page.name, "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the attached VPP is untrained")
def test_the_first_code_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = re.search(r"^```\w+\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    exec(compile(code[1], "README.md", "exec"), names)
    assert names["grounding"].boxes
    assert (tmp_path / "boxed.png").is_file()
    assert not vpp_plugins.is_attached(names["host"])


def test_every_public_name_stands_in_the_reference() -> None:
    door = (ROOT / "docs/api/index.md").read_text()
    assert [name for name in vpp_plugins.__all__ if f".{name}\n" not in door and f"`{name}`" not in door] == []
    rooms = [room.name for room in (ROOT / "vpp_plugins").iterdir() if (room / "__init__.py").is_file()]
    pages = "".join(page.read_text() for page in DOCS if page.parent.name == "api")
    assert [room for room in rooms if room != "cli" and f"\n::: vpp_plugins.{room}\n" not in pages] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_of_boxes_has_every_family_as_it_writes() -> None:
    meta, page = ImageMeta(size_hw=(480, 640), processed_size_hw=(476, 644)), (ROOT / "docs/boxes.md").read_text()
    for name, codec in BOX_CODECS.items():
        text = "points, not boxes"
        if codec.text is not None:
            text = f"`{codec.encode([(64, 96, 320, 400)], meta, ['cup'])}`"
        if "|" in text:  # what divides a table's cells has no other spelling that sites and code hosts both know
            text = f"<code>{html.escape(text[1:-1], quote=False).replace('|', '&#124;')}</code>"
        assert f"| `{name}` | {codec.frame} | {codec.unit} | {text} |\n" in page


def test_every_image_is_small_and_shown() -> None:
    images = {path.resolve() for path in (ROOT / "docs/images").rglob("*.*")}
    shown = re.compile(r"!\[[^\]]+\]\(([^)#]+)(?:#only-(?:light|dark))?\)")
    on_pages = {(page.parent / name).resolve() for page in PAGES for name in shown.findall(page.read_text())}
    assert images <= on_pages
    assert len(images) >= 20
    assert [path.name for path in images if path.stat().st_size > 150_000] == []


def test_the_drawings_are_those_of_their_numbers(tmp_path: Path) -> None:
    committed = (ROOT / "docs/images/study-light.svg").read_text()
    matplotlib = pytest.importorskip("matplotlib")
    for theme, colours in diagrams.THEMES.items():
        assert diagrams.architecture(colours) == (ROOT / f"docs/images/architecture-{theme}.svg").read_text()
    if f"Matplotlib v{matplotlib.__version__}" not in committed:
        pytest.skip("another matplotlib draws other lines")
    diagrams.draw_ends(json.loads(diagrams.NUMBERS.read_text()), tmp_path / "study.svg", "light")
    assert (tmp_path / "study.svg").read_text() == committed


def test_troubleshooting_headings_are_messages_of_the_library() -> None:
    source = " ".join(re.sub(r'"\s*f?"', "", path.read_text()) for path in (ROOT / "vpp_plugins").rglob("*.py"))
    source = re.sub(r"\{[^{}]*\}", "...", re.sub(r"\s+", " ", source))
    for heading in re.findall(r"^## (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE):
        for part in re.split(r"\.\.\.", heading):
            assert part.strip(" :;.") in source, f"no message holds '{part.strip()}' of the heading '{heading}'"


SEARCH = """<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
addEventListener("load", async () => {
  await wait(1500);
  document.querySelector(".md-search__button").click();
  await wait(500);
  const search = [...document.querySelectorAll("*")].find((one) => one.shadowRoot).shadowRoot;
  const field = search.querySelector("input");
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, "letterbox");
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await wait(1500);
  document.title = search.textContent;
});
</script>"""


@pytest.mark.slow
def test_the_site_is_searched_from_the_disk(tmp_path: Path) -> None:
    """The theme's search runs in a Worker, which browsers do not start for file:// pages: docs/javascripts has one."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium to open the pages with")
    pytest.importorskip("zensical")
    config = (ROOT / "mkdocs.yml").read_text()
    left_out = re.compile(r"^nav:\n.*?(?=^extra_css:)|^  - mkdocstrings:\n.*?(?=^markdown)", re.MULTILINE | re.DOTALL)
    (tmp_path / "mkdocs.yml").write_text(left_out.sub("\n", config))
    for folder in ("javascripts", "stylesheets"):
        shutil.copytree(ROOT / "docs" / folder, tmp_path / "docs" / folder)
    (tmp_path / "docs/index.md").write_text("# Here\n\nNothing.\n")
    (tmp_path / "docs/there.md").write_text("# There\n\nImages are put into a letterbox.\n")
    subprocess.run([sys.executable, "-m", "zensical", "build"], cwd=tmp_path, check=True)
    index = tmp_path / "site/index.html"
    assert not re.findall(r'(?:src|href)="https?://(?!zensical)', index.read_text())
    index.write_text(index.read_text().replace("</body>", f"{SEARCH}</body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", "--dump-dom", index.as_uri()]
    shown = subprocess.run([chromium, *words], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    (title,) = re.findall(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert "1 result" in title
    assert "There" in title
