import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.text import Text

from tests.evaluate.test_attention import asker
from vpp_plugins import Grounder, Grounding, VPPError
from vpp_plugins.boxes import BoxStatus
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.evaluate import demo, shuffled
from vpp_plugins.evaluate.demo import (
    DemoResult,
    TimedGrounding,
    answer_heading,
    answer_line,
    assets_or_none,
    box_text,
    choose_rows,
    demo_sentences,
    demo_summary,
    run_demo,
    write_demo_page,
)
from vpp_plugins.evaluate.rows import Row

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three photographs and two scenes."""
    monkeypatch.setattr(demo, "PHOTOS", 3)
    monkeypatch.setattr(demo, "SCENES", 2)


def key(row: Row) -> str:
    return row.id.rpartition("/")[0]


class Stub(Grounder):
    """Answers without a model: the truth to every expression that is its image's own, or always the same."""

    def __init__(self, answer: str = "truth", batch_size: int = 4, model: Any = None) -> None:
        self.answer, self.batch_size, self.model = answer, batch_size, model
        self.asked: list[tuple[bytes, str]] = []
        self.truth = {(row.image.tobytes(), row.expression): row.box for row in choose_rows(None)[0]}

    def __call__(self, images: Any, expressions: Any) -> Any:
        assert 0 < len(images) == len(expressions) <= self.batch_size
        self.asked += [(image.tobytes(), text) for image, text in zip(images, expressions, strict=True)]
        return [self._ground(image, text) for image, text in zip(images, expressions, strict=True)]

    def _ground(self, image: Any, expression: Any) -> Any:
        box = self.truth.get((image.tobytes(), expression)) if self.answer == "truth" else None
        status = BoxStatus.UNPARSABLE if box is None else BoxStatus.OK
        boxes = () if box is None else (box,)
        return Grounding(image, expression, boxes, (None,) * len(boxes), (status,), self.answer)


def result(**answers: str) -> DemoResult:
    return run_demo({name: Stub(answer) for name, answer in (answers or {"VPP": "truth"}).items()}, None)


def test_every_expression_is_asked_and_one_of_each_image_shown() -> None:
    rows, shown = choose_rows(None)

    assert len(shown) == 5
    assert len({key(rows[index]) for index in shown}) == 5
    assert shown[0] == 0
    for index in shown:
        assert rows[index].id.endswith("/0"), "the first expression of its image"
    assert {key(row) for row in rows} == {key(rows[index]) for index in shown}
    assert len({row.id for row in rows}) == len(rows) > len(shown)
    assert all(len(row.box) == 4 for row in rows)


def test_the_choice_is_the_same_every_time() -> None:
    first, second = ([(row.id, row.expression, row.box) for row in choose_rows(None)[0]] for _ in range(2))

    assert first == second


def test_a_model_that_knows_scores_1_and_its_control_nearly_nothing() -> None:
    run = result()

    assert run.scores["VPP"].acc_90 == 1
    assert run.scores["VPP"].count == len(run.rows)
    assert run.controls["VPP"].acc_50 < 0.3
    assert all(answer.seconds >= 0 for answer in run.answers["VPP"])


def test_a_model_without_boxes_scores_0_and_every_answer_counts() -> None:
    run = result(twin="no idea")

    assert run.scores["twin"].acc_50 == 0
    assert run.scores["twin"].without_box == len(run.rows)
    assert {answer.iou for answer in run.answers["twin"]} == {0.0}


def test_every_model_is_asked_the_same_and_then_the_shuffled_control() -> None:
    grounders = {"VPP": Stub(batch_size=3), "without VPP": Stub("no idea", batch_size=100)}
    tracked: list[tuple[str, int]] = []

    def track(items: Sequence[Any], what: str) -> Sequence[Any]:
        tracked.append((what, len(items)))
        return items

    run = run_demo(grounders, None, track)

    first, second = (grounder.asked for grounder in grounders.values())
    images = [row.image.tobytes() for row in run.rows]
    expressions = [row.expression for row in run.rows]
    control = shuffled(expressions, [key(row) for row in run.rows])
    assert first == second == list(zip(images * 2, expressions + control, strict=True))
    batches = -(-len(expressions) // 3)
    assert [count for _, count in tracked] == [demo.SCENES, batches, batches]
    assert f"{len(expressions)} expressions in 5 images" in tracked[1][0]


def test_a_line_per_image_comes_as_it_is_answered_and_the_accuracies_at_the_end() -> None:
    grounders = {"VPP": Stub(), "twin": Stub("no idea")}
    asked_by_then: list[int] = []
    lines: list[str] = []

    def show(row: Row, answers: Mapping[str, TimedGrounding]) -> None:
        asked_by_then.append(len(grounders["VPP"].asked))
        lines.append(Text.from_markup(answer_line(row, answers)).plain)

    run = run_demo(grounders, None, show=show)

    assert len(lines) == 5
    assert asked_by_then == [4 * (index // 4 + 1) for index in run.shown[:-1]] + asked_by_then[-1:]
    assert asked_by_then[-1] <= len(run.rows)
    for index, line in zip(run.shown, lines, strict=True):
        assert line.startswith(key(run.rows[index]))
        assert line.endswith(f" ms  {run.rows[index].expression}")
        assert box_text(run.answers["VPP"][index].grounding) in line
        assert " 1.00 0.00 " in line
    assert demo_summary(run)[0].startswith(f"VPP: Acc@0.5 = 1.000 over {len(run.rows)} expressions, ")
    assert demo_summary(run)[0].endswith(f"; with shuffled expressions Acc@0.5 = {run.controls['VPP'].acc_50:.3f}")
    heading = answer_heading(["VPP", "twin"])
    assert heading.index("expression") == lines[0].index(run.rows[0].expression)
    assert heading.index(" IoUs ") == lines[0].index(" 1.00 0.00 ")


@pytest.mark.parametrize(
    ("answers", "meaning"),
    [
        (("truth", "no idea"), "So on these images VPP is better. "),
        (("no idea", "truth"), "So on these images VPP is worse: the prompts do not help. "),
        (("truth", "truth"), "0 lies within: these images do not tell the two apart. "),
    ],
)
def test_a_sentence_says_whether_the_prompts_help(answers: tuple[str, str], meaning: str) -> None:
    run = result(VPP=answers[0], twin=answers[1])

    against, *_ = demo_sentences(run)

    right = [answer == "truth" for answer in answers]
    hits = [len(run.rows) * one for one in right]
    points = f"{100 * (right[0] - right[1]):+.1f}"
    assert against.startswith(f"VPP hits {hits[0]} of {len(run.rows)} boxes (IoU at least 0.5), twin {hits[1]}: ")
    assert f"{points} points (95 % interval over the images: {points} to {points}). {meaning}" in against


def test_a_sentence_for_each_set_says_whether_it_reads() -> None:
    (_, _, *knows), (_, control, *guesses) = (demo_sentences(result(VPP=answer)) for answer in ("truth", "no idea"))

    assert control == "With shuffled expressions, each image asked for what is in another, VPP hits 0 boxes."
    for said in (knows, guesses):
        assert [one.split()[1] for one in said] == ["photographs", "scenes"]
    assert all(one.endswith(" It reads what it is asked for.") for one in knows)
    for one in guesses:
        assert " is worth +0.0 points" in one
        assert one.endswith("0 lies within: these do not show that it reads what it is asked for.")


def test_sentences_say_what_is_shown_and_how_much_of_the_photographs_was_asked() -> None:
    run = result(VPP="truth", twin="no idea")

    _, shown, _, photographs, scenes = demo_sentences(run)

    assert shown.startswith(f"That is {len(run.rows)} expressions in 5 images. ")
    assert shown.endswith(" these 5 are hit by: VPP 5, twin 0.")
    asked = sum(row.kind == "photo" for row in run.rows)
    assert photographs.startswith(f"On photographs ({asked} of their 50 expressions; all of them: README) what ")
    assert "README" not in scenes


def test_photographs_and_scenes_are_judged_apart() -> None:
    knows, photographs = Stub(), [row.image.tobytes() for row in choose_rows(None)[0] if row.kind == "photo"]
    knows.truth = {(image, text): box for (image, text), box in knows.truth.items() if image in photographs}

    *_, on_photographs, on_scenes = demo_sentences(run_demo({"VPP": knows}, None))

    assert on_photographs.endswith("It reads what it is asked for.")
    assert on_scenes.endswith("0 lies within: these do not show that it reads what it is asked for.")


def test_a_miss_never_reads_as_a_hit() -> None:
    """A crab at IoU 0.4997 was drawn in red as 0.50."""
    run = result()
    line = answer_line(run.rows[0], {"VPP": replace(run.answers["VPP"][0], iou=0.4997)})

    assert "[red]0.49[/]" in line


def test_a_long_expression_moves_no_column() -> None:
    run = result()
    answers = {"VPP": run.answers["VPP"][0]}
    heading = answer_heading(["VPP"])
    for expression in ("it", "the second chicken from the right, behind the others"):
        line = Text.from_markup(answer_line(replace(run.rows[0], expression=expression), answers)).plain
        assert line[heading.index("expression") :] == expression


def test_what_people_wrote_is_no_markup() -> None:
    run = result()
    hostile = replace(run.rows[0], expression="[bold]x[/]")

    assert "[bold]x[/]" in Text.from_markup(answer_line(hostile, {"VPP": run.answers["VPP"][0]})).plain


def test_a_box_is_told_in_whole_pixels_and_its_absence_by_its_status() -> None:
    known, unknown = (result(VPP=answer).answers["VPP"][0].grounding for answer in ("truth", "no idea"))

    assert box_text(known) == " ".join(str(round(value)) for value in known.boxes[0])
    assert box_text(unknown) == "unparsable"


def test_without_the_scene_images_a_sentence_says_why_and_the_demo_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(folder: Path, *, progress: Any) -> None:
        progress("Downloading")
        raise VPPError("There is no network.")

    monkeypatch.setattr(demo, "fetch_assets", no_network)
    told: list[str] = []

    assert assets_or_none(tmp_path, told.append) is None
    assert told == ["Downloading", "There is no network. The demo goes on with these."]

    drawn = {row.category for row in choose_rows(None)[0] if row.category}
    assert drawn
    assert drawn <= set(Shapes().names(heldout=False))


class Page(HTMLParser):
    """What a page holds: its links, how often each tag stands, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("changes", "inside"),
    [({}, 2), ({"boxes": False}, 1), ({"local_vpp": None}, 1), ({"global_vpp": None}, 2)],
    ids=["both", "queries without boxes", "axes alone", "queries alone"],
)
def test_the_page_holds_everything_itself(tmp_path: Path, changes: dict[str, Any], inside: int) -> None:
    run = result(VPP="truth", twin="no idea")
    tracked: list[int] = []

    def track(items: Sequence[Any], what: str) -> Sequence[Any]:
        tracked.append(len(items))
        return items

    path = write_demo_page(run, asker(**changes), tmp_path / "deep" / "page", track)

    assert path == tmp_path / "deep" / "page" / "index.html"
    assert tracked == [5]
    page = Page(path)
    assert page.tags.count("figure") == 5
    assert page.tags.count("th") == 1 + len(run.answers)  # models are columns: with rows of eight a phone cut them
    assert page.tags.count("img") == 5 * (1 + inside) + 2 * ("global_vpp" not in changes)
    assert len(page.links) == page.tags.count("img")
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    source = path.read_text(encoding="utf-8")
    assert "http" not in source
    assert "url(" not in source
    assert "@import" not in source
    for index in run.shown:
        assert run.rows[index].expression in page.text
    assert page.text.count("IoU 1.00") == page.text.count("IoU 0.00") == 5
    assert all(sentence in page.text for sentence in demo_sentences(run))
    assert page.text.index("Photographs") < page.text.index(run.rows[0].expression) < page.text.index("Composed")
    assert page.text.count("Where the queries look") == 5 * (inside - 1)


def test_the_axes_on_the_page_are_large_enough_to_be_read(tmp_path: Path) -> None:
    path = write_demo_page(result(), asker(), tmp_path)

    axes = [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in Page(path).links[-2:]]
    assert [one.size for one in axes] == [(640, 640)] * 2


def test_the_page_escapes_what_models_and_people_wrote(tmp_path: Path) -> None:
    run = result(**{"<i>VPP</i>": "<script>alert(1)</script>"})
    run.rows[0] = replace(run.rows[0], expression='the "<b>red</b>" & blue')

    page = Page(write_demo_page(run, asker(), tmp_path))

    assert not {"script", "i"} & set(page.tags)
    assert page.tags.count("b") == 2 + 5  # the legend's and the answers'
    assert "<script>alert(1)</script>" in page.text
    assert 'the "<b>red</b>" & blue' in page.text
