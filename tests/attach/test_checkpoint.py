"""Saved prompts fit as a whole or are refused as a whole, each time with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from tests.tiny import (
    FULL,
    TOY_GLOBAL,
    TOY_LOCAL,
    attached,
    inputs_for,
    tiny_config,
    tiny_llava,
    tiny_processor,
    toy_config,
)
from vpp_plugins import VPPConfig, VPPError, VPPProcessor, attach_vpp, load_vpp, save_vpp, vpp_disabled
from vpp_plugins.attach.checkpoint import resolve, write_vpp

pytestmark = pytest.mark.usefixtures("toy")

PROMPT = "global_prompt.prompt"


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors: dict[str, Any] = load_file(folder / "vpp.safetensors") | {
        k.replace("__", "."): v for k, v in changes.items()
    }
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "vpp.safetensors")


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "vpp_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing key": (
        lambda f: change_weights(f, global_prompt__prompt=None),
        rf"vpp\.safetensors' does not fit: 1 missing: {PROMPT}\. Nothing was loaded",
    ),
    "many missing keys": (
        lambda f: save_file({PROMPT: torch.zeros(3, 32, 32)}, f / "vpp.safetensors"),
        r"7 missing: .*, .*, .* and 4 more\.",
    ),
    "a foreign key": (
        lambda f: change_weights(f, lm_head__weight=torch.zeros(2)),
        r"1 not expected: lm_head\.weight",
    ),
    "a wrong shape": (
        lambda f: change_weights(f, global_prompt__prompt=torch.zeros(3, 31, 32)),
        rf"1 of another shape: {PROMPT} \(3, 31, 32\) instead of \(3, 32, 32\)",
    ),
    "not a number": (
        lambda f: change_weights(f, global_prompt__prompt=torch.full((3, 32, 32), torch.nan)),
        f"1 NaN or infinite: {PROMPT}",
    ),
    "two problems": (
        lambda f: change_weights(f, global_prompt__prompt=torch.full((3, 2, 2), torch.inf)),
        "another shape: .*; 1 NaN or infinite",
    ),
    "a truncated file": (
        lambda f: truncate(f / "vpp.safetensors"),
        r"vpp\.safetensors' is damaged or truncated \(.*\): save or download it again",
    ),
    "an empty file": (lambda f: (f / "vpp.safetensors").write_bytes(b""), "is damaged or truncated"),
    "no weights": (
        lambda f: (f / "vpp.safetensors").unlink(),
        r"no 'vpp\.safetensors' in '.*': give a folder that save_vpp wrote",
    ),
    "no configuration": (
        lambda f: (f / "vpp_config.json").unlink(),
        r"no 'vpp_config\.json' in '.*': give a folder that save_vpp wrote",
    ),
    "no JSON": (lambda f: truncate(f / "vpp_config.json"), r"vpp_config\.json' is not valid JSON"),
    "an unknown key": (
        lambda f: change_config(f, lambda values: values["local_vpp"].update(num_querys=4)),
        r"unknown configuration key 'local_vpp\.num_querys'\. Did you mean 'num_queries'\?",
    ),
    "an unknown part": (
        lambda f: change_config(f, lambda values: values.update(globl_vpp=None)),
        r"unknown configuration key 'globl_vpp'\. Did you mean 'global_vpp'\?",
    ),
}


class TestDamage:
    @pytest.mark.parametrize("case", list(DAMAGE))
    def test_is_named_and_changes_nothing(self, case: str, tmp_path: Path) -> None:
        damage, message = DAMAGE[case]
        save_vpp(attached(config=toy_config(seed=5))[0], tmp_path)
        damage(tmp_path)
        model, _ = attached(config=toy_config(seed=6), trained=False)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        config = model.vpp.config

        with pytest.raises(VPPError, match=message):
            load_vpp(model, tmp_path)

        assert model.vpp.trained is False
        assert model.vpp.config == config
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        with pytest.raises(VPPError):
            attach_vpp(tiny_llava(), tmp_path)

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        model, _ = attached()

        with pytest.raises(VPPError, match=r"there is no '.*gone': give a folder .* or a hub id 'owner/name'"):
            load_vpp(model, tmp_path / "gone")
        with pytest.raises(VPPError, match=r"there is no '\./me/gone'"):
            load_vpp(model, "./me/gone")


class TestOtherSettings:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (toy_config(global_vpp=replace(TOY_GLOBAL, alpha=0.5)), r"global_vpp\.alpha is 0\.95 there and 0\.5 here"),
            (toy_config(local_vpp=None), r"local_vpp is present there and absent here"),
            (
                toy_config(local_vpp=replace(TOY_LOCAL, num_queries=6)),
                r"local_vpp\.num_queries is 4 there and 6 here\. .* attach_vpp\(model, folder\) builds what was saved",
            ),
        ],
        ids=["alpha", "no local prompt", "queries"],
    )
    def test_are_refused(self, config: VPPConfig, message: str, tmp_path: Path) -> None:
        """Weights would fit another alpha, and act differently without a word."""
        save_vpp(attached()[0], tmp_path)
        model, _ = attached(config=config)

        with pytest.raises(VPPError, match=message):
            load_vpp(model, tmp_path)

    def test_the_seed_and_first_weights_may_differ(self, tmp_path: Path) -> None:
        saved, _ = attached(config=toy_config(seed=4))
        saved.vpp.config = replace(saved.vpp.config, local_vpp=replace(TOY_LOCAL, weights="/gone"))
        save_vpp(saved, tmp_path)
        model, _ = attached(config=toy_config(seed=5))

        load_vpp(model, tmp_path)

        assert all(torch.equal(v, saved.vpp.state_dict()[k]) for k, v in model.vpp.state_dict().items())

    def test_the_normalisation_comes_with_the_prompt(self, tmp_path: Path) -> None:
        """Loading before the VPPProcessor: the prompt is in units of the pixels that it was trained on."""
        host = tiny_processor()
        host.image_processor.image_mean = host.image_processor.image_std = [0.4] * 3
        saved = attach_vpp(tiny_llava(), toy_config())
        VPPProcessor(host, saved)
        save_vpp(saved, tmp_path)
        model = attach_vpp(tiny_llava(), toy_config())

        load_vpp(model, tmp_path)

        assert model.vpp.global_vpp.image_mean == model.vpp.config.global_vpp.image_mean == (0.4, 0.4, 0.4)
        VPPProcessor(host, model)


class TestHub:
    @pytest.mark.parametrize(
        "error", [HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError, ConnectionError]
    )
    def test_failures_are_named(self, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise error.__new__(error)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

        with pytest.raises(VPPError, match=f"'me/x' is not here and could not be fetched .*{error.__name__}"):
            resolve("me/x")

    def test_a_real_client_without_network(self) -> None:
        with pytest.raises(VPPError, match="'me/not-there' is not here and could not be fetched from the hub"):
            resolve("me/not-there")

    def test_a_folder_needs_no_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
        (tmp_path / "me" / "x").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)

        assert resolve("me/x") == Path("me/x")


class TestWriting:
    def test_replaces_whole_files_and_leaves_others(self, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("mine")
        first, _ = attached(config=toy_config(seed=1))
        second, _ = attached(config=toy_config(seed=2))

        save_vpp(first, tmp_path / "deep" / "er")
        save_vpp(first, tmp_path)
        save_vpp(second, tmp_path)

        assert {p.name for p in tmp_path.iterdir()} == {
            "README.md",
            "deep",
            "other.txt",
            "vpp.safetensors",
            "vpp_config.json",
        }
        found = load_file(tmp_path / "vpp.safetensors")
        assert all(torch.equal(found[name], value) for name, value in second.vpp.state_dict().items())

    def test_a_failure_leaves_the_old_files(self, tmp_path: Path) -> None:
        model, _ = attached()
        save_vpp(model, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        shared = torch.zeros(2)
        with pytest.raises(RuntimeError, match="share memory"):
            write_vpp(model.vpp, tmp_path, {"one": shared, "two": shared})

        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")

        with pytest.raises(VPPError, match=r"'.*file' is a file: give a folder to save to"):
            save_vpp(attached()[0], tmp_path / "file")

    def test_half_precision_survives(self, tmp_path: Path) -> None:
        model, _ = attached(tiny_llava().to(torch.bfloat16), toy_config(seed=3))
        other, _ = attached(tiny_llava().to(torch.bfloat16))

        save_vpp(model, tmp_path)
        load_vpp(other, tmp_path)

        assert {value.dtype for value in load_file(tmp_path / "vpp.safetensors").values()} == {torch.bfloat16}
        assert all(torch.equal(v, model.vpp.state_dict()[k]) for k, v in other.vpp.state_dict().items())


class TestSavePretrained:
    @pytest.mark.parametrize("host", [{}, {"vocabulary": FULL}, {"vocabulary": FULL, "tied": True}], ids=str)
    @pytest.mark.parametrize("given", [False, True], ids=["own state", "given state"])
    def test_writes_the_bare_host_and_the_prompts_beside_it(
        self, host: dict[str, Any], given: bool, tmp_path: Path
    ) -> None:
        bare = tiny_llava(**host)
        bare.save_pretrained(tmp_path / "bare")
        model, processor = attached(tiny_llava(**host), toy_config(seed=5))
        inputs = inputs_for(processor, [2, 1])
        expected = model(**inputs).logits

        model.save_pretrained(tmp_path / "ours", **({"state_dict": model.state_dict()} if given else {}))

        for name in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / "ours" / name).read_text()) == json.loads(
                (tmp_path / "bare" / name).read_text()
            )
        ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "bare"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        again, other_processor = attached(LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours"))
        load_vpp(again, tmp_path / "ours")
        assert torch.equal(again.eval()(**inputs_for(other_processor, [2, 1])).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)

    def test_gathered_weights_are_those_that_are_written(self, tmp_path: Path) -> None:
        """A sharded training gathers the state itself: what the modules hold may be empty."""
        model, _ = attached()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        state[f"vpp.{PROMPT}"] += 1

        model.save_pretrained(tmp_path, state_dict=state)

        assert torch.equal(load_file(tmp_path / "vpp.safetensors")[PROMPT], model.vpp.global_vpp.prompt + 1)

    def test_inside_a_disabled_block(self, tmp_path: Path) -> None:
        model, processor = attached(tiny_llava(vocabulary=FULL))
        inputs = inputs_for(processor, [1])
        expected = model(**inputs).logits

        with vpp_disabled(model):
            model.save_pretrained(tmp_path)

        head = load_file(tmp_path / "model.safetensors")["language_model.lm_head.weight"]
        assert head.shape[0] == FULL
        assert torch.equal(model(**inputs).logits, expected)

    def test_only_the_main_process_writes(self, tmp_path: Path) -> None:
        model, _ = attached()

        model.save_pretrained(tmp_path, False)

        assert not list(tmp_path.glob("*vpp*"))

    def test_its_own_push_would_come_too_early(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"call model\.push_to_hub\(repo_id\), which uploads both"):
            attached()[0].save_pretrained(tmp_path, push_to_hub=True)
        assert not list(tmp_path.iterdir())

    def test_push_to_hub_uploads_both_with_their_card(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The card was transformers' template, without a word about the prompts."""
        model, _ = attached()
        uploaded: dict[str, bytes] = {}

        def upload(self: Any, working_dir: str, *_: Any, **__: Any) -> None:
            uploaded.update({path.name: path.read_bytes() for path in Path(working_dir).iterdir()})

        def no_card(*_: Any, **__: Any) -> None:
            raise EntryNotFoundError("none yet")

        monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: huggingface_hub.RepoUrl("me/x"))
        monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_card)

        model.push_to_hub("me/x")

        assert {"model.safetensors", "vpp.safetensors", "vpp_config.json"} <= uploaded.keys()
        assert b"# Visual Position Prompts for a llava model" in uploaded["README.md"]
        assert b'load_grounder("me/x", vpp="me/x")' in uploaded["README.md"]


class TestDetectorOnTheHub:
    """What the hub has is not shared again: it is named with its SHA-256."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "hub"
        folder.mkdir()
        detector: Any = attach_vpp(tiny_llava(), tiny_config(seed=9))
        save_file(detector.vpp.local_vpp.generator.state_dict(), folder / "model.safetensors")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
        return folder

    @staticmethod
    def config() -> VPPConfig:
        return replace(tiny_config(), local_vpp=replace(tiny_config().local_vpp, weights="owner/detector"))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_frozen_it_is_named_and_comes_back_to_the_bit(self, hub: Path, tmp_path: Path, dtype: torch.dtype) -> None:
        model: Any = attach_vpp(tiny_llava().to(dtype), self.config())
        save_vpp(model, tmp_path / "saved")

        saved = json.loads((tmp_path / "saved/vpp_config.json").read_text())["local_vpp"]
        assert not [name for name in load_file(tmp_path / "saved/vpp.safetensors") if "generator" in name]
        assert [*saved["frozen_weights"]] == [f"owner/detector:{str(dtype).removeprefix('torch.')}"]
        again: Any = attach_vpp(tiny_llava().to(dtype), tmp_path / "saved")
        other: Any = attach_vpp(tiny_llava().to(dtype), self.config())
        load_vpp(other, tmp_path / "saved")
        for loaded in (again, other):
            state = loaded.vpp.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in model.vpp.state_dict().items())
        save_vpp(again, tmp_path / "twice")
        for name in ("vpp.safetensors", "vpp_config.json"):
            assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()

    def test_in_another_dtype_nothing_is_lost(self, hub: Path, tmp_path: Path) -> None:
        save_vpp(attach_vpp(tiny_llava().to(torch.bfloat16), self.config()), tmp_path / "half")
        whole: Any = attach_vpp(tiny_llava(), tmp_path / "half")  # what was trained on stays rounded
        save_vpp(whole, tmp_path / "whole")
        again: Any = attach_vpp(tiny_llava(), tmp_path / "whole")

        state = again.vpp.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.vpp.state_dict().items())

    def test_what_was_trained_is_stored(self, hub: Path, tmp_path: Path) -> None:
        model: Any = attach_vpp(tiny_llava(), self.config())
        with torch.no_grad():
            model.vpp.local_vpp.generator.query_embed.weight[0, 0] += 1
        save_vpp(model, tmp_path / "saved")

        again: Any = attach_vpp(tiny_llava(), tmp_path / "saved")
        assert json.loads((tmp_path / "saved/vpp_config.json").read_text())["local_vpp"]["frozen_weights"] == {}
        state = again.vpp.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.vpp.state_dict().items())

    def test_another_one_on_the_hub_is_refused(self, hub: Path, tmp_path: Path) -> None:
        save_vpp(attach_vpp(tiny_llava(), self.config()), tmp_path / "saved")
        changed = load_file(hub / "model.safetensors")
        changed["query_embed.weight"] += 1
        save_file(changed, hub / "model.safetensors")

        with pytest.raises(VPPError, match=r"trained on the detector 'owner/detector' with SHA-256 .* another one"):
            attach_vpp(tiny_llava(), tmp_path / "saved")

    def test_a_local_path_is_not_shared(self, hub: Path, tmp_path: Path) -> None:
        config = replace(self.config(), local_vpp=replace(self.config().local_vpp, weights=str(hub)))
        save_vpp(attach_vpp(tiny_llava(), config), tmp_path / "saved")

        text = "".join(path.read_text() for path in (tmp_path / "saved").glob("*[!s]") if path.suffix != ".safetensors")
        assert str(tmp_path) not in text
        assert "generator" in " ".join(load_file(tmp_path / "saved/vpp.safetensors"))
