"""Kind 5: what is read back is trusted. A damaged checkpoint is refused by name, and never gone on from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.damage import DAMAGES, damaged, delete, files_of, same_files
from tests.tiny import attached, tiny_llava
from tests.train.runs import recipe, samples, write_data
from tests.train.test_resume import run
from vpp_plugins import VPPError
from vpp_plugins.attach import load_vpp, save_vpp
from vpp_plugins.files import MANIFEST
from vpp_plugins.train.checkpoints import open_run

pytestmark = pytest.mark.usefixtures("toy")
COMPAT = Path(__file__).parent.parent / "compat"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps with its last checkpoint, before its final weights were written."""
    from tests.tiny import ToyPlugin
    from vpp_plugins.plugins.registry import manager

    folder = tmp_path_factory.mktemp("run")
    manager().register(ToyPlugin(), "toy for the run")
    try:
        run("whole", write_data(folder / "data", samples(10)), folder / "run")
    finally:
        manager().unregister(name="toy for the run")
    shutil.rmtree(folder / "run" / "final")
    return folder / "run"


def check_every_file(finished: Path, tmp_path: Path, seeds: range) -> None:
    checkpoint, copy = finished / "checkpoint-5", tmp_path / "run" / "checkpoint-5"
    for path in files_of(checkpoint):
        for damage in DAMAGES:
            for seed in seeds:
                damaged(checkpoint, copy, path, damage, f"{path.name} {damage.__name__} {seed}")
                if same_files(checkpoint, copy):
                    continue
                if path.name == MANIFEST and damage is delete:
                    with pytest.warns(UserWarning, match="has no manifest"):
                        open_run(tmp_path / "run", "auto")
                    continue
                with pytest.raises(VPPError, match=r"checkpoint-5"):
                    open_run(tmp_path / "run", "auto")


def test_damage_to_any_file_is_refused(finished: Path, tmp_path: Path) -> None:
    check_every_file(finished, tmp_path, range(1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_much_damage_to_any_file_is_refused(finished: Path, tmp_path: Path) -> None:
    check_every_file(finished, tmp_path, range(1, 30))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_missing_state_is_named(name: str, hashed: bool, finished: Path, tmp_path: Path) -> None:
    """The run went on without a word, to other weights."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/checkpoint-5" / name).unlink()
    if not hashed:
        (tmp_path / "run/checkpoint-5" / MANIFEST).unlink()

    with pytest.raises(VPPError, match=rf"lacks the .* \({name.replace('_state', '_state.')}"):
        open_run(tmp_path / "run", "auto")


def test_training_itself_refuses_a_flipped_bit(finished: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(10))
    shutil.copytree(finished, tmp_path / "run")
    flipped = tmp_path / "run/checkpoint-5/optimizer.pt"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)

    with pytest.raises(VPPError, match=r"optimizer\.pt' was changed since it was saved"):
        run("whole", data, tmp_path / "run")


def test_weights_that_were_not_saved_with_it_are_refused(finished: Path, tmp_path: Path) -> None:
    """Every file `model*.safetensors` is loaded."""
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run/checkpoint-5"
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")

    with pytest.raises(VPPError, match=r"model-2\.safetensors' was not saved with"):
        open_run(tmp_path / "run", "auto")


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "trainer_state.json", "scheduler.pt"])
def test_a_truncated_file_of_a_checkpoint_of_0_1_0_is_named(name: str, tmp_path: Path) -> None:
    shutil.copytree(COMPAT / "training_0_1_0", tmp_path / "run")
    path = tmp_path / "run/checkpoint-1" / name
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.warns(UserWarning, match="no manifest"), pytest.raises(VPPError, match=rf"{name}' is damaged"):
        open_run(tmp_path / "run", "auto")


class TestPrompts:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        save_vpp(attached(tiny_llava())[0], tmp_path / "saved")
        return tmp_path / "saved"

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_weights_are_refused_and_leave_the_prompts_as_they_are(
        self, damage: Callable[..., None], saved: Path, tmp_path: Path
    ) -> None:
        model, _ = attached(tiny_llava())
        before = {name: value.clone() for name, value in model.vpp.state_dict().items()}
        for seed in range(8):
            damaged(saved, tmp_path / "copy", saved / "vpp.safetensors", damage, f"{damage.__name__} {seed}")
            with pytest.raises(VPPError, match=r"vpp\.safetensors|vpp_config\.json"):
                load_vpp(model, tmp_path / "copy")
        assert all(torch.equal(value, before[name]) for name, value in model.vpp.state_dict().items())

    def test_a_configuration_edited_by_hand_is_read(self, saved: Path) -> None:
        path = saved / "vpp_config.json"
        path.write_text(path.read_text().replace("\n", "\n\n"))

        model, _ = attached(tiny_llava())
        load_vpp(model, saved)

        state = model.vpp.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in load_file(saved / "vpp.safetensors").items())

    def test_those_of_another_folder_are_refused(self, saved: Path, tmp_path: Path) -> None:
        other = attached(tiny_llava())[0]
        with torch.no_grad():
            next(other.vpp.parameters()).add_(1)
        save_vpp(other, tmp_path / "other")
        shutil.copy(tmp_path / "other/vpp.safetensors", saved)

        with pytest.raises(VPPError, match="is of other prompts than"):
            load_vpp(other, saved)

    def test_those_of_0_1_0_load_with_a_warning(self, saved: Path) -> None:
        path = saved / "vpp_config.json"
        values = json.loads(path.read_text())
        del values["weights_sha256"]
        path.write_text(json.dumps(values))

        with pytest.warns(UserWarning, match="no SHA-256 of its weights"):
            load_vpp(attached(tiny_llava())[0], saved)


def test_two_runs_do_not_share_a_folder(finished: Path, tmp_path: Path) -> None:
    from vpp_plugins.files import only_one
    from vpp_plugins.train import train

    data = write_data(tmp_path / "data", samples(4))
    with (
        only_one(tmp_path / "run", "training run", advice="choose another output_dir"),
        pytest.raises(VPPError, match=r"another training run is writing '.*run': wait for its end, or choose"),
    ):
        train(recipe(data, tmp_path / "run"))
