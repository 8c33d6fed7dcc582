"""What release 0.1.0 wrote still loads: each folder here was made by it, and holds what it said of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.evaluate.conftest import Stub
from tests.families import attached_family
from tests.tiny import tiny_llava
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import attach_vpp
from vpp_plugins.data.scenes import load_real_photos
from vpp_plugins.evaluate import benchmark
from vpp_plugins.evaluate.benchmark import measure, rescore
from vpp_plugins.evaluate.compare import compare, write_comparison
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import load_evaluation, summarise
from vpp_plugins.evaluate.rows import rows_of_scenes
from vpp_plugins.train import train

HERE = Path(__file__).parent
EVALUATION, PROMPTS, TRAINING = (HERE / f"{name}_0_1_0" for name in ("evaluation", "prompts", "training"))


@pytest.mark.filterwarnings("ignore:.*has no SHA-256 of its answers")
class TestEvaluation:
    """Six expressions of the photographs: three found, one box outside the image, one inverted, one no box."""

    def test_loads_with_the_figures_that_it_had(self) -> None:
        with pytest.warns(UserWarning, match="no SHA-256 of its answers") as warned:
            evaluation = load_evaluation(EVALUATION)
        assert len(warned) == 1
        figures = json.loads((EVALUATION / "results.json").read_text())["figures"]
        # 0.1.0 cut a box that lies wholly outside to a point on the border, and called it clipped.
        figures["statuses"] |= {"clipped": 0, "unparsable": 2}

        assert json.loads(json.dumps(summarise(evaluation.judged, evaluation.protocol))) == figures
        assert evaluation.accuracy == 0.5

    def test_is_rescored(self, tmp_path: Path) -> None:
        results = rescore(EVALUATION, "lmms-eval", tmp_path / "out")

        assert results["rescored_from"] == "default"
        assert results["figures"]["rows"] == 6
        assert (tmp_path / "out" / "report.html").read_text().count("data:image/jpeg") == 6

    def test_compares_with_an_evaluation_of_today(self, tmp_path: Path) -> None:
        rows = rows_of_scenes(load_real_photos())[:6]
        no_idea = Stub(lambda question, image: "no idea")
        measure(no_idea, rows, protocol("default"), tmp_path / "out", model="another", data="photos")

        found = compare(load_evaluation(EVALUATION), load_evaluation(tmp_path / "out"))

        assert (found.accuracy.only_a, found.accuracy.only_b) == (3, 0)
        assert write_comparison(found, tmp_path / "page.html", rows).read_text().count("data:image/jpeg") == 3

    def test_goes_on_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same command in its folder, with the same libraries, finds it finished and asks nothing."""
        versions = json.loads((EVALUATION / "run.json").read_text())["versions"]
        monkeypatch.setattr(benchmark, "versions", lambda: versions)
        folder = tmp_path / "evaluation"
        shutil.copytree(EVALUATION, folder)
        rows = rows_of_scenes(load_real_photos())[:6]
        stub = Stub(lambda question, image: "no idea")

        results = measure(stub, rows, protocol("default"), folder, model="a stub", data="photos", batch_size=2)

        assert stub.batches == []
        assert results["figures"]["acc_50"]["mean"] == 0.5


@pytest.mark.usefixtures("toy")
class TestPrompts:
    def test_load_and_give_what_they_gave(self) -> None:
        with pytest.warns(UserWarning, match="no SHA-256 of its weights") as warned:
            model = attach_vpp(tiny_llava(), str(PROMPTS))
        assert len(warned) == 1
        expected = load_file(PROMPTS / "expected.safetensors")
        side = model.vpp.config.local_vpp.image_size
        with torch.no_grad():
            local = model.vpp.local_vpp(torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side))
            overlaid = model.vpp.global_vpp(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))

        torch.testing.assert_close(local, expected["local"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(overlaid, expected["global"], rtol=1e-4, atol=1e-5)
        assert model.vpp.trained


@pytest.mark.usefixtures("toy")
class TestTraining:
    def test_a_run_goes_on_from_its_checkpoint_and_ends_with_the_same_prompts(self, tmp_path: Path) -> None:
        shutil.copytree(TRAINING, tmp_path / "run")
        data = write_data(tmp_path / "data", samples(8))
        settings = recipe(data, tmp_path / "run", max_steps=2, save_steps=1, resume_from_checkpoint="auto")
        model, processor = attached_family("llava")

        with pytest.warns(UserWarning, match="checkpoint-1' has no manifest") as warned:
            trained = train(settings, model=model, processor=processor)
        assert len(warned) == 1

        assert trained.steps == 2
        found, expected = (
            load_file(file) for file in (trained.folder / "vpp.safetensors", TRAINING / "expected_vpp.safetensors")
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
