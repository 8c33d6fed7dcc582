"""VPP-LLaVA is loaded from where it lies, in either layout, and described as its own code has it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import LlavaForConditionalGeneration

from tests.reference import FOLDER, reference
from tests.tiny import image, tiny_llava, tiny_processor
from vpp_adapters import llava
from vpp_adapters.vpp_llava.adapter import load_vpp_llava, process_as_trained, vpp_adapter, vpp_converter
from vpp_adapters.vpp_llava.reference import REFERENCE
from vpp_plugins import Grounder, VPPConfig, VPPError, VPPProcessor, attach_vpp, detach_vpp, is_attached, vpp_disabled
from vpp_plugins.attach import CONFIG_FILE
from vpp_plugins.plugins.registry import converter, describe


@pytest.fixture(scope="module")
def loaded(converted: Path) -> tuple[Any, VPPProcessor]:
    """Not to be changed."""
    return load_vpp_llava(converted, dtype=torch.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vpp-plugins"


def marked() -> LlavaForConditionalGeneration:
    model = tiny_llava()
    model.config.vpp_llava = True
    return model


class TestAdapter:
    def test_claims_marked_models_and_llava_the_others(self) -> None:
        assert vpp_adapter(nn.Linear(2, 2)) is None
        assert vpp_adapter(tiny_llava()) is None
        assert llava.vpp_adapter(marked()) is None
        assert describe(marked()).adapter == "vpp_llava"
        assert describe(tiny_llava()).adapter == "llava"

    def test_describes_the_host(self) -> None:
        backbone = describe(marked())

        assert (backbone.box_format, backbone.frame, backbone.never_ids) == ("vpp-llava", "square", (4,))
        assert backbone.defaults == REFERENCE
        model = marked()
        for path in (*backbone.vision_encoders, *backbone.projectors):
            model.get_submodule(path)

    def test_the_references_settings(self) -> None:
        """Section III of the paper, and what only the code says."""
        axes, local = REFERENCE.global_vpp, REFERENCE.local_vpp

        assert (axes.alpha, axes.border, axes.size, axes.style) == (0.95, 30, 336, "edge-0.1")
        assert (axes.interior, axes.resample) == ("scaled", "nearest")
        assert (local.num_queries, local.image_size, local.projector_size) == (100, 640, 1024)
        assert (local.overlay, local.overlay_units, local.mask_padding) == (True, "host", False)

    def test_images_are_processed_by_pillow_and_padded(self) -> None:
        processor = tiny_processor()
        processor.image_processor.image_mean = [0.1, 0.2, 0.3]

        process_as_trained(processor)

        settings = processor.image_processor
        assert type(settings).__name__ == "LlavaImageProcessorPil"
        assert (settings.do_pad, list(settings.image_mean)) == (True, [0.1, 0.2, 0.3])
        assert (settings.size["shortest_edge"], settings.crop_size["height"]) == (32, 32)


class TestConverterHook:
    def test_claims_the_references_layout(self, tmp_path: Path) -> None:
        assert vpp_converter(FOLDER / "checkpoint") is converter(FOLDER / "checkpoint")
        assert vpp_converter(tmp_path) is None

    def test_declines_transformers_layout(self, converted: Path) -> None:
        with pytest.raises(VPPError, match="no plugin converts"):
            converter(converted)


class TestLoading:
    def test_a_converted_folder(self, loaded: tuple[Any, VPPProcessor], converted: Path) -> None:
        model, processor = loaded

        assert isinstance(model, LlavaForConditionalGeneration)
        assert is_attached(model)
        assert model.vpp.trained
        assert not model.training
        assert model.vpp.config == VPPConfig.load(converted / CONFIG_FILE)
        assert model.vpp.token_id == processor.tokenizer.convert_tokens_to_ids("<|vpp|>") == 513
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.get_input_embeddings().weight.shape[0] == 514  # rows were there: nothing grew

    def test_dtype_is_the_checkpoints(self, converted: Path) -> None:
        model, _ = load_vpp_llava(str(converted))

        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}

    def test_options_go_to_from_pretrained(self, converted: Path) -> None:
        model, _ = load_vpp_llava(converted, dtype=torch.bfloat16, attn_implementation="eager")

        assert model.config._attn_implementation == "eager"
        assert model.vpp.global_vpp.prompt.dtype == torch.bfloat16

    def test_the_references_layout_is_converted_once(
        self, small_resnet: None, cache: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, _ = load_vpp_llava(FOLDER / "checkpoint")
        (folder,) = (path for path in cache.iterdir() if path.is_dir())
        assert folder.name.startswith("checkpoint-")
        monkeypatch.setattr("vpp_adapters.vpp_llava.convert.convert", None)

        again, _ = load_vpp_llava(FOLDER / "checkpoint")

        expected, _ = load_vpp_llava(converted)
        for each in (model, again):
            assert all(torch.equal(a, b) for a, b in zip(each.parameters(), expected.parameters(), strict=True))

    def test_a_changed_checkpoint_is_converted_anew(self, small_resnet: None, cache: Path, tmp_path: Path) -> None:
        source = tmp_path / "source"
        shutil.copytree(FOLDER / "checkpoint", source)
        load_vpp_llava(source)
        (source / "config.json").write_text((source / "config.json").read_text() + "\n")
        load_vpp_llava(source)

        assert len([path for path in cache.iterdir() if path.is_dir()]) == 2

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_a_hub_id(
        self, suffix: str, small_resnet: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The hub is stubbed; only what is needed is asked for."""
        asked: list[list[str]] = []
        shutil.copytree(FOLDER / "checkpoint", tmp_path / "snapshot")
        if suffix == "bin":
            file = tmp_path / "snapshot" / "model.safetensors"
            from safetensors.torch import load_file

            torch.save(load_file(file), file.with_name("pytorch_model.bin"))
            file.unlink()

        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            assert name == "owner/vpp-llava"
            asked.append(allow_patterns)
            return str(tmp_path / "snapshot")

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

        model, _ = load_vpp_llava("owner/vpp-llava")

        assert model.vpp.trained
        assert ["*.safetensors" in patterns for patterns in asked] == (
            [True] if suffix == "safetensors" else [True, False]
        )
        assert all("tokenizer.model" in patterns and "*.json" in patterns for patterns in asked)

    def test_a_saved_model_is_loaded_again(self, loaded: tuple[Any, VPPProcessor], tmp_path: Path) -> None:
        model, processor = loaded
        model.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")

        again, _ = load_vpp_llava(tmp_path / "saved")

        ours, theirs = model.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ('{"model_type": "llava"}', "is no VPP-LLaVA, but a llava: load it with from_pretrained"),
            ("{}", "is no VPP-LLaVA, but a model of unknown type"),
            (None, "no config.json in"),
        ],
    )
    def test_other_folders(self, settings: str | None, sentence: str, tmp_path: Path) -> None:
        if settings is not None:
            (tmp_path / "config.json").write_text(settings)

        with pytest.raises(VPPError, match=sentence):
            load_vpp_llava(tmp_path)

    @pytest.mark.parametrize("source", ["missing", "./owner/name", "/no/such/folder"])
    def test_a_folder_that_is_not_there(self, source: str) -> None:
        with pytest.raises(VPPError, match=f"there is no '{source}': give the folder of a checkpoint, or"):
            load_vpp_llava(source)

    @pytest.mark.parametrize("lost", ["vpp_config.json", "vpp.safetensors"])
    def test_a_converted_folder_without_its_prompts(self, lost: str, converted: Path, tmp_path: Path) -> None:
        """Said at once, not after the host's gigabytes were read."""
        for name in {"config.json", "vpp_config.json", "vpp.safetensors"} - {lost}:
            shutil.copy(converted / name, tmp_path)

        with pytest.raises(
            VPPError, match=f"no '{lost}' in .*, which holds the prompts of VPP-LLaVA: convert it again"
        ):
            load_vpp_llava(tmp_path)

    def test_a_hub_id_that_is_not_there(self) -> None:
        with pytest.raises(VPPError, match="'owner/name' is not here and could not be fetched from the hub"):
            load_vpp_llava("owner/name")


class TestUse:
    def test_neither_placeholder_is_answered(self, converted: Path) -> None:
        model, processor = load_vpp_llava(converted, dtype=torch.float32)
        bias = torch.zeros(514)
        bias[512:] = 1e4
        model.lm_head.register_parameter("bias", nn.Parameter(bias))
        inputs = processor(images=image(), text="USER: <image>\nwhere? ASSISTANT:", return_tensors="pt")

        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]

        assert (answer < 512).all()
        with vpp_disabled(model):  # the bare host's answers are its own
            bare = processor(images=image(), text="USER: <image>\nwhere? ASSISTANT:", return_tensors="pt")
            answer = model.generate(**bare, max_new_tokens=4, do_sample=False)[:, bare["input_ids"].shape[1] :]
        assert (answer >= 512).all()

    def test_grounder_asks_as_the_reference_evaluates(
        self, loaded: tuple[Any, VPPProcessor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, processor = loaded
        asked: list[str] = []
        call = VPPProcessor.__call__
        monkeypatch.setattr(
            VPPProcessor,
            "__call__",
            lambda self, images=None, text=None, **kwargs: asked.extend(text) or call(self, images, text, **kwargs),
        )
        row = reference("text")["eval"][0]

        grounding = Grounder(model, processor, max_new_tokens=4)(
            Image.open(FOLDER / "image0.png"), row["question"]["sent"]
        )

        assert asked == [row["prompt"]]
        assert grounding.status == "unparsable"

    def test_detaching_leaves_the_host(self, converted: Path) -> None:
        model, _ = load_vpp_llava(converted)
        host = LlavaForConditionalGeneration.from_pretrained(converted)

        detach_vpp(model)

        assert type(model) is LlavaForConditionalGeneration
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), host.parameters(), strict=True))

    def test_a_new_vpp_llava_starts_from_the_references_settings(self) -> None:
        model = attach_vpp(marked())

        assert model.vpp.config == REFERENCE
        assert not model.vpp.trained
