"""Saved prompts say of what family they are, and their configuration is no larger than their weights."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.families import FAMILIES, attached_family
from tests.tiny import attached, tiny_config, tiny_llava, tiny_processor, toy_config
from vpp_plugins import (
    GlobalVPPConfig,
    Grounder,
    LocalVPPConfig,
    VPPConfig,
    VPPError,
    VPPProcessor,
    attach_vpp,
    load_vpp,
    save_vpp,
)
from vpp_plugins.attach import is_attached
from vpp_plugins.evaluate.settings import answer_settings

pytestmark = pytest.mark.usefixtures("toy")


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "vpp_config.json"
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


class TestFamilies:
    def folder_of(self, family: str, tmp_path: Path) -> Path:
        save_vpp(attached_family(family)[0], tmp_path / family)
        return tmp_path / family

    def test_the_file_names_what_it_was_trained_on(self, tmp_path: Path) -> None:
        values = json.loads((self.folder_of("qwen2_5_vl", tmp_path) / "vpp_config.json").read_text())

        assert values["trained_on"] == {
            "family": "qwen2_5_vl", "box_format": "qwen2.5-vl", "frame": "image", "unit": "pixels",
        }  # fmt: skip
        assert len(values["global_vpp"]["image_mean"]) == len(values["global_vpp"]["image_std"]) == 3

    @pytest.mark.parametrize("family", list(FAMILIES))
    def test_every_other_family_of_the_same_width_refuses_them(self, family: str, tmp_path: Path) -> None:
        """All tiny hosts are equally wide, as LLaVA-1.5 7B and Qwen2.5-VL 7B nearly are; by both doors."""
        folder = self.folder_of(family, tmp_path)
        for other in FAMILIES:
            if other == family:
                assert attach_vpp(FAMILIES[other].model(), folder).vpp.trained
                continue
            host = FAMILIES[other].model()
            with pytest.raises(VPPError, match=f"trained on another family .*{family}"):
                attach_vpp(host, folder)
            assert not is_attached(host)
            model = attach_vpp(host, toy_config())
            before = {name: value.clone() for name, value in model.vpp.state_dict().items()}
            with pytest.raises(VPPError, match=r"trained on another family|other settings"):
                load_vpp(model, folder)
            assert all(value.equal(before[name]) for name, value in model.vpp.state_dict().items())
            assert not model.vpp.trained

    def test_by_hand_they_can_be_started_from(self, tmp_path: Path) -> None:
        folder = self.folder_of("qwen2_vl", tmp_path)
        change(folder, lambda values: values.pop("trained_on"))

        assert attach_vpp(FAMILIES["qwen2_5_vl"].model(), folder).vpp.trained

    def test_0_1_0_wrote_neither_and_is_warned_of_once(self, tmp_path: Path) -> None:
        folder = self.folder_of("llava", tmp_path)
        change(folder, lambda values: [values.pop(name) for name in ("trained_on", "weights_sha256")])
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            attach_vpp(FAMILIES["llava"].model(), folder)

        (only,) = given
        assert "no SHA-256 of its weights, and does not say which family they are for" in str(only.message)

    @pytest.mark.parametrize("value", [3, "llava", ["llava"], {"family": None}, {"frame": "image"}, {"unit": 5}])
    def test_values_that_mean_nothing(self, tmp_path: Path, value: Any) -> None:
        folder = self.folder_of("llava", tmp_path)
        change(folder, lambda values: values.update(trained_on=value))

        with pytest.raises(VPPError, match="trained_on"):
            attach_vpp(FAMILIES["llava"].model(), folder)


@pytest.mark.parametrize("key", ["alpha", "seed", "trained_on", "num_queries"])
def test_a_key_that_stands_twice(key: str, tmp_path: Path) -> None:
    """A line that was copied to be edited: the last won without a word, wherever it stood."""
    save_vpp(attached()[0], tmp_path)
    path = tmp_path / "vpp_config.json"
    path.write_text(path.read_text().replace(f'"{key}":', f'"{key}": 1, "{key}":'))

    with pytest.raises(VPPError, match=f"vpp_config.json' is not valid JSON .the key '{key}' stands twice"):
        attach_vpp(tiny_llava(), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 0.5), ("style", "padding"), ("interior", "scaled"), ("resample", "nearest")]
)
def test_a_setting_that_was_changed_on_the_prompt_itself(name: str, value: Any, tmp_path: Path) -> None:
    """What was saved, and what an evaluation kept, said what it had been."""
    model, processor = attached()
    setattr(model.vpp.global_vpp, name, value)
    refused = pytest.raises(VPPError, match=rf"global_vpp\.{name} is {value!r}, but the prompts were attached with")
    with refused:
        save_vpp(model, tmp_path)
    with refused:
        model.save_pretrained(tmp_path / "host")
    with refused:
        answer_settings(Grounder(model, processor), {})


def test_what_cannot_be_read_or_written_is_a_sentence(tmp_path: Path) -> None:
    """A folder of that name was an error of Python, and an empty name this folder."""
    (tmp_path / "vpp_config.json").mkdir()
    with pytest.raises(VPPError, match=r"vpp_config\.json' cannot be read .Is a directory"):
        attach_vpp(tiny_llava(), tmp_path)
    with pytest.raises(VPPError, match="the folder to save to has no name"):
        save_vpp(attached()[0], "")


HUGE = {
    "num_queries": ("local_vpp", "num_queries", 10**9),
    "projector_size": ("local_vpp", "projector_size", 10**6),
    "image_size": ("local_vpp", "image_size", 32 * 10**6),
    "size": ("global_vpp", "size", 10**6),
    "font_size": ("global_vpp", "font_size", 10**9),
    "seed": ("", "seed", 10**30),
}


class TestSizes:
    @pytest.mark.parametrize("name", list(HUGE))
    def test_values_that_no_model_has(self, name: str, tmp_path: Path) -> None:
        part, key, value = HUGE[name]
        save_vpp(attached()[0], tmp_path)
        change(tmp_path, lambda values: (values[part] if part else values).update({key: value}))

        with pytest.raises(VPPError, match=rf"{key} .*{value}"):
            attach_vpp(tiny_llava(), tmp_path)

    def test_no_config_takes_them_either(self) -> None:
        with pytest.raises(VPPError, match=r"num_queries is at most 10000 in any model, but is 1000000000"):
            VPPConfig(local_vpp=LocalVPPConfig(num_queries=10**9))
        with pytest.raises(VPPError, match=r"global_vpp\.size is at most 4096"):
            VPPConfig(global_vpp=GlobalVPPConfig(size=10**6))

    @pytest.mark.parametrize(
        ("part", "name", "value"), [("global_vpp", "size", 4000), ("local_vpp", "projector_size", 60_000)]
    )
    def test_values_that_the_weights_beside_do_not_have(self, part: str, name: str, value: int, tmp_path: Path) -> None:
        save_vpp(attached()[0], tmp_path)
        change(tmp_path, lambda values: values[part].update({name: value}))

        with pytest.raises(VPPError, match=f"{part}.{name} is {value} there, and .* in the weights"):
            attach_vpp(tiny_llava(), tmp_path)

    @pytest.mark.parametrize("name", ["width", "feedforward", "heads", "encoder_layers", "decoder_layers"])
    def test_options_of_the_detector_too(self, name: str, tmp_path: Path) -> None:
        save_vpp(attached(config=tiny_config())[0], tmp_path)
        change(tmp_path, lambda values: values["local_vpp"]["generator_options"].update({name: 10**7}))

        with pytest.raises(VPPError, match=f"generator_options.{name} is 10000000 there, and nothing above 1024 in"):
            attach_vpp(tiny_llava(), tmp_path)

    def test_nothing_of_these_sizes_is_allocated(self, tmp_path: Path) -> None:
        """In a process that may take one gigabyte more than it has."""
        save_vpp(attached()[0], tmp_path)
        change(tmp_path, lambda values: values["local_vpp"].update(projector_size=65_000))
        change(tmp_path, lambda values: values["global_vpp"].update(size=4096))
        done = subprocess.run([sys.executable, "-c", ATTACHING, str(tmp_path)], capture_output=True, text=True)

        assert done.returncode == 0, done.stderr[-2000:]
        assert int(done.stdout) < 100_000  # kilobytes

    @pytest.mark.usefixtures("unchecked")
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        part=st.sampled_from(["global_vpp", "local_vpp"]),
        name=st.sampled_from(["size", "border", "font_size", "num_queries", "image_size", "projector_size", "alpha"]),
        value=st.one_of(
            st.integers(-(10**12), 10**12), st.integers(0, 200), st.floats(), st.none(), st.text(max_size=4)
        ),
    )
    def test_any_value_is_served_or_a_sentence(
        self, part: str, name: str, value: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("saved")
        save_vpp(attached()[0], folder)
        change(folder, lambda values: values[part].update({name: value}))
        try:
            model = attach_vpp(tiny_llava(), folder)
        except VPPError:
            return
        assert model.vpp.trained


OTHER_TYPES = {"int32": 1, "uint8": 1, "bool": 1, "complex64": 1, "float8_e4m3fn": 1, "float64": 0, "bfloat16": 0}


@pytest.mark.filterwarnings("ignore:.*has no SHA-256 of its weights:UserWarning")
@pytest.mark.parametrize("dtype", list(OTHER_TYPES))
def test_numbers_that_are_no_floats_are_not_cast(dtype: str, tmp_path: Path) -> None:
    """Whole numbers, truths and the real parts of complex numbers became prompts; fewer bits were an error of torch."""
    save_vpp(attached()[0], tmp_path)
    tensors = load_file(tmp_path / "vpp.safetensors")
    save_file({name: value.to(getattr(torch, dtype)) for name, value in tensors.items()}, tmp_path / "vpp.safetensors")
    change(tmp_path, lambda values: values.pop("weights_sha256"))
    if not OTHER_TYPES[dtype]:
        attach_vpp(tiny_llava(), tmp_path)
        return
    with pytest.raises(VPPError, match=f"of another type: .* {dtype}.*Nothing was loaded"):
        attach_vpp(tiny_llava(), tmp_path)


def test_prompts_of_pixels_that_the_processor_does_not_make(tmp_path: Path) -> None:
    """Loaded after the processor was made, they were laid over pixels of another mean."""
    other = tiny_processor()
    other.image_processor.image_mean = other.image_processor.image_std = [0.5] * 3
    model = attach_vpp(tiny_llava(), toy_config())
    VPPProcessor(other, model)
    save_vpp(model, tmp_path)
    target, _ = attached()
    before = {name: value.clone() for name, value in target.vpp.state_dict().items()}

    with pytest.raises(VPPError, match=r"were trained on pixels of mean \(0\.5, 0\.5, 0\.5\).* Nothing was loaded"):
        load_vpp(target, tmp_path)
    assert all(value.equal(before[name]) for name, value in target.vpp.state_dict().items())
    load_vpp(model, tmp_path)


ATTACHING = """
import resource
import sys

from tests.tiny import ToyPlugin, tiny_llava
from vpp_plugins import VPPError, attach_vpp
from vpp_plugins.plugins import manager

manager().register(ToyPlugin(), "toy")
host = tiny_llava()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    attach_vpp(host, sys.argv[1])
except VPPError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
