"""Kind 9: whatever changes greedy answers is set by the protocol, or stands in run.json and is shown by compare."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from tests.evaluate.conftest import make_rows
from tests.tiny import TOY_GLOBAL, attached, image, tiny_config, tiny_llava, tiny_processor, toy_config
from vpp_plugins import Grounder, VPPError, VPPProcessor, attach_vpp, vpp_disabled
from vpp_plugins.evaluate.benchmark import measure, rescore
from vpp_plugins.evaluate.compare import compare
from vpp_plugins.evaluate.models import fingerprint_of_model
from vpp_plugins.evaluate.protocol import protocol, protocols
from vpp_plugins.evaluate.results import load_evaluation
from vpp_plugins.evaluate.run import generation_of, read_run
from vpp_plugins.evaluate.settings import OUTPUTS, SAMPLING, answer_settings
from vpp_plugins.ground import GREEDY

pytestmark = pytest.mark.usefixtures("toy")

METADATA = {"transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash"}
FIELDS = sorted(vars(GenerationConfig()).keys() - METADATA)
"""All that a model's own generation_config.json may hold, of the installed transformers: a new one is among them."""
VALUES: dict[str, Any] = {
    "bad_words_ids": [[3]],
    "begin_suppress_tokens": [3],
    "cache_implementation": "static",
    "continuous_batching_config": {"max_queue_size": 3},
    "early_stopping": True,
    "exponential_decay_length_penalty": [1, 1.5],
    "force_words_ids": [[3]],
    "max_time": 1e-9,
    "sequence_bias": [[[3], 10.0]],
    "speculation_type": "dflash",
    "stop_strings": ["cup"],
    "suppress_tokens": [3],
    "use_cache": False,
    "watermarking_config": {"bias": 3.0},
}
"""Values of the fields that take no number."""
UNHEARD = {*SAMPLING, *OUTPUTS}


def asked_of(grounder: Grounder, name: str = "default") -> dict[str, dict[str, Any]]:
    return answer_settings(grounder, generation_of(protocol(name)))


def bare() -> Grounder:
    return Grounder(tiny_llava(), tiny_processor(), max_new_tokens=6)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_host_s_own_configuration_is_set_or_kept(field: str) -> None:
    """A model whose generation_config.json had repetition_penalty 1.5 was measured like one without, unnamed."""
    for name in protocols():
        generation = GROUNDER.generation(**generation_of(protocol(name)))
        own = GROUNDER.model.generation_config
        before, kept = asked_of(GROUNDER, name), getattr(own, field, None)
        setattr(own, field, VALUES.get(field, 7))
        after = asked_of(GROUNDER, name)
        setattr(own, field, kept)
        decided = field in generation or field in UNHEARD
        assert (before == after) == decided, f"{field} is neither set by the protocol '{name}' nor kept"


GROUNDER = bare()


@pytest.mark.parametrize("field", sorted(UNHEARD | GREEDY.keys()))
def test_what_is_not_kept_changes_no_answer(field: str) -> None:
    grounder = bare()
    expected = [text for text, _ in grounder.ask([image()], ["where is the cup"])]
    own = grounder.model.generation_config
    if field == "num_return_sequences":
        own.num_beams = 2  # else transformers refuses it
    fraction = field.endswith(("_p", "_h", "cutoff"))
    setattr(own, field, VALUES.get(field, 0.1 if fraction else 2))
    assert [text for text, _ in grounder.ask([image()], ["where is the cup"])] == expected


def test_stop_strings_of_the_host_s_own_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a ValueError of transformers about an argument that nobody could give."""
    grounder, given = bare(), {}

    def generate(**arguments: Any) -> torch.Tensor:
        given.update(arguments)
        return arguments["input_ids"]

    monkeypatch.setattr(grounder.model, "generate", generate)
    grounder.ask([image()], ["where is the cup"])
    assert "tokenizer" not in given
    grounder.model.generation_config.stop_strings = ["cup"]
    grounder.ask([image()], ["where is the cup"])
    assert given["tokenizer"] is grounder.processor.tokenizer


def penalise(grounder: Grounder) -> None:
    grounder.model.generation_config.repetition_penalty = 1.5


def resize(grounder: Grounder) -> None:
    grounder.processor.image_processor.do_normalize = False


def retemplate(grounder: Grounder) -> None:
    grounder.processor.chat_template = "{{ messages[0]['content'][1]['text'] }}<image>"


def retokenise(grounder: Grounder) -> None:
    grounder.processor.tokenizer.add_tokens(["cups"])


def halve(grounder: Grounder) -> None:
    grounder.model.to(torch.bfloat16)


def attend(grounder: Grounder) -> None:
    grounder.model.set_attn_implementation("eager")


def look_elsewhere(grounder: Grounder) -> None:
    """The same weights, of which another layer is read."""
    grounder.model.config.vision_feature_layer = -1


CHANGES: dict[str, tuple[Callable[[Grounder], None], str]] = {
    "a penalty": (penalise, r"generation\.repetition_penalty \(not set and 1\.5\)"),
    "an image setting": (resize, r"image_processor\.do_normalize \(True and False\)"),
    "a chat template": (retemplate, r"processor\.chat_template_sha256 \("),
    "a tokenizer": (retokenise, r"processor\.tokenizer_sha256 \("),
    "a dtype": (halve, r"host\.dtype \(\['float32'\] and \['bfloat16'\]\)"),
    "an attention": (attend, r"host\.attention \(\['sdpa'\] and \['eager'\]\)"),
    "a configuration": (look_elsewhere, r"host\.config_sha256 \("),
}


def measured(grounder: Grounder, out: Path) -> dict[str, Any]:
    return measure(grounder, make_rows(2), protocol("default"), out, model="tiny", data="rows")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    measured(bare(), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("case", list(CHANGES))
def test_compare_names_what_differs(case: str, plain: Path, tmp_path: Path) -> None:
    change, said = CHANGES[case]
    grounder = bare()
    change(grounder)
    measured(grounder, tmp_path / "other")
    reasons = compare(load_evaluation(plain), load_evaluation(tmp_path / "other")).reasons
    assert [reason for reason in reasons if re.search(f"^Settings of A and B differ: .*{said}", reason)], reasons


def test_the_same_twice_names_nothing_and_goes_on(plain: Path, tmp_path: Path) -> None:
    measured(bare(), tmp_path / "again")
    assert not [
        one for one in compare(load_evaluation(plain), load_evaluation(tmp_path / "again")).reasons if "Settings" in one
    ]
    assert measured(bare(), plain)["figures"]["rows"] == 2


def test_a_folder_is_not_continued_with_another_setting(tmp_path: Path) -> None:
    measured(bare(), tmp_path / "out")
    grounder = bare()
    penalise(grounder)
    with pytest.raises(VPPError, match=r"its generation\.repetition_penalty is None, and now 1\.5"):
        measured(grounder, tmp_path / "out")


def test_an_evaluation_without_settings_is_said_to_have_none(plain: Path, tmp_path: Path) -> None:
    rescore(plain, "default", tmp_path / "old")
    path = tmp_path / "old" / "run.json"
    values = {name: value for name, value in read_run(tmp_path / "old").items() if name != "generation"}
    path.write_text(json.dumps(values))
    reasons = compare(load_evaluation(plain), load_evaluation(tmp_path / "old")).reasons
    assert "Settings of A and B differ: generation (known and not known)." in reasons


def test_prompts_are_kept_with_what_is_no_weight_of_theirs() -> None:
    """alpha, border and interior change the answers of equal weights."""
    one, other = (
        asked_of(Grounder(*attached(config=toy_config(global_vpp=replace(TOY_GLOBAL, alpha=alpha)))))
        for alpha in (0.95, 0.5)
    )
    assert one["prompts"]["global_vpp"]["alpha"] != other["prompts"]["global_vpp"]["alpha"]
    model, processor = attached()
    with vpp_disabled(model):
        assert asked_of(Grounder(model, processor))["prompts"] == {"disabled": True}


def test_every_number_of_a_model_is_in_its_fingerprint() -> None:
    """Only parameters were: another frozen batch norm, or the pocket model's frozen encoder, passed for the same."""
    model, processor = attached(config=tiny_config())
    known = fingerprint_of_model(model)
    Grounder(model, processor, max_new_tokens=1).ask([image()], ["where is the cup"])
    assert fingerprint_of_model(model) == known
    numbers = dict(chain(model.named_parameters(), model.named_buffers()))
    assert any("running_var" in name for name in numbers)
    for name, value in numbers.items():
        kept = value.data.clone()
        value.data[(0,) * value.ndim] += 1
        assert fingerprint_of_model(model) != known, name
        value.data.copy_(kept)
    assert fingerprint_of_model(model) == known


def test_the_placeholder_makes_no_other_tokenizer() -> None:
    ours, theirs = asked_of(Grounder(*attached())), asked_of(bare())
    assert ours["processor"]["tokenizer_sha256"] == theirs["processor"]["tokenizer_sha256"]
    assert ours["host"] == theirs["host"]


def test_adapters_are_kept_while_they_are_on() -> None:
    model = attach_vpp(tiny_llava(), toy_config())
    processor = VPPProcessor(tiny_processor(), model)
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    grounder = Grounder(wrapped, processor)
    assert asked_of(grounder)["adapters"]["default"]["lora_alpha"] == 4
    with wrapped.disable_adapter():
        assert asked_of(grounder)["adapters"] == {}
