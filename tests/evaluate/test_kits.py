import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub
from tests.tiny import attached
from vpp_plugins import Grounder, VPPError
from vpp_plugins.evaluate import models
from vpp_plugins.evaluate.kits.answers import answer
from vpp_plugins.evaluate.kits.vlmevalkit import VPPModel
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.settings import PARTS

pytestmark = pytest.mark.filterwarnings("ignore:the kit's results will not say:UserWarning")
REQUEST = protocol("lmms-eval").question.format(expr="the red cup")
WIDE = Image.new("RGB", (40, 20))


def test_a_request_for_a_box_is_put_and_answered_in_the_right_frames() -> None:
    asked: list[str] = []

    def say(question: str, image: Image.Image) -> str:
        asked.append(question)
        return "[0.25, 0.5, 0.5, 0.75]"  # of the padded square, 40 x 40

    stub = Stub(say)
    assert answer(stub, [WIDE], [REQUEST]) == ["[0.2500, 0.5000, 0.5000, 1.0000]"]
    assert asked == [stub.codec.prompt("the red cup")]


def test_another_question_comes_and_goes_as_it_is() -> None:
    stub = Stub(lambda question, image: f"you asked: {question}")

    assert answer(stub, [WIDE, WIDE], ["What colour?", REQUEST]) == [
        "you asked: What colour?",
        f"you asked: {stub.codec.prompt('the red cup')}",
    ]


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The two names that the bridge takes from lmms-eval 0.7, without the kit."""
    package, api, registry = (types.ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"))
    model = types.ModuleType("lmms_eval.api.model")
    manifests = types.ModuleType("lmms_eval.models.registry_v2")

    class lmms:  # noqa: N801
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    class ModelManifest:
        def __init__(self, model_id: str, simple_class_path: str) -> None:
            self.model_id, self.simple_class_path = model_id, simple_class_path

    model.lmms, manifests.ModelManifest = lmms, ModelManifest  # type: ignore[attr-defined]
    for module in (package, api, registry, model, manifests):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "vpp_plugins.evaluate.kits.lmms_eval", raising=False)
    yield importlib.import_module("vpp_plugins.evaluate.kits.lmms_eval")
    sys.modules.pop("vpp_plugins.evaluate.kits.lmms_eval")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """In the model's place."""
    stub = Stub(lambda question, image: "[0.25, 0.5, 0.5, 0.75]")
    monkeypatch.setattr(models, "load_grounder", lambda *_, **__: stub)
    return stub


class TestLmmsEval:
    def test_its_manifest_names_the_class(self, lmms_eval: Any) -> None:
        manifest = lmms_eval.manifest()

        assert manifest.model_id == "vpp_plugins"
        assert manifest.simple_class_path == "vpp_plugins.evaluate.kits.lmms_eval.LmmsEvalModel"

    def test_it_answers_requests_in_order(self, lmms_eval: Any, stub: Stub) -> None:
        model = lmms_eval.LmmsEvalModel("folder", batch_size="2")
        model.task_dict = {"task": {"test": [{"image": WIDE}, {"image": WIDE.rotate(90, expand=True)}]}}
        requests = [
            types.SimpleNamespace(
                args=(REQUEST, {"max_new_tokens": 50}, lambda doc: [doc["image"]], number, "task", "test")
            )
            for number in (1, 0)
        ]

        assert model.generate_until(requests) == [
            "[0.0000, 0.5000, 0.5000, 0.7500]",
            "[0.2500, 0.5000, 0.5000, 1.0000]",
        ]
        assert stub.batches == [2]
        assert stub.generation["max_new_tokens"] == 50

    @pytest.mark.parametrize("asked", [{"do_sample": True, "temperature": 1.0}, {"num_beams": 3}])
    def test_what_would_not_be_greedy(self, asked: dict[str, Any], lmms_eval: Any, stub: Stub) -> None:
        """The kit writes down what it asked for, which was passed over."""
        model = lmms_eval.LmmsEvalModel("folder", settings=None)
        request = types.SimpleNamespace(args=(REQUEST, asked, lambda doc: [WIDE], 0, "task", "test"))
        with pytest.raises(VPPError, match=r"--gen_kwargs do_sample=False,num_beams=1"):
            model.generate_until([request])

    def test_a_batch_size_that_is_none(self, lmms_eval: Any, stub: Stub) -> None:
        with pytest.raises(VPPError, match="is 'auto': give --batch_size 8"):
            lmms_eval.LmmsEvalModel("folder", batch_size="auto")

    def test_what_it_cannot_do(self, lmms_eval: Any, stub: Stub) -> None:
        model = lmms_eval.LmmsEvalModel("folder")
        with pytest.raises(VPPError, match="ranks none"):
            model.loglikelihood([])
        with pytest.raises(VPPError, match="one question per image"):
            model.generate_until_multi_round([])


class TestVLMEvalKit:
    def test_it_answers_a_message(self, stub: Stub, tmp_path: Path) -> None:
        WIDE.save(tmp_path / "wide.png")
        message = [{"type": "image", "value": str(tmp_path / "wide.png")}, {"type": "text", "value": REQUEST}]

        model = VPPModel("folder")
        model.set_dump_image(lambda line: [])  # the kit does so before it asks
        assert model.generate(message) == "[0.2500, 0.5000, 0.5000, 1.0000]"

    def test_two_images(self, stub: Stub) -> None:
        with pytest.raises(VPPError, match="2 images and 0 texts came"):
            VPPModel("folder").generate([{"type": "image", "value": "a"}, {"type": "image", "value": "b"}])


class TestSettings:
    """What decides the answers stands beside the kit's results, which do not hold it."""

    @pytest.fixture
    def loaded(self, toy: None, monkeypatch: pytest.MonkeyPatch) -> Grounder:
        grounder = Grounder(*attached())
        monkeypatch.setattr(models, "load_grounder", lambda *_, **__: grounder)
        return grounder

    @pytest.mark.parametrize("kit", ["lmms-eval", "VLMEvalKit"])
    def test_are_kept_and_another_run_of_the_kit_is_refused(
        self, kit: str, lmms_eval: Any, loaded: Grounder, tmp_path: Path
    ) -> None:
        model: Any = lmms_eval.LmmsEvalModel if kit == "lmms-eval" else VPPModel
        file = tmp_path / "settings.json"
        model("folder", settings=str(file))
        kept = json.loads(file.read_text())

        assert {*PARTS, "model_sha256", "box_format"} - {"batch_size"} == kept.keys()
        assert kept["generation"]["max_new_tokens"] == 128
        model("folder", settings=str(file))
        loaded.model.generation_config.repetition_penalty = 1.5
        with pytest.raises(VPPError, match=r"its generation\.repetition_penalty is None, and now 1\.5"):
            model("folder", settings=str(file))
        assert json.loads(file.read_text()) == kept

    def test_of_nothing_are_missed(self, loaded: Grounder) -> None:
        with pytest.warns(UserWarning, match=r"settings=FILE\.json"):
            VPPModel("folder")

    @pytest.mark.parametrize("content", ["[]", "no", "[" * 5000])
    def test_another_file_is_left_alone(self, content: str, loaded: Grounder, tmp_path: Path) -> None:
        (tmp_path / "notes.json").write_text(content)
        with pytest.raises(VPPError, match="does not hold settings"):
            VPPModel("folder", settings=str(tmp_path / "notes.json"))
        assert (tmp_path / "notes.json").read_text() == content
