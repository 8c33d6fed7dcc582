"""VPP goes on and comes off without a trace, whether the vocabulary had a row to spare or had to grow."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import (
    FULL,
    TOY_GLOBAL,
    TOY_LOCAL,
    ToyGenerator,
    attached,
    inputs_for,
    tiny_llava,
    tiny_processor,
    toy_config,
)
from vpp_plugins import (
    VPPError,
    VPPProcessor,
    attach_vpp,
    detach_vpp,
    is_attached,
    load_vpp,
    save_vpp,
    vpp_disabled,
    vpp_of,
)
from vpp_plugins.attach.attach import host_state, unwrap
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.prompts import VPP
from vpp_plugins.testing import assert_same, fingerprint

pytestmark = pytest.mark.usefixtures("toy")

HOSTS = {
    "spare row": {},
    "grown": {"vocabulary": FULL},
    "grown and tied": {"vocabulary": FULL, "tied": True},
}
every_host = pytest.mark.parametrize("host", list(HOSTS.values()), ids=list(HOSTS))


class TestAttach:
    def test_returns_the_same_object_with_registered_prompts(self) -> None:
        model = tiny_llava()

        assert not is_attached(model)
        assert attach_vpp(model, toy_config()) is model
        assert is_attached(model)
        assert dict(model.named_children())["vpp"] is model.vpp
        assert model.vpp.config.local_vpp == TOY_LOCAL
        assert model.vpp.global_vpp.prompt.shape == (3, 32, 32)
        assert model.vpp.local_vpp.num_queries == 4
        assert model.vpp.trained is False

    def test_takes_the_hosts_dtype_and_mode(self) -> None:
        model = attach_vpp(tiny_llava().to(torch.bfloat16), toy_config())
        training = attach_vpp(tiny_llava().train(), toy_config())

        assert {p.dtype for p in model.vpp.parameters()} == {torch.bfloat16}
        assert not any(module.training for module in model.vpp.modules())
        assert all(module.training for module in training.vpp.modules())

    def test_prompts_train_where_the_host_is_frozen(self) -> None:
        model = attach_vpp(tiny_llava().requires_grad_(False), toy_config())

        assert all(p.requires_grad for p in model.vpp.parameters())
        assert not any(p.requires_grad for n, p in model.named_parameters() if not n.startswith("vpp."))

    def test_leaves_every_global_random_state_alone(self) -> None:
        model = tiny_llava()
        before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002

        attach_vpp(model, toy_config())
        VPPProcessor(tiny_processor(), model)

        assert torch.equal(torch.get_rng_state(), before[0])
        assert repr(np.random.get_state()) == before[1]  # noqa: NPY002

    def test_the_seed_alone_decides_the_weights(self) -> None:
        def weights(seed: int, disturbance: int) -> dict[str, torch.Tensor]:
            model = tiny_llava()
            torch.manual_seed(disturbance)
            return dict(attach_vpp(model, toy_config(seed=seed)).vpp.state_dict())

        first, again, other = weights(7, disturbance=1), weights(7, disturbance=2), weights(8, disturbance=1)

        assert all(torch.equal(again[name], value) for name, value in first.items())
        assert not torch.equal(other["local_prompt.projector.0.weight"], first["local_prompt.projector.0.weight"])

    def test_defaults_are_the_familys(self) -> None:
        """The only test here that builds the real detector, at its real size."""
        model = attach_vpp(tiny_llava())

        assert model.vpp.tokens_per_image == 100
        assert model.vpp.config.global_vpp.image_mean == host_state(model).backbone.image_mean

    def test_a_hand_written_backbone_serves_where_no_adapter_does(self) -> None:
        backbone = Backbone(
            adapter="mine", hidden_size=24, vision_encoders=("model.vision_tower",), box_format="llava", frame="square"
        )

        model = attach_vpp(tiny_llava(), toy_config(), adapter=backbone)

        assert host_state(model).backbone is backbone


MISTAKEN = Backbone(
    adapter="mine", hidden_size=24, vision_encoders=("model.tower",), box_format="llava", frame="square"
)
FAILURES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "adapter unknown": (
        lambda m: attach_vpp(m, toy_config(), adapter="lava"),
        r"no adapter is called 'lava'\. Did you mean 'llava'\? Installed: .*llava",
    ),
    "generator unknown": (
        lambda m: attach_vpp(m, toy_config(local_vpp=replace(TOY_LOCAL, generator="deter"))),
        r"no plugin builds the generator 'deter'\. Did you mean 'detr'\?",
    ),
    "no such folder": (
        lambda m: attach_vpp(m, "/nowhere/at/all"),
        "there is no '/nowhere/at/all': give a folder that save_vpp wrote",
    ),
    "no vision encoder": (
        lambda m: attach_vpp(m, toy_config(), adapter=replace(MISTAKEN, vision_encoders=())),
        r"the global prompt cannot act on 'mine' hosts: attach with VPPConfig\(global_vpp=None\)",
    ),
    "wrong vision encoder": (
        lambda m: attach_vpp(m, toy_config(), adapter=MISTAKEN),
        "the adapter 'mine' names the vision encoder 'model.tower', which this Llava.* does not have",
    ),
}


class TestFailedAttach:
    @pytest.mark.parametrize("case", list(FAILURES))
    def test_says_why_and_leaves_the_host_alone(self, case: str) -> None:
        attempt, message = FAILURES[case]
        model = tiny_llava()
        before = fingerprint(model)

        with pytest.raises(VPPError, match=message):
            attempt(model)

        assert_same(fingerprint(model), before)
        assert not is_attached(model)
        attach_vpp(model, toy_config())

    def test_a_model_that_no_adapter_knows(self) -> None:
        with pytest.raises(VPPError, match=r"no adapter claims Linear: installed are .*llava.* pass adapter=Backbone"):
            attach_vpp(nn.Linear(2, 2))

    def test_a_model_without_weights_yet(self) -> None:
        model = tiny_llava().to("meta")

        with pytest.raises(VPPError, match="weights are on the device 'meta', so there are none yet: load them before"):
            attach_vpp(model, toy_config())
        assert not is_attached(model)
        assert "vpp" not in dict(model.named_children())

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("model", ["llava-hf/llava-1.5-7b-hf", None])
    def test_what_is_no_model(self, model: Any) -> None:
        with pytest.raises(VPPError, match=r"attached to a loaded model, but a \w+ came: load it first"):
            attach_vpp(model)

    @pytest.mark.usefixtures("unchecked")
    def test_a_dictionary_for_a_configuration(self) -> None:
        settings: Any = {"seed": 1}

        with pytest.raises(VPPError, match=r"but is a dict: of a dictionary, VPPConfig.from_dict makes one"):
            attach_vpp(tiny_llava(), settings)

    def test_a_damaged_folder(self, tmp_path: Path) -> None:
        save_vpp(attached()[0], tmp_path)
        (tmp_path / "vpp.safetensors").write_bytes(b"not weights")
        model = tiny_llava()
        before = fingerprint(model)

        with pytest.raises(VPPError, match="is damaged or truncated"):
            attach_vpp(model, tmp_path)

        assert_same(fingerprint(model), before)

    def test_twice(self) -> None:
        model = attach_vpp(tiny_llava(), toy_config())
        prompts = model.vpp

        with pytest.raises(VPPError, match="already attached to this LlavaForConditionalGeneration: call detach_vpp"):
            attach_vpp(model, toy_config())

        assert model.vpp is prompts

    def test_calls_that_need_an_attached_model(self, tmp_path: Path) -> None:
        model = tiny_llava()
        calls: list[Callable[[], Any]] = [
            lambda: detach_vpp(model),
            lambda: save_vpp(model, tmp_path / "new"),
            lambda: load_vpp(model, tmp_path),
            lambda: vpp_disabled(model).__enter__(),
            lambda: VPPProcessor(tiny_processor(), model),
        ]

        for call in calls:
            with pytest.raises(VPPError, match="not attached to this LlavaForConditionalGeneration: call attach_vpp"):
                call()
        assert not (tmp_path / "new").exists()


class TestDetach:
    @every_host
    def test_leaves_a_bit_identical_host(self, host: dict[str, Any]) -> None:
        model = tiny_llava(**host)
        before, processor = fingerprint(model), tiny_processor()
        inputs = inputs_for(processor, [2, 1])
        answer = model.generate(**inputs, max_new_tokens=3)
        shadow = tiny_llava(**host)  # what generate and backward leave on a host is the host's own affair
        shadow.generate(**inputs, max_new_tokens=3)
        shadow(**inputs, labels=inputs["input_ids"]).loss.backward()

        attach_vpp(model, toy_config())
        model.vpp.trained = True
        prompted = VPPProcessor(processor, model)
        ours = inputs_for(prompted, [2, 1])
        model.generate(**ours, max_new_tokens=3)
        model(**ours, labels=ours["input_ids"]).loss.backward()
        with vpp_disabled(model):
            model(**inputs_for(prompted, [1]))

        assert detach_vpp(model) is model
        after = fingerprint(model)
        assert all(torch.equal(after["weights"][name], weight) for name, weight in before["weights"].items())
        assert_same(after, fingerprint(shadow))
        assert not is_attached(model)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), answer)

    @every_host
    def test_tied_tables_stay_tied_and_untied_ones_apart(self, host: dict[str, Any]) -> None:
        model = tiny_llava(**host)

        for _ in range(2):
            model, _ = attached(model)
            assert (model.lm_head.weight is model.get_input_embeddings().weight) is host.get("tied", False)
            detach_vpp(model)
            assert (model.lm_head.weight is model.get_input_embeddings().weight) is host.get("tied", False)

    @pytest.mark.parametrize("images", [0, 1])
    def test_is_refused_in_the_middle_of_generate(self, images: int) -> None:
        """The next step found half of a host."""
        model, processor = attached()
        inputs = inputs_for(processor, [images])
        expected = model.generate(**inputs, max_new_tokens=3)

        def stop(*_: Any, **__: Any) -> Any:
            return detach_vpp(model)

        with pytest.raises(VPPError, match="cannot be detached while a forward or generate of the model runs: wait"):
            model.generate(**inputs, max_new_tokens=3, stopping_criteria=[stop])
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)
        assert not is_attached(detach_vpp(model))

    def test_attach_again(self) -> None:
        model, processor = attached()
        expected = model(**inputs_for(processor, [1])).logits

        model, processor = attached(detach_vpp(model))

        assert torch.equal(model(**inputs_for(processor, [1])).logits, expected)

    def test_keeps_hooks_that_others_installed(self) -> None:
        model, seen = tiny_llava(), []
        early = model.get_input_embeddings().register_forward_hook(lambda *_: seen.append("early"))
        attach_vpp(model, toy_config())
        late = model.get_input_embeddings().register_forward_hook(lambda *_: seen.append("late"))

        detach_vpp(model)
        model(input_ids=torch.tensor([[5, 6]]))

        assert seen == ["early", "late"]
        early.remove()
        late.remove()

    def test_without_a_processor_ever(self) -> None:
        model = tiny_llava()
        before = fingerprint(model)

        assert_same(fingerprint(detach_vpp(attach_vpp(model, toy_config()))), before)


class TestDisabled:
    @every_host
    def test_equals_the_bare_host(self, host: dict[str, Any]) -> None:
        bare, inputs = tiny_llava(**host), inputs_for(tiny_processor(), [2, 1])
        model, processor = attached(tiny_llava(**host))
        sampling = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 4}

        with vpp_disabled(model):
            found = inputs_for(processor, [2, 1])
            assert found.keys() == inputs.keys()
            logits = model(**found).logits
            torch.manual_seed(1)
            answer = model.generate(**found, **sampling)

        # VPPProcessor pads LLaVA's images to a square, also for the bare host: its own processor crops
        assert torch.equal(found["input_ids"], inputs["input_ids"])
        expected = bare(**found).logits
        torch.manual_seed(1)
        assert logits.shape == expected.shape
        assert torch.equal(logits, expected)
        assert torch.equal(answer, bare.generate(**found, **sampling))

    @every_host
    def test_ends_with_the_block(self, host: dict[str, Any]) -> None:
        model, processor = attached(tiny_llava(**host))
        inputs = inputs_for(processor, [1])
        expected, before = model(**inputs).logits, fingerprint(model)

        with pytest.raises(RuntimeError, match="inside"), vpp_disabled(model):
            raise RuntimeError("inside")

        assert_same(fingerprint(model), before)
        assert torch.equal(model(**inputs).logits, expected)

    @every_host
    def test_blocks_nest(self, host: dict[str, Any]) -> None:
        model, processor = attached(tiny_llava(**host))
        rows = model.lm_head.weight.shape[0]
        bare = tiny_llava(**host).lm_head.weight.shape[0]

        with vpp_disabled(model):
            with vpp_disabled(model):
                assert model.lm_head.weight.shape[0] == bare
            assert model.lm_head.weight.shape[0] == bare
            assert "vpp_pixel_values" not in inputs_for(processor, [1])
        assert model.lm_head.weight.shape[0] == rows

    def test_a_training_step_around_it(self) -> None:
        """Comparing with the bare host between forward and backward must not upset the graph of the grown table."""
        model, processor = attached(tiny_llava(vocabulary=FULL))
        inputs = inputs_for(processor, [1])

        loss = model(**inputs, labels=inputs["input_ids"]).loss
        with vpp_disabled(model), torch.no_grad():
            model(**inputs_for(processor, [1]))
        loss.backward()

        assert model.lm_head.weight.grad.shape == model.lm_head.weight.shape

    @pytest.mark.parametrize("vocabulary", [32, FULL], ids=["spare row", "grown"])
    def test_prompts_inside_are_refused(self, vocabulary: int) -> None:
        model, processor = attached(tiny_llava(vocabulary=vocabulary))
        inputs = inputs_for(processor, [1])
        pixels = inputs.pop("vpp_pixel_values")

        with vpp_disabled(model):
            for call in (model, model.generate):
                with pytest.raises(VPPError, match=r"hold 4 <\|vpp\|> placeholders, but VPP is disabled here"):
                    call(**inputs)
            bare = inputs_for(processor, [1])
            for call in (model, model.generate):
                with pytest.raises(
                    VPPError, match="vpp_pixel_values came while VPP is disabled: make the inputs inside"
                ):
                    call(**bare, vpp_pixel_values=pixels)

    def test_what_cannot_be_done_inside(self) -> None:
        model, _ = attached()

        with vpp_disabled(model):
            with pytest.raises(VPPError, match="cannot be detached inside a vpp_disabled block"):
                detach_vpp(model)
            with pytest.raises(VPPError, match="cannot be copied or pickled inside a vpp_disabled block"):
                copy.deepcopy(model)
            with pytest.raises(VPPError, match="VPPProcessor cannot be made inside a vpp_disabled block"):
                VPPProcessor(tiny_processor(), model)
        detach_vpp(model)


class TestSaveAndLoad:
    @every_host
    def test_attach_from_a_folder(self, host: dict[str, Any], tmp_path: Path) -> None:
        model, processor = attached(tiny_llava(**host), toy_config(seed=5))
        inputs = inputs_for(processor, [2, 1])
        expected = model(**inputs).logits

        save_vpp(model, tmp_path)
        again = attach_vpp(tiny_llava(**host), str(tmp_path))
        VPPProcessor(tiny_processor(), again)

        assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "vpp.safetensors", "vpp_config.json"]
        assert again.vpp.trained is True
        assert again.vpp.config == model.vpp.config
        assert torch.equal(again(**inputs).logits, expected)

    def test_load_into_an_attached_model(self, tmp_path: Path) -> None:
        model, processor = attached(config=toy_config(seed=5))
        inputs = inputs_for(processor, [1])
        other, _ = attached(config=toy_config(seed=6), trained=False)

        save_vpp(model, tmp_path)
        load_vpp(other, tmp_path)

        assert other.vpp.trained is True
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)

    def test_push_to_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Any] = []

        class Client:
            def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
                calls.append(("create", repo_id, kwargs))
                return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo_id.rpartition('/')[2]}")

            def upload_folder(self, **kwargs: Any) -> None:
                calls.append(("upload", sorted(path.name for path in Path(kwargs["folder_path"]).iterdir()), kwargs))

        monkeypatch.setattr(huggingface_hub, "HfApi", Client)
        model, _ = attached()

        save_vpp(model, tmp_path / "prompts", push_to_hub=True)
        save_vpp(model, tmp_path / "prompts", push_to_hub=True, repo_id="me/other")
        save_vpp(model, tmp_path / "prompts")

        files = ["README.md", "vpp.safetensors", "vpp_config.json"]
        assert [call[:2] for call in calls] == [
            ("create", "prompts"),
            ("upload", files),
            ("create", "me/other"),
            ("upload", files),
        ]
        assert [call[2]["repo_id"] for call in calls if call[0] == "upload"] == ["me/prompts", "me/other"]
        assert calls[1][2]["allow_patterns"] == ["vpp_config.json", "vpp.safetensors", "README.md"]

    def test_a_hub_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, processor = attached(config=toy_config(seed=5))
        save_vpp(model, tmp_path)
        asked = []

        def download(repo_id: str, *, allow_patterns: list[str]) -> str:
            asked.append((repo_id, allow_patterns))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        again = attach_vpp(tiny_llava(), "me/prompts")
        VPPProcessor(tiny_processor(), again)
        load_vpp(again, "me/prompts")

        assert asked == [("me/prompts", ["vpp_config.json", "vpp.safetensors"])] * 2
        inputs = inputs_for(processor, [1])
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)

    def test_the_generator_is_not_given_its_first_weights_again(self, tmp_path: Path) -> None:
        """A saved folder may name detector weights that exist no longer: what it holds replaces them."""
        model, _ = attached()
        model.vpp.config = replace(model.vpp.config, local_vpp=replace(TOY_LOCAL, weights="/gone"))
        save_vpp(model, tmp_path)

        assert isinstance(attach_vpp(tiny_llava(), tmp_path).vpp.local_vpp.generator, ToyGenerator)


class TestEitherPromptAlone:
    @pytest.mark.parametrize("left_out", ["global_vpp", "local_vpp"])
    def test_goes_on_and_comes_off(self, left_out: str) -> None:
        model = tiny_llava()
        before = fingerprint(model)
        model, processor = attached(model, toy_config(**{left_out: None}))
        inputs = inputs_for(processor, [2, 1])

        assert getattr(model.vpp, left_out) is None
        assert ("vpp_pixel_values" in inputs) is (left_out == "global_vpp")
        assert model(**inputs).logits.isfinite().all()
        detach_vpp(model)
        after = fingerprint(model)
        assert after["weights"].keys() == before["weights"].keys()
        assert after["configs"] == before["configs"]

    def test_the_global_prompt_changes_the_answer(self) -> None:
        model, processor = attached(config=toy_config(global_vpp=replace(TOY_GLOBAL, alpha=0.5), local_vpp=None))
        inputs = inputs_for(processor, [1])

        with_axes = model(**inputs).logits
        with vpp_disabled(model):
            assert not torch.allclose(with_axes, model(**inputs).logits)


def test_unwrap_looks_through_data_parallel() -> None:
    model = tiny_llava()

    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(model) is model


def test_the_prompts_are_found_through_wrappers_and_by_their_own_type() -> None:
    model, _ = attached()

    prompts: VPP = vpp_of(nn.DataParallel(model))

    assert prompts is model.vpp
    with pytest.raises(VPPError, match="attach_vpp"):
        vpp_of(tiny_llava())
