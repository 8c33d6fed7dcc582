import html.parser
from pathlib import Path

from PIL import Image

from tests.evaluate.conftest import Stub, make_rows, truthful
from vpp_plugins.evaluate.compare import compare, write_comparison
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import Evaluation, load_evaluation, write_report
from vpp_plugins.evaluate.rows import Row
from vpp_plugins.evaluate.run import evaluate


class Page(html.parser.HTMLParser):
    """What a page shows and what it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        sources = [value or "" for name, value in attrs if name in ("src", "href")]
        self.images += [source for source in sources if source.startswith("data:image/jpeg;base64,")]
        self.outside += [source for source in sources if not source.startswith("data:")]

    def handle_data(self, data: str) -> None:
        self.text += data


def measured(folder: Path, rows: list[Row], wrong: str = "") -> Evaluation:
    def say(question: str, image: Image.Image) -> str:
        return wrong or truthful(rows)(question, image)

    about = {"model": "a <stub>", "data": "toy rows"}
    evaluate(Stub(say), rows, protocol("default"), folder, about=about)
    return load_evaluation(folder)


def test_the_page_stands_alone(rows: list[Row], tmp_path: Path) -> None:
    page = Page(write_report(measured(tmp_path / "out", rows), tmp_path / "report.html", rows))

    assert page.outside == []
    assert len(page.images) == 10
    for word in ("a <stub> on toy rows", "Acc@0.75", "By category", "protocol sha256", "thing 3", "no box that"):
        assert word in page.text


def test_the_worst_answers_are_shown_even_where_they_are_no_boxes(rows: list[Row], tmp_path: Path) -> None:
    evaluation = measured(tmp_path / "out", rows, wrong="[0.9, 0.9, 0.1, 0.1] <script>")
    page = Page(write_report(evaluation, tmp_path / "report.html", rows))

    assert "<script>" in page.text
    assert len(page.images) == 10


def test_an_interval_that_is_not_the_bootstrap_s_says_so(rows: list[Row], tmp_path: Path) -> None:
    page = Page(write_report(measured(tmp_path / "out", rows, wrong="nothing"), tmp_path / "report.html", rows))

    assert "0.0 to 43.4 (Wilson)" in page.text  # 0 of 5 images
    assert "0.0 to 0.0 (" not in page.text


def test_without_images_it_says_so(rows: list[Row], tmp_path: Path) -> None:
    page = Page(write_report(measured(tmp_path / "out", rows), tmp_path / "report.html"))

    assert page.images == []
    assert "The image is not at hand." in page.text


def test_a_box_far_beyond_the_image_is_drawn_at_its_edge(rows: list[Row], tmp_path: Path) -> None:
    evaluate(Stub(lambda question, image: "[1e300, 1e300, 1e301, 1e302]"), rows, protocol("lmms-eval"), tmp_path / "a")
    evaluate(Stub(lambda q, p: "[[1e30, 1e30, 1e30, 1e30]]", "internvl"), rows, protocol("internvl"), tmp_path / "b")
    for name in "ab":
        page = Page(write_report(load_evaluation(tmp_path / name), tmp_path / "report.html", rows))

        assert len(page.images) == 10


def test_two_side_by_side(tmp_path: Path) -> None:
    rows = make_rows(12)
    a, b = measured(tmp_path / "a", rows), measured(tmp_path / "b", rows, wrong="[0.0, 0.0, 0.1, 0.1]")
    page = Page(write_comparison(compare(a, b), tmp_path / "compare.html", rows))

    assert page.outside == []
    assert len(page.images) == 12
    assert "Only A is right in 12 rows, only B in 0" in page.text


def test_the_same_evaluation_gives_the_same_bytes(rows: list[Row], tmp_path: Path) -> None:
    evaluation = measured(tmp_path / "out", rows)
    first = write_report(evaluation, tmp_path / "one.html", rows).read_bytes()

    assert write_report(evaluation, tmp_path / "two.html", rows).read_bytes() == first
