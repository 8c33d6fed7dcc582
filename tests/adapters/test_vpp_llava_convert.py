"""A conversion keeps every number, whatever the checkpoint's files are, and leaves nothing behind where it fails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from tests.reference import FOLDER, reference
from vpp_adapters.vpp_llava import convert as vpp_llava_convert
from vpp_adapters.vpp_llava.convert import convert, stored_tensors
from vpp_plugins import VPPError, attach_vpp

pytestmark = pytest.mark.usefixtures("small_resnet")

PARTS = 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The recorded checkpoint, to be changed."""
    folder = tmp_path / "source"
    shutil.copytree(FOLDER / "checkpoint", folder)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def rewrite(source: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, source / "model.safetensors")


def shard(source: Path, kind: str) -> None:
    """Replace the one file by three shards, in an order that is not the names'."""
    tensors = weights(source)
    (source / "model.safetensors").unlink()
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    places = {}
    for part in range(PARTS):
        keys = sorted(tensors, key=lambda key: key[::-1])[part::PARTS]
        file = f"{stem}-{part + 1:05}-of-{PARTS:05}.{suffix}"
        chosen = {key: tensors[key] for key in keys}
        if kind == "safetensors":
            save_file(chosen, source / file)
        else:
            torch.save(chosen, source / file)
        places |= dict.fromkeys(keys, file)
    (source / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestWhatIsWritten:
    def test_transformers_loads_it_with_no_key_left_over(self, converted: Path) -> None:
        model, report = LlavaForConditionalGeneration.from_pretrained(converted, output_loading_info=True)

        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        assert model.dtype == torch.float16
        assert attach_vpp(model, converted).vpp.trained

    def test_the_vocabulary_grows_by_zero_rows(self, converted: Path) -> None:
        old, new = weights(FOLDER / "checkpoint"), weights(converted)

        for before, after in (
            ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
            ("lm_head.weight", "lm_head.weight"),
        ):
            assert torch.equal(new[after][:512], old[before])
            assert new[after].shape[0] == 514
            assert not new[after][512:].any()

    def test_spare_rows_are_used(self, source: Path, tmp_path: Path) -> None:
        tensors = weights(source)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[key] = torch.cat([tensors[key], torch.ones(8, 32).half()])
        rewrite(source, tensors)
        change(source, vocab_size=520)

        convert(source, tmp_path / "new")

        config = json.loads((tmp_path / "new" / "config.json").read_text())
        assert (config["text_config"]["vocab_size"], config["image_token_index"]) == (520, 512)
        assert torch.equal(weights(tmp_path / "new")["lm_head.weight"], tensors["lm_head.weight"])

    def test_the_processor_gives_the_references_ids(self, converted: Path) -> None:
        processor: Any = AutoProcessor.from_pretrained(converted)

        for row in reference("text")["eval"]:
            ids = processor.tokenizer(row["prompt"])["input_ids"]
            assert ids == [512 if token == -200 else token for token in row["input_ids"]]
        assert processor.tokenizer.convert_tokens_to_ids("<|vpp|>") == 513
        assert processor.chat_template is not None

    def test_generation_is_greedy(self, converted: Path) -> None:
        generation = GenerationConfig.from_pretrained(converted)

        assert not generation.do_sample
        assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_dtype(self, dtype: torch.dtype, converted: Path, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "new", dtype)

        assert {tensor.dtype for tensor in weights(tmp_path / "new").values()} == {dtype}
        assert {tensor.dtype for tensor in load_file(tmp_path / "new" / "vpp.safetensors").values()} == {dtype}
        assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
        cast = {name: tensor.to(dtype) for name, tensor in weights(converted).items()}
        assert equal(weights(tmp_path / "new"), cast)

    def test_a_dtype_of_each_tensor_is_kept(self, source: Path, tmp_path: Path) -> None:
        """bfloat16 training leaves the prompt in float32."""
        tensors = {name: tensor.bfloat16() for name, tensor in weights(source).items()}
        rewrite(source, {**tensors, "model.visual_prompt": tensors["model.visual_prompt"].float()})

        convert(source, tmp_path / "new")

        prompts = load_file(tmp_path / "new" / "vpp.safetensors")
        assert prompts["global_prompt.prompt"].dtype == torch.float32
        assert prompts["local_prompt.projector.0.weight"].dtype == torch.bfloat16
        assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"


class TestFiles:
    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    def test_shards_give_the_same_weights(self, kind: str, source: Path, converted: Path, tmp_path: Path) -> None:
        shard(source, kind)

        convert(source, tmp_path / "new")

        assert equal(weights(tmp_path / "new"), weights(converted))
        for name in ("vpp_config.json", "config.json", "tokenizer.json", "processor_config.json"):
            assert (tmp_path / "new" / name).read_bytes() == (converted / name).read_bytes()
        prompts = load_file(tmp_path / "new" / "vpp.safetensors")
        assert equal(prompts, load_file(converted / "vpp.safetensors"))

    def test_written_shards_are_bounded(
        self, source: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vpp_llava_convert, "SHARD_BYTES", 40_000)

        convert(source, tmp_path / "new")

        shards = sorted((tmp_path / "new").glob("model-*.safetensors"))
        index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
        assert len(shards) > 3
        assert sorted(set(index["weight_map"].values())) == [path.name for path in shards]
        assert all(tensor.nbytes <= 40_000 for tensor in stored_tensors(tmp_path / "new").values())
        assert max(sum(t.nbytes for t in load_file(path).values()) for path in shards) <= 40_000
        assert equal(weights(tmp_path / "new"), weights(converted))
        _, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "new", output_loading_info=True)
        assert not report["missing_keys"]

    def test_computed_tensors_of_old_checkpoints_are_left_out_and_said(
        self, source: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key = "model.layers.0.self_attn.rotary_emb.inv_freq"
        rewrite(source, {**weights(source), key: torch.ones(4)})

        convert(source, tmp_path / "new")

        assert equal(weights(tmp_path / "new"), weights(converted))
        assert f"1 tensors are computed and not kept, such as {key}" in " ".join(capsys.readouterr().err.split())


def change(source: Path, **settings: Any) -> None:
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def lose_a_shard(source: Path) -> None:
    shard(source, "safetensors")
    (source / "model-00002-of-00003.safetensors").unlink()


def truncate(source: Path) -> None:
    shard(source, "bin")
    path = source / "pytorch_model-00003-of-00003.bin"
    path.write_bytes(path.read_bytes()[:-5000])


def pickle_an_object(source: Path) -> None:
    torch.save({**weights(source), "model.norm.weight": Path("x")}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()


def leave_vpp_out(source: Path) -> None:
    prompts = ("model.visual_prompt", "model.grd_projector", "model.detr_vision_tower")
    rewrite(source, {key: tensor for key, tensor in weights(source).items() if not key.startswith(prompts)})


def shrink_vocabulary(source: Path) -> None:
    small = {key: weights(source)[key][:500].contiguous() for key in ("model.embed_tokens.weight", "lm_head.weight")}
    rewrite(source, {**weights(source), **small})
    change(source, vocab_size=500)


def replace_tensor(key: str, tensor: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def replace(source: Path) -> None:
        tensors = weights(source)
        rewrite(source, {**tensors, key: tensor(tensors[key]).contiguous()})

    return replace


NORM = "model.norm.weight"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "plain LLaVA": (leave_vpp_out, "holds no global prompt .*: it is a LLaVA without VPP"),
    "transformers' LLaVA": (
        lambda source: change(source, model_type="llava", architectures=["LlavaForConditionalGeneration"]),
        "is a llava, not a checkpoint of VPP-LLaVA's own code .*needs no conversion",
    ),
    "another model": (
        lambda source: change(source, model_type="qwen2_vl", architectures=["Qwen2VLForConditionalGeneration"]),
        "is a qwen2_vl, not a checkpoint of VPP-LLaVA's own code",
    ),
    "no config.json": (lambda source: (source / "config.json").unlink(), "no config.json in"),
    "nonsense in config.json": (
        lambda source: change(source, num_attention_heads=7),
        r"the config.json in .* describes no LLaVA \(.*\): download it again",
    ),
    "a damaged tokenizer": (
        lambda source: (source / "tokenizer.model").write_bytes(b"garbage"),
        r"tokenizer.model or tokenizer_config.json in .* cannot be read \(.*\): download them again",
    ),
    "damaged tokenizer settings": (
        lambda source: (source / "tokenizer_config.json").write_text("{"),
        r"tokenizer.model or tokenizer_config.json in .* cannot be read \(.*\): download them again",
    ),
    "no tokenizer": (lambda source: (source / "tokenizer.model").unlink(), "no tokenizer.model in"),
    "no weights": (lambda source: (source / "model.safetensors").unlink(), "no weights in"),
    "a shard missing": (lose_a_shard, "1 of 3 shards are missing"),
    "a shard truncated": (truncate, "pytorch_model-00003-of-00003.bin' is truncated"),
    "an object pickled": (pickle_an_object, r"holds something else than tensors \(pathlib[.\w]*\.PosixPath\)"),
    "a shape": (
        replace_tensor(NORM, lambda norm: norm[:-1]),
        r"1 of another shape: .*norm.weight \(31,\) instead of \(32,\)",
    ),
    "a strange tensor": (lambda s: rewrite(s, {**weights(s), "extra": torch.ones(1)}), "1 not expected: extra"),
    "quantised": (replace_tensor(NORM, lambda norm: norm.to(torch.int8)), f"'{NORM}' .* is quantised"),
    "NaN": (replace_tensor(NORM, lambda norm: norm * torch.nan), f"'{NORM}' .* has NaN or infinite values"),
    "infinite prompt": (replace_tensor("model.visual_prompt", lambda p: p / 0), "'model.visual_prompt' .*infinite"),
    "a larger tokenizer": (
        shrink_vocabulary,
        "knows 512 tokens, but the model only 500",
    ),
}


class TestFailures:
    @pytest.mark.parametrize("kind", BAD)
    def test_bad_input_is_one_sentence_and_nothing_is_written(self, kind: str, source: Path, tmp_path: Path) -> None:
        spoil, sentence = BAD[kind]
        spoil(source)

        with pytest.raises(VPPError, match=sentence) as error:
            convert(source, tmp_path / "deep" / "new")

        assert "\n" not in str(error.value)
        deep = tmp_path / "deep"
        assert not deep.exists() or list(deep.iterdir()) == []

    def test_numbers_too_large_for_the_dtype(self, source: Path, tmp_path: Path) -> None:
        replace_tensor(NORM, lambda norm: norm.float() * 1e6)(source)

        with pytest.raises(VPPError, match=f"'{NORM}' .* infinite values in torch.float16: .*need a wider dtype"):
            convert(source, tmp_path / "new", torch.float16)

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_an_existing_target_is_kept(self, kind: str, source: Path, tmp_path: Path) -> None:
        target = tmp_path / "new"
        kept = target / "mine.txt" if kind == "folder" else target
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("mine")

        with pytest.raises(VPPError, match="exists and is not empty: give a folder that is new or empty"):
            convert(source, target)

        assert kept.read_text() == "mine"

    def test_an_empty_target_is_filled(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()

        convert(source, tmp_path / "new")

        assert (tmp_path / "new" / "vpp.safetensors").is_file()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]

    def test_what_a_killed_conversion_left_is_removed(self, source: Path, tmp_path: Path) -> None:
        left = tmp_path / ".new.part" / "new" / "model-00001-of-00009.safetensors"
        left.parent.mkdir(parents=True)
        left.write_text("half")

        convert(source, tmp_path / "new")

        assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]
        assert not (tmp_path / "new" / left.name).exists()

    @pytest.mark.slow
    def test_a_killed_conversion_is_run_again(self, source: Path, tmp_path: Path) -> None:
        """Killed by the system while it writes its first file: no `finally` runs."""
        script = (
            "import os, sys; from pathlib import Path; import safetensors.torch; from tests.reference import resnet;"
            "from vpp_adapters.vpp_llava import config, convert;"
            "config.RESNETS[resnet.STEM, resnet.DEPTHS] = resnet.NAME;"
            "safetensors.torch.save_file = lambda tensors, path, *_: (Path(path).write_text('half'), os._exit(9));"
            "convert.convert(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        root = FOLDER.parents[1]
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'adapters'}"}
        command = [sys.executable, "-c", script, str(source), str(tmp_path / "new")]
        killed = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert killed.returncode == 9, killed.stderr.decode()
        assert not (tmp_path / "new").exists()
        assert (tmp_path / ".new.part").is_dir()

        convert(source, tmp_path / "new")

        assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]
        assert len(weights(tmp_path / "new")) == 80
