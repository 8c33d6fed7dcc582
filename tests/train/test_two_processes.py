"""Two processes on the CPU whose batches differ: one may have images while the other has none."""

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.runs import SIZE, samples, write_data
from vpp_plugins.data.sample import Locate, Sample

ROOT = Path(__file__).parents[2]
TEXT_ONLY = [1, 2, 5, 6, 8, 11]


def launch(data: Path, out: Path, *changes: str) -> list[str]:
    """Run two processes as torchrun does; returns what each printed. A hang fails after five minutes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.two_processes", str(data), str(out), *changes],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        finished = [process.communicate(timeout=300) for process in processes]
    except subprocess.TimeoutExpired:  # one that died lets the other wait: say what both have to say
        for process in processes:
            process.kill()
        finished = [process.communicate() for process in processes]
    for process in processes:
        assert process.returncode == 0, "\n".join(text[-4000:] for _, text in finished)
    return [output.splitlines()[-1] for output, _ in finished]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("unused", ["true", "false"], ids=["finding unused parameters", "not finding them"])
def test_text_alone_beside_images_does_not_hang(unused: str, tmp_path: Path) -> None:
    """Without the search for unused parameters, one that takes no part would make the processes wait for ever.

    LLaVA does not use its last vision layer, so there the vision encoder keeps its weights.
    """
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    frozen = [] if unused == "true" else ['freeze=["vision"]']

    first, second = launch(data, tmp_path / "run", f"ddp_find_unused_parameters={unused}", *frozen)

    assert first == second
    assert (tmp_path / "run/final/vpp.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_resume_to_the_bit(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    launch(data, tmp_path / "whole")
    launch(data, tmp_path / "two")
    (tmp_path / "two/checkpoint-6").rename(tmp_path / "away")
    (tmp_path / "two/final").rename(tmp_path / "gone")

    launch(data, tmp_path / "two", "resume_from_checkpoint=auto")

    expected, found = (load_file(tmp_path / name / "final/vpp.safetensors") for name in ("whole", "two"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def final(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's end; of the host in whichever names they have."""
    prompts = {f"vpp.{name}": value for name, value in load_file(run / "final/vpp.safetensors").items()}
    return prompts | load_file(run / "checkpoint-6/model.safetensors")


def forget_the_end(run: Path) -> None:
    for name in ("checkpoint-6", "final"):
        shutil.rmtree(run / name)


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Sharded sums add up in another order, and AdamW makes steps of 1e-3 of what is rounding alone."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=3e-5, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fsdp_ends_as_ddp_does_and_resumes(tmp_path: Path) -> None:
    """LLaVA does not use its last vision layer, and FSDP wants numbers of the optimizer for that one too."""
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    launch(data, tmp_path / "ddp")
    launch(data, tmp_path / "fsdp", "fsdp=true")
    whole = final(tmp_path / "fsdp")

    assert_alike(whole, final(tmp_path / "ddp"))

    forget_the_end(tmp_path / "fsdp")
    launch(data, tmp_path / "fsdp", "fsdp=true", "resume_from_checkpoint=auto")
    assert_alike(final(tmp_path / "fsdp"), whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fsdp_as_recipes_have_it(tmp_path: Path) -> None:
    """LoRA in bfloat16 with checkpointed layers, asked on the way: processes then run different numbers of batches."""
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    questions = [Sample(f"q{n}", "0.png", *SIZE, (Locate("the cup", ((1.0, 2.0, 30.0, 20.0),)),)) for n in range(3)]
    asked = write_data(tmp_path / "asked", questions)
    exam = [f"eval_data={asked}", "eval_format=neutral", "eval_steps=3", "per_device_eval_batch_size=1"]
    recipe = ["lora_scope=llm", "lora_r=2", "bf16=true", "gradient_checkpointing=true", 'fsdp="full_shard auto_wrap"']

    launch(data, tmp_path / "run", *recipe, *exam)

    prompts = load_file(tmp_path / "run/final/vpp.safetensors")
    assert all(value.numel() and value.isfinite().all() for value in prompts.values())
    assert (tmp_path / "run/final/adapter_model.safetensors").is_file()
    results = json.loads((tmp_path / "run/eval/step-6/results.json").read_text())
    assert "acc_50" in results["figures"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_ends_as_ddp_does_and_resumes(stage: int, tmp_path: Path) -> None:
    """ZeRO-3 takes weights away between uses, and must find the prompts again for their backward."""
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    settings = json.loads((ROOT / f"examples/recipes/zero{stage}.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("bf16", "fp16")}
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    zero = f"deepspeed={tmp_path / 'zero.json'}"
    launch(data, tmp_path / "ddp")
    launch(data, tmp_path / "zero", zero)
    whole = final(tmp_path / "zero")

    assert_alike(whole, final(tmp_path / "ddp"))

    forget_the_end(tmp_path / "zero")
    launch(data, tmp_path / "zero", zero, "resume_from_checkpoint=auto")
    assert_alike(final(tmp_path / "zero"), whole)
