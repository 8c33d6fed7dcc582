"""A bad value of a recipe is one sentence, before data or a model are loaded: it took up to 30 s, or a traceback."""

from pathlib import Path

import pytest

from vpp_plugins import VPPError
from vpp_plugins.train import Recipe, train

BASE = ["model='/nowhere/a-model'", "data='/nowhere/data.jsonl'"]
BAD = {
    "lr.=1": r"the change 'lr\.=1' of the recipe cannot be read",
    "lr..llm=1": "cannot be read",
    "save_steps=1e999": "'save_steps' should be float, but is inf",
    "save_steps=nan": "but is nan",
    "max_steps=" + "9" * 5000: "'max_steps' should be int",
    "lr.llm=" + "9" * 5000: "should be a number, 0 or more",
    "lr" + ".a" * 3000 + "=1": "cannot be read .more than 20 tables",
    "freeze=" + "[" * 5000: "'freeze' should be",
    "freeze=" + "[" * 500 + "]" * 500: "'freeze' should be",
    "seed=" + "9" * 30: "'seed' should be from 0 to",
    "lr.llm=-1": "0 or more, but is -1",
    "lr.llm=nan": "0 or more, but is nan",
    "learning_rate=-1": "'learning_rate' should be from 0",
    "per_device_train_batch_size=0": "should be from 1",
    "gradient_accumulation_steps=0": "should be from 1",
    "max_samples=-3": "should be from 1",
    "average_weights=7": "from 0 to 1, but is 7",
    "hide_boxes=3": "from 0 to 1, but is 3",
    "losses=['nope']": "no loss is called 'nope'",
    "losses=['words:x']": "written name:weight",
    "optim=nope": "nope is not a valid",
    "learning_rates=nope": "no preset is called 'nope'",
    "lora_scope=nope": "no LoRA scope is called 'nope'",
    "data_format=nope": "No data format is called 'nope'",
    "box_format=nope": "No box codec is called 'nope'",
    "dtype=bfloat61": "no dtype is called 'bfloat61'. Did you mean 'bfloat16'",
    "attn_implementation=sdpaa": "no attention is called 'sdpaa'. Did you mean 'sdpa'",
    "data_pixels=[4]": r"data_pixels names the least and the most pixels, but is \[4\]",
    "data_pixels=[9, 4]": "no image has so many",
    "output_dir=\ud800": "cannot be read",
}


@pytest.mark.parametrize("change", list(BAD), ids=lambda change: ascii(change[:20]))
def test_a_bad_change_is_one_sentence(change: str, tmp_path: Path) -> None:
    """What is loaded first, the data, is not there: that would be another message."""
    with pytest.raises(VPPError, match=BAD[change]) as error:
        train(Recipe.load(changes=[*BASE, f"output_dir='{tmp_path / 'run'}'", change]))
    assert len(str(error.value)) < 1500
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", [b"a" + b".a" * 9000 + b"=1", b"model = " + b"[" * 9000, b"max_steps = " + b"1" * 5000, b"model = '\xff'"]
)
def test_a_bad_file_is_one_sentence(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(text)
    with pytest.raises(VPPError, match=r"bad\.toml' is not valid TOML"):
        Recipe.load(tmp_path / "bad.toml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="cannot be read"):
        Recipe.load(tmp_path)
