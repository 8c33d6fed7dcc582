"""What a run says on the terminal, and what its final folder says to others."""

import re
import warnings
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.families import FAMILIES
from tests.tiny import attached, image, inputs_for
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.evaluate import load_grounder
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")


def test_a_run_says_loss_speed_and_time_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a dictionary with eleven learning rates, among transformers' bars for each file that it wrote."""
    data = write_data(tmp_path / "data", samples(8))
    monkeypatch.chdir(tmp_path)
    model, processor = FAMILIES["llava"].model(), FAMILIES["llava"].processor()
    model.save_pretrained("owner/tiny")
    monkeypatch.setattr(model.config, "_name_or_path", "owner/tiny")
    model.name_or_path = "owner/tiny"
    capsys.readouterr()
    changes = {"local_vpp": {"generator": "toy", "num_queries": 4, "image_size": 64, "projector_size": 16}}
    small = {"global_vpp": {"size": 32, "border": 4}, "lora_scope": "llm", "lora_r": 2, **changes}
    folder = train(recipe(data, tmp_path / "run", **small), model=model, processor=processor).folder

    said = capsys.readouterr()
    steps = [line for line in said.out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == [f"step {n}/4" for n in (1, 2, 3, 4)]
    assert all(re.fullmatch(r"step \S+  loss \S+  \S+ samples/s  0:\d\d:\d\d left", line) for line in steps)
    assert steps[-1].endswith("0:00:00 left")
    assert "lr/" not in said.out
    assert "Writing" not in said.err
    card = ModelCard.load(folder / "README.md")
    assert "[More Information Needed]" not in card.content  # PEFT's template
    assert "lora" in card.data.tags
    assert "4 steps over 8 samples" in card.text
    assert "- vpp.projector" in card.text
    assert "8 samples of `data.jsonl` (neutral)" in card.text
    assert str(tmp_path) not in card.content
    assert not list(tmp_path.glob("run/checkpoint-*/README.md"))
    monkeypatch.chdir(tmp_path / "run")
    Path("owner").symlink_to(tmp_path / "owner")
    image(0).save("photo.jpg")
    code = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0]
    exec(code.replace("BASE_MODEL", "owner/tiny"), {})  # it lay in a folder, of which nothing is said
    assert "<Grounding 'the dog'" in capsys.readouterr().out
    assert not [path for path in folder.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    (folder / "README.md").write_text("mine")  # people edit it
    load_grounder("final")  # here the run knows where its host is
    folder.rename(tmp_path / "shared")
    with pytest.raises(VPPError, match=r"holds LoRA of a host that lay in a folder, .* --vpp .*shared\)"):
        load_grounder(str(tmp_path / "shared"))


def test_untrained_prompts_are_not_warned_of_while_they_are_trained() -> None:
    """In any trainer's step; an answer of untrained prompts still has the warning."""
    model, processor = attached(trained=False)
    inputs = inputs_for(processor, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()(**inputs, labels=inputs["input_ids"])
    with pytest.warns(UserWarning, match="the attached VPP is untrained"):
        model.eval()(**inputs)
