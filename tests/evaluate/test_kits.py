import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub
from vpp_plugins import VPPError
from vpp_plugins.evaluate import models
from vpp_plugins.evaluate.kits.answers import answer
from vpp_plugins.evaluate.protocol import protocol

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

    def test_what_it_cannot_do(self, lmms_eval: Any, stub: Stub) -> None:
        model = lmms_eval.LmmsEvalModel("folder")
        with pytest.raises(VPPError, match="ranks none"):
            model.loglikelihood([])
        with pytest.raises(VPPError, match="one question per image"):
            model.generate_until_multi_round([])


class TestVLMEvalKit:
    def test_it_answers_a_message(self, stub: Stub, tmp_path: Path) -> None:
        from vpp_plugins.evaluate.kits.vlmevalkit import VPPModel

        WIDE.save(tmp_path / "wide.png")
        message = [{"type": "image", "value": str(tmp_path / "wide.png")}, {"type": "text", "value": REQUEST}]

        assert VPPModel("folder").generate(message) == "[0.2500, 0.5000, 0.5000, 1.0000]"

    def test_two_images(self, stub: Stub) -> None:
        from vpp_plugins.evaluate.kits.vlmevalkit import VPPModel

        with pytest.raises(VPPError, match="2 images and 0 texts came"):
            VPPModel("folder").generate([{"type": "image", "value": "a"}, {"type": "image", "value": "b"}])
