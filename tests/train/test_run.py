"""A run from recipe to report, and everything that a user can get wrong on the way."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families import FAMILIES, attached_family, family_inputs
from tests.train.runs import SIZE, recipe, run_llava, samples, toy_prompts, write_data
from vpp_plugins import VPPError, VPPProcessor, attach_vpp, load_vpp
from vpp_plugins.attach import Stopwatch
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.data.sample import Locate, Sample, Talk
from vpp_plugins.train import checkpoints
from vpp_plugins.train.checkpoints import check_room
from vpp_plugins.train.run import train
from vpp_plugins.train.trainer import VPPTrainer, without_decoder

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", samples(8))


def test_leaves_weights_that_load_a_record_and_a_page(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")

    trained = train(recipe(data, tmp_path / "run"), model=model, processor=processor)

    again = attach_vpp(type(model)._vpp_host_class.from_pretrained(trained.folder), toy_prompts())
    VPPProcessor.from_pretrained(trained.folder, again)
    load_vpp(again, trained.folder)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert not [name for name in load_file(trained.folder / "model.safetensors") if "vpp" in name]
    about = json.loads((tmp_path / "run/run.json").read_text())
    assert about["samples"] == 8
    assert about["recipe"]["max_steps"] == 4
    page = (tmp_path / "run/report.html").read_text()
    assert all(word in page for word in ("Loss", "vpp.global", about["data_sha256"], about["versions"]["torch"]))
    assert "<td>learning_rates</td><td><code>not used: learning_rate holds for every part" in page
    faults = page[page.index("Faults of the data") : page.index("Versions")]
    assert "<td>none</td>" in faults


def test_a_stopwatch_tells_where_the_time_goes_and_changes_nothing(data: Path, tmp_path: Path) -> None:
    watch, weights = Stopwatch(), []
    for run, timed in (("plain", None), ("timed", watch)):
        model, processor = attached_family("llava")
        settings = recipe(data, tmp_path / run, lora_scope="llm")
        weights.append(
            load_file(train(settings, model=model, processor=processor, watch=timed).folder / "vpp.safetensors")
        )

    parts = {"data", "vision encoder", "prompts", "language model", "gradients", "optimizer", "writing"}
    assert {*watch.seconds} == parts
    assert watch.sentence() in (tmp_path / "timed/report.html").read_text()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    for left in ("final", "checkpoint-4"):
        shutil.rmtree(tmp_path / "timed" / left)
    model, processor = attached_family("llava")
    settings = recipe(data, tmp_path / "timed", lora_scope="llm", resume_from_checkpoint="auto")
    train(settings, model=model, processor=processor, watch=Stopwatch())
    assert " s since it was resumed, of which " in (tmp_path / "timed/report.html").read_text()


def test_logs_every_groups_rate_and_the_speed(data: Path, tmp_path: Path) -> None:
    rates = {"lr": {"llm": 1e-3, "vpp": {"global": 2e-3}}, "freeze": ["vision"]}

    first = run_llava(data, tmp_path / "run", lr_scheduler_type="constant", **rates).history[0]

    assert first["lr/llm"] == 1e-3
    assert first["lr/vpp.global"] == 2e-3
    assert "lr/vision" not in first
    assert first["samples_per_second"] > 0


def test_a_host_that_is_frozen_stays_and_its_checkpoints_hold_prompts_alone(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    train(recipe(data, tmp_path / "run", freeze=["llm", "projector", "vision"]), model=model, processor=processor)

    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"vpp.{name}" for name in active_vpp(model).state_dict()}
    assert not (tmp_path / "run/checkpoint-4/model.safetensors").exists()


def test_without_answers_the_language_model_is_not_run(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer = model.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda *_: pytest.fail("the language model was run"))
    quiet = {
        "freeze": ["llm", "vision", "vpp.global", "vpp.local", "vpp.projector"],
        "answers": False,
        "losses": ["alignment"],
    }

    trained = train(recipe(data, tmp_path / "run", **quiet), model=model, processor=processor)

    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("model.multi_modal_projector.") for name in moved)
    assert "forward" not in vars(model.get_decoder())
    assert (trained.folder / "model.safetensors").is_file()


def test_text_alone_teaches_nothing_without_answers(tmp_path: Path) -> None:
    data = write_data(tmp_path, samples(8, text_only=[0, 1, 4, 5]))
    quiet = {
        "freeze": ["llm", "vision", "vpp.global", "vpp.local", "vpp.projector"],
        "train_sampling_strategy": "sequential",
    }
    model, processor = attached_family("llava")

    trained = train(
        recipe(data, tmp_path / "run", answers=False, losses=["words"], **quiet), model=model, processor=processor
    )

    assert trained.steps == 4
    assert not trained.skipped


@pytest.mark.parametrize("changes", [{}, {"freeze": ["llm"], "lora_scope": "llm"}])
def test_a_language_model_that_is_not_run_cannot_learn(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(VPPError, match=r"no losses but words the language model is not run.*add \"llm\" to freeze"):
        train(recipe(data, tmp_path / "run", answers=False, losses=["words"], **changes))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_familys_language_model_can_be_left_out(name: str) -> None:
    model, processor = attached_family(name)
    for layer in model.get_decoder().layers:
        layer.register_forward_pre_hook(lambda *_: pytest.fail("the language model was run"))

    with without_decoder(model):
        logits = model(**family_inputs(processor, [1, 1])).logits

    assert logits.shape[:2] == (2, 1)
    assert "forward" not in vars(model.get_decoder())


@pytest.mark.parametrize("changes", [{"losses": ["coordinates", "words"]}, {"losses": ["words"], "hide_boxes": 0.5}])
def test_answers_that_are_left_out_and_named_are_refused(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(VPPError, match="answers = false leaves the answers out"):
        train(recipe(data, tmp_path / "run", answers=False, **changes))


def test_a_bare_host_gets_the_recipes_prompts(data: Path, tmp_path: Path) -> None:
    family = FAMILIES["llava"]
    prompts = {
        "global_vpp": {"size": 32, "border": 4, "alpha": 0.8},
        "local_vpp": {"generator": "toy", "num_queries": 2, "image_size": 64, "projector_size": 16},
    }
    model = family.model()

    trained = train(recipe(data, tmp_path / "run", **prompts), model=model, processor=family.processor())

    saved = json.loads((trained.folder / "vpp_config.json").read_text())
    assert saved["global_vpp"]["alpha"] == 0.8
    assert saved["local_vpp"]["num_queries"] == 2


def test_prompts_that_were_gathered_from_several_devices_are_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP and ZeRO hand Trainer's _save the whole state; empty tensors, as when nobody gathered, are refused."""
    model, processor = attached_family("llava")
    made: list[VPPTrainer] = []
    monkeypatch.setattr(VPPTrainer, "train", lambda self, **_: made.append(self))
    train(recipe(data, tmp_path / "run", lora_scope="llm", lora_r=2), model=model, processor=processor)
    state = {
        name: value + 1 if value.is_floating_point() else value for name, value in made[0].model.state_dict().items()
    }

    made[0]._save(str(tmp_path / "gathered"), state_dict=state)

    found = load_file(tmp_path / "gathered/vpp.safetensors")
    expected = active_vpp(model).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value + 1) for name, value in expected.items())
    empty = {name: value.new_empty(0) if "vpp." in name else value for name, value in state.items()}
    with pytest.raises(VPPError, match="were saved empty"):
        made[0]._save(str(tmp_path / "empty"), state_dict=empty)


class TestExamination:
    def test_asks_during_training(self, data: Path, tmp_path: Path) -> None:
        questions = [Sample("q", "0.png", *SIZE, (Locate("the cup", ((1.0, 2.0, 30.0, 20.0),)),))]
        asked = write_data(tmp_path / "asked", questions)
        plain = run_llava(data, tmp_path / "plain")

        trained = run_llava(
            data, tmp_path / "run", eval_data=str(asked), eval_format="neutral", eval_steps=2, eval_protocol="default"
        )

        scores = [entry["eval_acc_50"] for entry in trained.history if "eval_acc_50" in entry]
        assert len(scores) == 2
        assert (tmp_path / "run/eval/step-2/report.html").is_file()
        assert "mean IoU" in (tmp_path / "run/report.html").read_text()
        expected = load_file(plain.folder / "vpp.safetensors")
        assert all(torch.equal(v, expected[name]) for name, v in load_file(trained.folder / "vpp.safetensors").items())


class TestMistakes:
    def test_another_family(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"for the family 'internvl', but the model is a 'llava'"):
            run_llava(data, tmp_path / "run", family="internvl")

    def test_no_samples(self, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", samples(1))
        data.write_text("\n")
        with pytest.raises(VPPError, match="is empty"):
            run_llava(data, tmp_path / "run")

    def test_nothing_but_text(self, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", samples(4, text_only=range(4)))
        with pytest.raises(VPPError, match="none of the 4 samples has an image"):
            run_llava(data, tmp_path / "run")

    def test_missing_images_are_listed_and_may_be_allowed(self, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", samples(8))
        (tmp_path / "data/2.png").unlink()

        with pytest.raises(VPPError, match=r"2 x image missing or unreadable \(s2: 2\.png; s6: 2\.png\)"):
            run_llava(data, tmp_path / "run", max_skipped=1)
        assert run_llava(data, tmp_path / "other", max_skipped=2).steps == 4

    def test_a_folder_that_cannot_be_written(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(VPPError, match=r"output_dir '.*' cannot be written"):
            run_llava(data, tmp_path / "file/run")

    def test_a_disk_that_is_nearly_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(VPPError, match="a checkpoint takes about"):
            check_room(tmp_path, 11)

    def test_boxes_outside_and_damaged_images_give_their_place_to_the_next(self, tmp_path: Path) -> None:
        bad = Sample("bad", "1.png", *SIZE, (Locate("the cup", ((90.0, 2.0, 99.0, 20.0),)), Talk("is it", "red")))
        other = Sample("other", "1.png", 20, 12, (Locate("the cup", ((1.0, 2.0, 9.0, 10.0),)),))
        data = write_data(tmp_path / "data", [*samples(1), bad, other, *samples(8)[3:]])
        (tmp_path / "data/3.png").write_bytes(b"no image")

        trained = run_llava(data, tmp_path / "run")

        about = json.loads((tmp_path / "run/run.json").read_text())
        assert about["faults"] == {"box wholly outside its image": 1}
        assert {reason.partition(":")[0] for reason in trained.skipped} == {"other", "s3", "s7"}
        assert any("40 x 24, but its boxes are for 20 x 12" in reason for reason in trained.skipped)
        assert "3 samples were skipped" in (tmp_path / "run/report.html").read_text()

    def test_more_skipped_than_allowed_stops(self, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", samples(8))
        (tmp_path / "data/3.png").write_bytes(b"no image")
        with pytest.raises(VPPError, match="samples were skipped, and max_skipped is 0"):
            run_llava(data, tmp_path / "run", max_skipped=0)

    def test_a_loss_that_is_nan_names_the_batch_and_keeps_the_last_checkpoint(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = VPPTrainer.compute_loss

        def compute_loss(self: VPPTrainer, *args: Any, **kwargs: Any) -> Any:
            return real(self, *args, **kwargs) * (torch.nan if self.state.global_step == 3 else 1)

        monkeypatch.setattr(VPPTrainer, "compute_loss", compute_loss)
        with pytest.raises(VPPError, match=r"the loss is nan at step 4, in the batch of s\d, s\d"):
            run_llava(data, tmp_path / "run")

        assert all(v.isfinite().all() for v in load_file(tmp_path / "run/checkpoint-2/vpp.safetensors").values())
        monkeypatch.undo()
        assert run_llava(data, tmp_path / "run", resume_from_checkpoint="auto").steps == 4

    def test_a_gradient_that_is_nan_does_too(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = VPPTrainer.compute_loss

        def compute_loss(self: VPPTrainer, *args: Any, **kwargs: Any) -> Any:
            loss = real(self, *args, **kwargs)
            if self.state.global_step == 3:
                loss.register_hook(lambda gradient: gradient * torch.nan)
            return loss

        monkeypatch.setattr(VPPTrainer, "compute_loss", compute_loss)
        with pytest.raises(VPPError, match=r"the gradient is nan at step 4, in the batch of s\d, s\d"):
            run_llava(data, tmp_path / "run")


class TestPreflight:
    @pytest.mark.parametrize(
        ("part", "said"),
        [
            ("vpp.global", "'vpp.global' is to be trained, but has no gradient"),
            ("llm", "exactly zero"),
            ("lora", "is nan"),
        ],
        ids=["none", "zero", "nan"],
    )
    def test_a_part_without_a_gradient_stops_the_run(
        self, part: str, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, processor = attached_family("llava")
        real = VPPTrainer._preflight

        def spoil(self: VPPTrainer) -> None:
            for group in self.groups:
                for parameter in group["params"] if group["name"] == part else []:
                    parameter.grad = {"vpp.global": None, "llm": torch.zeros_like(parameter)}.get(
                        part, torch.full_like(parameter, torch.nan)
                    )
            real(self)

        monkeypatch.setattr(VPPTrainer, "_preflight", spoil)
        before = {name: value.clone() for name, value in active_vpp(model).state_dict().items()}
        changes: dict[str, Any] = {"lora_scope": "llm", "lora_r": 2} if part == "lora" else {}
        with pytest.raises(VPPError, match=said):
            train(recipe(data, tmp_path / "run", **changes), model=model, processor=processor)

        after = active_vpp(model).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_waits_for_a_batch_with_a_image(self, tmp_path: Path) -> None:
        """The grey image of a batch of text alone has zero gradients, which is no fault."""
        data = write_data(tmp_path / "data", samples(12, text_only=[0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]))

        assert run_llava(data, tmp_path / "run", max_steps=6, per_device_train_batch_size=1).steps == 6
