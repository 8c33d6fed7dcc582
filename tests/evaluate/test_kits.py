import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

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
    stub.model = nn.Module()  # type: ignore[attr-defined]
    vars(stub.model).update(generation_config=types.SimpleNamespace(), device=torch.device("cpu"))  # type: ignore[attr-defined]
    stub.loaded = []  # type: ignore[attr-defined]

    def load(model: str, **options: Any) -> Stub:
        stub.loaded.append((model, {name: value for name, value in options.items() if value is not None}))  # type: ignore[attr-defined]
        return stub

    monkeypatch.setattr(models, "load_grounder", load)
    return stub


def asked(*numbers: int, **generation: int) -> list[Any]:
    """lmms-eval's requests about the documents of its task."""
    return [
        types.SimpleNamespace(args=(REQUEST, generation, lambda doc: [doc["image"]], number, "task", "test"))
        for number in numbers
    ]


class TestLmmsEval:
    def test_its_manifest_names_the_class(self, lmms_eval: Any) -> None:
        manifest = lmms_eval.manifest()

        assert manifest.model_id == "vpp_plugins"
        assert manifest.simple_class_path == "vpp_plugins.evaluate.kits.lmms_eval.LmmsEvalModel"

    def test_it_answers_requests_in_order(self, lmms_eval: Any, stub: Stub) -> None:
        model = lmms_eval.LmmsEvalModel("folder", batch_size="2")
        model.task_dict = {"task": {"test": [{"image": WIDE}, {"image": WIDE.rotate(90, expand=True)}]}}

        assert model.generate_until(asked(1, 0, max_new_tokens=50)) == [
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

    def test_it_takes_what_the_kit_gives_its_own_models(self, lmms_eval: Any, stub: Any) -> None:
        """Its flags --batch_size, --max_batch_size and --device arrive beside what --model_args says."""
        model = lmms_eval.LmmsEvalModel(
            "folder", batch_size=4, max_batch_size=None, device="cpu", torch_dtype="torch.bfloat16", use_cache=False,
            max_new_tokens=9, attn_implementation="eager", device_map="", revision="main", trust_remote_code=False,
        )  # fmt: skip
        model.task_dict = {"task": {"test": [{"image": WIDE}]}}
        model.generate_until(asked(0))

        own = {"attn_implementation": "eager", "revision": "main", "trust_remote_code": False}
        assert stub.loaded == [("folder", {"device": "cpu", "dtype": "bfloat16", **own})]
        assert stub.model.generation_config.use_cache is False
        assert stub.generation["max_new_tokens"] == 9
        assert model.device.type == "cpu"

    def test_an_automatic_batch_size_is_halved_until_it_fits(self, lmms_eval: Any, stub: Stub) -> None:
        model = lmms_eval.LmmsEvalModel("folder", batch_size="auto", max_batch_size=4)
        model.task_dict = {"task": {"test": [{"image": WIDE}]}}
        asking = stub.ask

        def ask(images: Any, questions: Any, **generation: int) -> Any:
            if len(questions) > 2:
                raise torch.OutOfMemoryError("the card is full")
            return asking(images, questions, **generation)

        stub.ask = ask  # type: ignore[method-assign]

        assert len(model.generate_until(asked(0, 0, 0, 0, 0))) == 5
        assert stub.batches == [2, 2, 1]

    def test_memory_that_a_given_batch_size_does_not_fit_into(self, lmms_eval: Any, stub: Any) -> None:
        model = lmms_eval.LmmsEvalModel("folder", batch_size="2")
        model.task_dict = {"task": {"test": [{"image": WIDE}]}}
        stub.ask = lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("the card is full"))

        with pytest.raises(torch.OutOfMemoryError):
            model.generate_until(asked(0))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"max_num_frames": 32}, "the bridge to lmms-eval knows no 'max_num_frames': it takes pretrained, vpp, "),
            ({"revison": "main"}, r"Did you mean 'revision'\?"),
            ({"batch_size": "many"}, "--batch_size must be 'auto' or a whole number from 1, but is 'many'"),
            ({"batch_size": 0}, "a whole number from 1, but is '0'"),
        ],
    )
    def test_a_flag_that_it_does_not_know(
        self, lmms_eval: Any, stub: Stub, arguments: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(VPPError, match=said):
            lmms_eval.LmmsEvalModel("folder", **arguments)

    def test_what_it_cannot_do(self, lmms_eval: Any, stub: Stub) -> None:
        model = lmms_eval.LmmsEvalModel("folder")
        with pytest.raises(VPPError, match="ranks none"):
            model.loglikelihood([])
        with pytest.raises(VPPError, match="one question per image"):
            model.generate_until_multi_round([])


class RefCOCO:
    """A data set as VLMEvalKit has them: rows, and each row's message; `dump_image` writes its image as a file."""

    dataset_name = "RefCOCO"

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, [{"index": 3, "image": WIDE}, {"index": 5, "image": WIDE}]

    def dump_image(self, line: dict[str, Any]) -> list[str]:
        path = self.folder / f"{line['index']}.png"
        line["image"].save(path)
        return [str(path)]

    def build_prompt(self, line: dict[str, Any]) -> list[dict[str, str]]:
        images = [{"type": "image", "value": path} for path in self.dump_image(line)]
        return [*images, {"type": "text", "value": REQUEST}]


def infer(build: Callable[..., Any], data: RefCOCO, **flags: Any) -> dict[int, str]:
    """What VLMEvalKit's vlmeval/inference.py does with a model of its table that is no API."""
    model = build(**flags)
    assert not getattr(model, "is_api", False)
    model.set_dump_image(data.dump_image)
    found = {}
    for line in data.data:
        custom = hasattr(model, "use_custom_prompt") and model.use_custom_prompt(data.dataset_name)
        message = model.build_prompt(line, dataset=data.dataset_name) if custom else data.build_prompt(line)
        found[line["index"]] = model.generate(message=message, dataset=data.dataset_name)
    return found


class TestVLMEvalKit:
    @pytest.mark.parametrize("flags", [{}, {"use_vllm": False}])
    def test_the_kit_asks_it_row_by_row(self, stub: Any, tmp_path: Path, flags: dict[str, Any]) -> None:
        """The kit calls set_dump_image unasked, and gives use_vllm to each model whose name holds "Qwen2.5-VL"."""
        build = partial(VPPModel, "folder", vpp="prompts", dtype="float32", attn_implementation="sdpa")

        answer = "[0.2500, 0.5000, 0.5000, 1.0000]"
        assert infer(build, RefCOCO(tmp_path), **flags) == {3: answer, 5: answer}
        options = {"vpp": "prompts", "dtype": "float32", "attn_implementation": "sdpa"}
        assert stub.loaded == [("folder", options)]

    def test_a_model_of_its_own_prompts_finds_the_images_of_a_row(self, stub: Stub, tmp_path: Path) -> None:
        model, data = VPPModel("folder"), RefCOCO(tmp_path)
        model.set_dump_image(data.dump_image)

        assert model.dump_image(data.data[0], data.dataset_name) == [str(tmp_path / "3.png")]

    def test_parts_may_be_bare_texts(self, stub: Stub, tmp_path: Path) -> None:
        """The kit's base class takes a text, a part, a list of texts and a list of parts."""
        (path,) = RefCOCO(tmp_path).dump_image({"index": 1, "image": WIDE})

        assert VPPModel("folder").generate([path, REQUEST]) == "[0.2500, 0.5000, 0.5000, 1.0000]"

    @pytest.mark.parametrize(
        ("message", "said"),
        [
            ([{"type": "image", "value": "a"}] * 2, "2 images and 0 texts came"),
            ("What is VPP?", "0 images and 1 texts came"),
            ([{"type": "video", "value": "a.mp4"}, "What?"], "0 images and 1 texts and 1 videos came"),
        ],
    )
    def test_another_message(self, stub: Stub, message: Any, said: str) -> None:
        with pytest.raises(VPPError, match=said):
            VPPModel("folder").generate(message)

    def test_what_it_cannot_do(self, stub: Stub) -> None:
        with pytest.raises(VPPError, match="one question per image"):
            VPPModel("folder").chat([{"role": "user", "content": "What?"}])
        with pytest.raises(VPPError, match="vLLM runs no prompts"):
            VPPModel("folder", use_vllm=True)
        with pytest.raises(VPPError, match="the bridge to VLMEvalKit knows no 'model_path': it takes model, vpp"):
            VPPModel("folder", model_path="another")


def test_the_pocket_model_takes_no_loading_options() -> None:
    with pytest.raises(VPPError, match="loaded as it is, but attn_implementation came"):
        models.load_grounder("pocket", attn_implementation="eager")


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
