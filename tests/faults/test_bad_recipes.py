"""A bad value of a recipe is one sentence, before data or a model are loaded: it took up to 30 s, or a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.commands import vpp
from vpp_plugins import VPPError
from vpp_plugins.train import Recipe, train
from vpp_plugins.train.recipe import key_names, key_types

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
    "answers=false": "leaves nothing to learn",
    "lora_first_layer=3": "nothing to act on without LoRA",
    "optim=nope": "nope is not a valid",
    "learning_rates=nope": "no preset is called 'nope'",
    "lora_scope=nope": "no LoRA scope is called 'nope'",
    "data_format=nope": "no data format is called 'nope'",
    "box_format=nope": "no box codec is called 'nope'",
    "dtype=bfloat61": "no dtype is called 'bfloat61'. Did you mean 'bfloat16'",
    "attn_implementation=sdpaa": "no attention is called 'sdpaa'. Did you mean 'sdpa'",
    "data_pixels=[4]": r"data_pixels names the least and the most pixels, but is \[4\]",
    "data_pixels=[9, 4]": "no image has so many",
    "output_dir=\ud800": "cannot be read",
    "fr" + "\udcff" * 500: "is written key=value",
    "losse" + "\udcc1" * 500 + "=1": "a recipe has no key 'losse",
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


@pytest.mark.parametrize("rate", ["nan", "inf", "-1"])
@pytest.mark.parametrize("option", ["--lr", "--backbone-lr"])
def test_a_detector_s_learning_rate_is_refused_too(option: str, rate: str, tmp_path: Path) -> None:
    """It trained for all of its steps, to weights that are no numbers."""
    ended = vpp("train-detector", tmp_path / "none.json", "--out", tmp_path / "out", f"{option}={rate}")
    assert (ended.code, f"should be a number, 0 or more, but is {float(rate)}" in ended.complained) == (1, True)


SOON = {
    "model = ": "is not valid TOML",
    "max_stepz = 3": "no key 'max_stepz'. Did you mean 'max_steps'?",
    "lora_r = 'many'": "'lora_r' should be int",
    "hide_boxes = 3": "'hide_boxes' should be from 0 to 1",
    "lr.vpp.globl = 1e-4": "no part of a model is called 'vpp.globl'",
    "losses = ['words:x']": "written name:weight",
    "unfreeze.llm = 0.5\nfreeze = ['llm']": "freeze and unfreeze both name 'llm'",
}
_CHILD = """
import sys
from pathlib import Path
from vpp_plugins.cli import main
for number in range(int(sys.argv[1])):
    sys.argv = ["vpp", "train", f"{number}.toml", "--set", "max_steps=3"]
    try:
        main()
    except SystemExit as stop:
        print(stop.code, [name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_a_bad_file_is_refused_before_torch_and_transformers_are_imported(tmp_path: Path) -> None:
    """That takes seconds, also beside keys of transformers' own; their types alone need it."""
    for number, line in enumerate(SOON):
        (tmp_path / f"{number}.toml").write_text(f"{line}\nmodel = 'm'\ndata = 'd'\noutput_dir = 'o'\nseed = 1\n")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(len(SOON))], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["1 []"] * len(SOON), done.stdout
    complained = " ".join(done.stderr.split())
    assert [said for said in SOON.values() if said not in complained] == []


def test_keys_are_known_without_transformers_as_with_it() -> None:
    assert {*key_names()} == {*key_types()}
