import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.evaluate.conftest import Stub, make_rows, truthful
from tests.tiny import attached, tiny_llava, tiny_processor
from vpp_plugins import Grounder, VPPError, VPPProcessor
from vpp_plugins.attach import attach_control
from vpp_plugins.boxes import BoxCodec, ImageMeta, codec
from vpp_plugins.cli import main
from vpp_plugins.data.dialogue import Phrases
from vpp_plugins.data.formats.neutral import write_neutral
from vpp_plugins.data.formats.reading import Writing
from vpp_plugins.data.sample import Describe, Issue, Locate, Sample, Talk, Tally
from vpp_plugins.data.scenes.folder import load_scenes, write_scenes
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.evaluate import captions, models
from vpp_plugins.evaluate.benchmark import load_rows, measure, rescore
from vpp_plugins.evaluate.captions import regions
from vpp_plugins.evaluate.compare import compare
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import load_evaluation
from vpp_plugins.evaluate.rows import Row, rows_of_samples, rows_of_scenes
from vpp_plugins.evaluate.run import read_run

Say = Callable[[str, Image.Image], str]


def measured(rows: list[Row], out: Path, *, split: str | None = None, protocol_name: str = "default") -> dict:
    stub = Stub(truthful(rows))
    return measure(stub, rows, protocol(protocol_name), out, model="a stub", data="toy rows", split=split)


class TestRows:
    def test_the_photographs(self) -> None:
        rows = load_rows("photos")

        assert len(rows) == 50
        assert all(row.load_image().size == (row.size_hw[1], row.size_hw[0]) for row in rows[:3])

    def test_a_scene_folder_is_what_its_scenes_say(self, tmp_path: Path) -> None:
        write_scenes(tmp_path / "scenes", 3, 0, "test", source=Shapes(), size=96, progress=False)
        rows = load_rows(str(tmp_path / "scenes"))
        same = rows_of_scenes(load_scenes(tmp_path / "scenes"))

        assert [(r.id, r.box, r.category, r.kind) for r in rows] == [(r.id, r.box, r.category, r.kind) for r in same]
        assert rows[0].load_image().size == (96, 96)

    def test_a_file(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        line = {"image": "a.png", "sent": "the cup", "bbox": [1, 2, 30, 15], "height": 20, "width": 40}
        (tmp_path / "val.jsonl").write_text(json.dumps(line) + "\n")
        rows = load_rows(str(tmp_path / "val.jsonl"), data_format="eval-jsonl")

        assert [(row.expression, row.box, row.size_hw) for row in rows] == [("the cup", (1, 2, 30, 15), (20, 40))]

    def test_faulty_samples_are_counted_and_reported(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        line = {"image": "a.png", "sent": "the cup", "bbox": [1, 2, 30, 15], "height": 20, "width": 40}
        lines = [line, {**line, "bbox": [30, 2, 1, 15]}, {**line, "bbox": [1, 2, 30]}]
        (tmp_path / "val.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        tally = Tally()
        rows = load_rows(str(tmp_path / "val.jsonl"), data_format="eval-jsonl", tally=tally)
        stub = Stub(lambda question, image: "[0.1, 0.2, 0.3, 0.4]")
        results = measure(stub, rows, protocol("default"), tmp_path / "out", model="m", data="d", tally=tally)

        assert len(rows) == 1
        assert any(note.startswith("1 samples left out or fixed: inverted box") for note in results["notes"])

    def test_expressions_of_several_boxes_are_counted(self, tmp_path: Path) -> None:
        turns = (Locate("the cup", ((1, 2, 30, 15),)), Locate("cups", ((1, 2, 3, 4), (5, 6, 7, 8))), Locate("hat", ()))
        tally = Tally()
        rows = rows_of_samples([Sample("s", "a.png", 40, 20, turns)], tmp_path, tally)

        assert [row.expression for row in rows] == ["the cup"]
        assert (tally.counts[Issue.AMBIGUOUS], tally.counts[Issue.NO_BOX]) == (1, 1)

    def test_what_is_said_of_a_region_is_a_row_for_captions_alone(self, tmp_path: Path) -> None:
        box = (1, 2, 30, 15)
        turns = (Locate("the cup", (box,)), Describe((box,), "a cup\nof tea"), Talk("what is <bbox>?", "tea", (box,)))
        sample = Sample("s", "a.png", 40, 20, turns)
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        path = tmp_path / "said.jsonl"
        write_neutral([sample], Writing(path))

        assert [row.expression for row in load_rows(str(path), data_format="neutral")] == ["the cup"]
        rows = load_rows(str(path), data_format="neutral", task="caption")
        assert [(row.id, row.expression) for row in rows] == [("s/0", "the cup"), ("s/1", "a cup\nof tea")]
        assert [region.expression for region in regions(rows)] == ["the cup\na cup of tea"]

    @pytest.mark.parametrize(
        ("family", "answer"), [("llava", "[0.25, 0.5, 0.75, 0.6]"), ("internvl", "<box>[[250, 500, 750, 700]]</box>")]
    )
    def test_dialogues_are_rows_whose_question_is_the_trained_one(
        self, tmp_path: Path, family: str, answer: str
    ) -> None:
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        asked = "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: the cup."
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        (tmp_path / "said.json").write_text(json.dumps([{"id": "s", "image": "a.png", "conversations": said}]))
        (row,) = load_rows(str(tmp_path / "said.json"), data_format="vpp-sft", family=family)

        assert (row.expression, row.box[0], row.box[2]) == ("the cup", 10, 30)
        for name in ("llava", "internvl", "qwen3-vl"):
            trained = Phrases(codec(name)).write(Locate(row.expression, (row.box,)), ImageMeta(row.size_hw))[0]
            assert protocol("default").ask(row, codec(name)) == trained

    def test_half_a_character_in_an_expression(self, tmp_path: Path) -> None:
        sample = Sample("s", "a.png", 40, 20, (Locate("cup \ud83d", ((1, 2, 30, 15),)),))

        assert rows_of_samples([sample], tmp_path)[0].expression == "cup ?"

    def test_a_refer_folder_and_one_of_its_splits(self, tmp_path: Path) -> None:
        Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
        refs = [
            {"ref_id": n, "ann_id": 7, "image_id": 1, "split": split, "sentences": [{"sent": split, "sent_id": n}]}
            for n, split in enumerate(("testA", "val"))
        ]
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
        instances = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
            "annotations": [{"id": 7, "image_id": 1, "bbox": [4, 4, 20, 30]}],
        }
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        rows = load_rows(str(tmp_path), data_format="refer", split="refcoco/testA")

        assert [(row.expression, row.box) for row in rows] == [("testA", (4, 4, 24, 34))]
        assert rows[0].load_image().size == (64, 48)

    def test_images_inside_parquet_are_written_beside(self, tmp_path: Path) -> None:
        Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
        image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
        row = {"question_id": "7", "image": image, "answer": ["the cup"], "bbox": [1, 2, 29, 13], "file_name": "a.png"}
        (tmp_path / "rows").mkdir()
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows" / "testA-0.parquet")

        with pytest.raises(VPPError, match="holds its images inside: name a folder"):
            load_rows(str(tmp_path / "rows"), data_format="lmms-parquet")
        rows = load_rows(
            str(tmp_path / "rows"), data_format="lmms-parquet", images=str(tmp_path / "new"), split="refcoco/testA"
        )
        assert [(row.expression, row.box) for row in rows] == [("the cup", (1, 2, 30, 15))]
        assert rows[0].load_image().size == (40, 20)

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="there are no data at 'nowhere'"):
            load_rows("nowhere")
        (tmp_path / "val.jsonl").write_text("")
        with pytest.raises(VPPError, match="say in which format it is"):
            load_rows(str(tmp_path / "val.jsonl"))
        (tmp_path / "val.jsonl").write_text('{"image": "a.png"}')
        with pytest.raises(
            VPPError, match=r"no row to evaluate: 1 x field missing.*What is wrong: vpp doctor .* --format eval-jsonl"
        ):
            load_rows(str(tmp_path / "val.jsonl"), data_format="eval-jsonl")


class TestMeasure:
    def test_what_it_writes(self, rows: list[Row], tmp_path: Path) -> None:
        results = measured(rows, tmp_path / "out")

        assert results["figures"]["acc_50"]["mean"] == 1
        assert results["model"] == "a stub"
        assert set(results["versions"]) == {"python", "vpp-plugins", "torch", "transformers", "tokenizers", "pillow"}
        assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
        assert (tmp_path / "out" / "report.html").stat().st_size > 5000

    def test_again_gives_the_same_bytes(self, rows: list[Row], tmp_path: Path) -> None:
        measured(rows, tmp_path / "out")
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        measured(rows, tmp_path / "out")

        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    def test_the_time_of_one_that_was_interrupted_is_said_to_be_of_its_last_part(
        self, rows: list[Row], tmp_path: Path
    ) -> None:
        """It read as that of the whole."""
        answer, left = truthful(rows), iter(range(4))

        def say(question: str, image: Image.Image) -> str:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return answer(question, image)

        asked = {"model": "m", "data": "d", "batch_size": 2, "timed": True}
        with pytest.raises(KeyboardInterrupt):
            measure(Stub(say), rows, protocol("default"), tmp_path / "out", **asked)

        asker = Stub(answer)
        last, whole = (measure(asker, rows, protocol("default"), tmp_path / out, **asked) for out in ("out", "whole"))
        assert " s since it was resumed, of which " in last["time"]
        assert "resumed" not in whole["time"]

    def test_rows_are_counted_against_the_split(self, rows: list[Row], tmp_path: Path) -> None:
        assert measured(rows, tmp_path / "a", split="refcoco/testA")["notes"] == [
            "refcoco/testA has 5657 published rows, and these data have 10."
        ]
        assert measured(rows, tmp_path / "b", split="mine/val")["notes"] == [
            "no published number of rows is known for mine/val."
        ]
        assert measured(rows, tmp_path / "c")["notes"] == []

    def test_the_photographs_are_known_by_their_hash(self, tmp_path: Path) -> None:
        photos = load_rows("photos")
        stub = Stub(lambda question, image: "[0.1, 0.2, 0.3, 0.4]")
        whole = measure(stub, photos, protocol("default"), tmp_path / "a", model="m", data="photos", split="photos")
        less = measure(stub, photos[1:], protocol("default"), tmp_path / "b", model="m", data="photos", split="photos")

        assert whole["notes"] == []
        assert len(less["notes"]) == 2

    @pytest.mark.usefixtures("toy")
    def test_the_control_is_the_same_weights_with_the_prompts_off(self, rows: list[Row], tmp_path: Path) -> None:
        asker = Grounder(*attached(), max_new_tokens=4)
        control = attach_control(tiny_llava())
        host = Grounder(control, VPPProcessor(tiny_processor(), control), max_new_tokens=4)
        for folder, one, off in (("on", asker, False), ("off", asker, True), ("host", host, False)):
            measure(one, rows, protocol("default"), tmp_path / folder, model="m", data="d", disable_vpp=off)

        on, off, alone = (load_evaluation(tmp_path / folder) for folder in ("on", "off", "host"))
        texts = [[one.answer.text.replace("<|vpp|>", "").split() for one in side.judged] for side in (on, off, alone)]
        assert read_run(tmp_path / "off")["prompts"] == {"disabled": True}
        assert texts[0] != texts[1] == texts[2]
        said = [reason for reason in compare(on, off).reasons if "prompts" in reason]
        assert said == ["B was asked with its prompts off (--disable-vpp); the weights are the same."]

    def test_without_prompts_there_are_none_to_switch_off(self, rows: list[Row], tmp_path: Path) -> None:
        for asker in (Stub(truthful(rows)), Grounder(tiny_llava(), tiny_processor())):
            with pytest.raises(VPPError, match="no prompts that could be off: leave --disable-vpp out"):
                measure(asker, rows, protocol("default"), tmp_path / "a", model="m", data="d", disable_vpp=True)

    def test_captions(self, rows: list[Row], tmp_path: Path) -> None:
        stub = Stub(lambda question, image: "thing 1")
        rules = protocol("region-caption")
        results = measure(stub, rows, rules, tmp_path / "out", model="m", data="toy rows")

        assert results["figures"]["regions"] == 10
        assert "10 regions" in (tmp_path / "out" / "report.html").read_text()

    def test_captions_with_meteor(self, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stub, rules = Stub(lambda question, image: "thing 1"), protocol("region-caption")
        names = {"model": "m", "data": "d", "with_meteor": True}
        with pytest.raises(VPPError, match="METEOR scores words, and the protocol 'default' asks for boxes"):
            measure(stub, rows, protocol("default"), tmp_path / "out", **names)
        monkeypatch.setattr(captions.shutil, "which", lambda name: None)
        with pytest.raises(VPPError, match="no `java` is on the path"):
            measure(stub, rows, rules, tmp_path / "out", **names)
        assert stub.batches == []  # said before the model is asked

        monkeypatch.setattr(captions.shutil, "which", lambda name: "/bin/java")
        monkeypatch.setattr(captions, "meteor", lambda told, right: 0.25)
        assert measure(stub, rows, rules, tmp_path / "out", **names)["figures"]["meteor"] == 0.25
        assert "METEOR <b>0.250</b>" in (tmp_path / "out" / "report.html").read_text()
        again = rescore(tmp_path / "out", "region-caption", tmp_path / "again", with_meteor=True)
        assert again["figures"]["meteor"] == 0.25


class TestRescore:
    def test_under_another_protocol(self, rows: list[Row], tmp_path: Path) -> None:
        measured(rows, tmp_path / "out")
        results = rescore(tmp_path / "out", "lmms-eval", tmp_path / "again")

        assert results["protocol"] == "lmms-eval"
        assert results["rescored_from"] == "default"
        assert results["figures"]["acc_90"]["mean"] < 1  # the padding is ignored

    def test_the_photographs_are_shown_again(self, tmp_path: Path) -> None:
        stub = Stub(lambda question, image: "[0.1, 0.2, 0.3, 0.4]")
        measure(stub, load_rows("photos")[:3], protocol("default"), tmp_path / "out", model="m", data="photos")
        rescore(tmp_path / "out", "lmms-eval", tmp_path / "again")

        assert (tmp_path / "again" / "report.html").read_text().count("data:image/jpeg") == 3

    def test_a_protocol_that_asks_for_something_else(self, rows: list[Row], tmp_path: Path) -> None:
        measured(rows, tmp_path / "out")
        stub = Stub(lambda question, image: "a thing")
        measure(stub, rows, protocol("region-caption"), tmp_path / "words", model="m", data="d")

        with pytest.raises(VPPError, match=r"asks for something else \(boxes or words\)"):
            rescore(tmp_path / "out", "region-caption", tmp_path / "again")
        with pytest.raises(VPPError, match="holds region captions"):
            load_evaluation(tmp_path / "words")

    def test_another_family_only_where_it_is_said(self, rows: list[Row], tmp_path: Path) -> None:
        measured(rows, tmp_path / "out")

        with pytest.raises(VPPError, match="written as 'llava'"):
            rescore(tmp_path / "out", "qwen-vl", tmp_path / "again")
        results = rescore(tmp_path / "out", "qwen-vl", tmp_path / "again", "qwen-vl")
        assert results["box_format"] == "qwen-vl"
        reasons = compare(load_evaluation(tmp_path / "out"), load_evaluation(tmp_path / "again")).reasons
        assert reasons[0] == "The boxes are read as two families': A's as 'llava', B's as 'qwen-vl'."

    def test_never_into_other_files(self, rows: list[Row], tmp_path: Path) -> None:
        measured(rows, tmp_path / "out")

        with pytest.raises(VPPError, match="holds other files"):
            rescore(tmp_path / "out", "lmms-eval", tmp_path / "out")


@pytest.fixture
def vpp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run the command in an empty folder; returns what it said. The model always answers one box."""

    class Fixed(Stub):
        codec: BoxCodec = codec("llava")

    asker = Fixed(lambda question, image: "[0.2, 0.2, 0.8, 0.8]")
    monkeypatch.setattr(models, "load_grounder", lambda *_, **__: asker)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["vpp", *words])
        with pytest.raises(SystemExit):
            main()
        return "".join(capsys.readouterr())

    return run


class TestCommands:
    def test_eval_rescore_and_compare(self, vpp: Callable[..., str], tmp_path: Path) -> None:
        said = vpp("eval", "--limit", "6", "--out", "a")
        assert "Acc@0.5" in said
        assert "6 answers" in said
        assert "lmms-eval" in vpp("eval", "rescore", "a", "--protocol", "lmms-eval", "--out", "b")
        said = vpp("compare", "a", "b", "--out", "compare.html")
        assert said == vpp("eval", "compare", "a", "b", "--out", "compare.html")
        assert "B minus A" in said
        assert "The protocols differ." in said
        assert (tmp_path / "compare.html").is_file()

    def test_captions_and_meteor(self, vpp: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(captions.shutil, "which", lambda name: "/bin/java")
        monkeypatch.setattr(captions, "meteor", lambda told, right: 0.25)
        said = vpp("eval", "--protocol", "region-caption", "--meteor", "--limit", "3", "--out", "words")
        assert "METEOR 0.250 over 3 regions" in said
        assert "leave METEOR out" in vpp("eval", "--meteor", "--limit", "3", "--out", "boxes")

    def test_protocols(self, vpp: Callable[..., str]) -> None:
        assert "eval_refcoco.py of WayneTomas/VPP-LLaVA" in vpp("eval", "protocols")

    def test_a_mistake_is_one_sentence(self, vpp: Callable[..., str]) -> None:
        assert vpp("eval", "--protocol", "vppllava").startswith("vpp: no protocol is called 'vppllava'. Did you mean")
        assert vpp("eval", "compare", "a", "b", "--out", "no/compare.html").startswith("vpp: the folder 'no' does not")


@pytest.mark.slow
def test_a_model_that_was_trained_on_is_another(tmp_path: Path) -> None:
    """Whatever its folder is called, answers of the model before are not given out as its own."""
    grounder, photos = models.load_grounder("pocket"), load_rows("photos")[:2]
    before = measure(grounder, photos, protocol("default"), tmp_path / "out", model="mine", data="photos")
    assert before["model_sha256"] == models.fingerprint_of_model(models.load_grounder("pocket").model)
    with torch.no_grad():
        next(grounder.model.parameters()).mul_(1.01)

    with pytest.raises(VPPError, match="holds another evaluation: its model_sha256 is"):
        measure(grounder, photos, protocol("default"), tmp_path / "out", model="mine", data="photos")


def test_the_pocket_model_takes_no_prompts_and_no_dtype() -> None:
    with pytest.raises(VPPError, match="comes with its own prompts"):
        models.load_grounder("pocket", vpp="mine")
    with pytest.raises(VPPError, match="runs in float32, but bfloat16"):
        models.load_grounder("pocket", dtype="bfloat16")
    with pytest.raises(VPPError, match=r"no dtype is called .* Known: auto, bfloat16"):
        models.load_grounder("pocket", dtype="int8")


def test_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    with pytest.raises(VPPError, match="could not be loaded as an image-text-to-text model"):
        models.load_grounder(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("qwen2_5_v", "has none of the type 'qwen2_5_v'. Did you mean 'qwen2_5_vl'? The documentation of"),
        ("bert", "has none of the type 'bert'."),
    ],
)
def test_a_model_of_another_type_is_named_without_all_that_there_are(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))

    with pytest.raises(VPPError) as refused:
        models.load_grounder(str(tmp_path))
    assert said in str(refused.value)
    assert len(str(refused.value)) < 250 + len(str(tmp_path))


def test_rows_of_the_stub_are_found() -> None:
    assert truthful(make_rows(3))("... describes: thing 1.", Image.new("RGB", (1, 1))).startswith("[")
