"""What VPP costs on a GPU, in LLaVA-1.5-7B's geometry, bfloat16, random weights: `python -m benchmarks.gpu`.

- Prefill of an image and a question with VPP, against the floor of its extra work: the time of the bare host with as
  many tokens, and the detector's and projector's FLOPs at the rate that a large matrix product reaches here.
- Decoding: tokens a second of `generate` with VPP, against the bare host with as many tokens.
- Both again with the language model in 4 bits (bitsandbytes, where it is installed).
- A LoRA training step, likewise, and the memory at its peak.
- Attention: xformers, torch's SDPA and the plain twin, on the detector's own sizes, forward and backward; images of
  different lengths in one piece by xformers and by torch's own varlen_attn.
- CUDA graphs for the local prompt, see `gpu_prompt`.

`--tiny` runs all of it on the CPU at toy size, to see that it works; its rows mean nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_prompt
from benchmarks.hosts import FILLER_ID, IMAGE_ID, VPP_ID, sharing
from benchmarks.rows import Row, interleaved, median_row, ratios, show_rows, write_rows
from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, attach_vpp
from vpp_plugins.prompts import attend, attend_ragged

OUT = Path("out/bench/gpu.json")
COMMAND = "python -m benchmarks.gpu, on a machine with a GPU of 40 GB or more"
NAMES = {
    "GPU: prefill with VPP, to the floor of its extra work": 1.10,
    "GPU: decoding with VPP, to the bare host": 1.01,
    "GPU: prefill with VPP in 4 bits, to the floor of its extra work": 1.10,
    "GPU: decoding with VPP in 4 bits, to the bare host in 4 bits": 1.01,
    "GPU: LoRA step with VPP, to the floor of its extra work": 1.10,
    "GPU: memory at the peak of a LoRA step with VPP, beyond the bare host's": None,
    "GPU: attention by xformers, to SDPA": None,
    "GPU: attention by SDPA, to the plain twin": None,
    "GPU: images of different lengths by xformers, to torch's varlen_attn": None,
    **dict.fromkeys(gpu_prompt.NAMES),
}
FULL = {
    "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "detector": {},
    "side": 640,
    "queries": 100,
    "vocabulary": 32064,
    "answer": 64,
    "matrix": 8192,
}
TINY = {
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "detector": {"backbone": "resnet10t", "width": 32, "heads": 4, "feedforward": 32, "encoder_layers": 1},
    "side": 64,
    "queries": 8,
    "vocabulary": 64,
    "answer": 4,
    "matrix": 128,
}


def measure() -> list[Row]:
    """Return the rows, not run where there is no GPU."""
    if not torch.cuda.is_available():
        return [Row(name=name, value=None, unit="x", bar=bar, note=COMMAND) for name, bar in NAMES.items()]
    return run(FULL, torch.device("cuda"), torch.bfloat16, rounds=30)


def run(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Measure at these sizes."""
    host = build(sizes, device, dtype)
    attached = attach(sharing(host), sizes)
    longer, prompted = inputs(sizes, device, dtype)
    clock = _clock(device)
    rate = _flops_per_second(sizes["matrix"], device, dtype, clock)
    floor = _flops(lambda: attached.vpp(prompted["vpp_pixel_values"])) / rate
    note = f"{_device_name(device)}; floor of the local prompt {1000 * floor:.2f} ms at {rate / 1e12:.0f} TFLOP/s"
    answer = {"max_new_tokens": sizes["answer"], "min_new_tokens": sizes["answer"], "do_sample": False}
    names = list(NAMES)

    def inference(names: Sequence[str], host: Any, attached: Any) -> list[Row]:
        models = (("host", host, longer), ("attached", attached, prompted))
        prefill = interleaved(
            {name: lambda model=model, given=given: model(**given) for name, model, given in models},  # type: ignore[misc]
            rounds=rounds,
            clock=clock,
        )
        decoding = interleaved(
            {name: _decoding(model, given, answer) for name, model, given in models},
            rounds=max(3, rounds // 3),
            clock=clock,
        )
        # what is left when the prefill, of one token, is taken away
        only = {name: [a - statistics.median(prefill[name]) for a in decoding[name]] for name in decoding}
        with_floor = [seconds + floor for seconds in prefill["host"]]
        return [
            median_row(names[0], ratios(prefill["attached"], with_floor), unit="x", bar=1.10, note=note),
            median_row(names[1], ratios(only["attached"], only["host"]), unit="x", bar=1.01, note=_device_name(device)),
        ]

    rows = inference(names[:2], host, attached)
    if find_spec("bitsandbytes") is None:
        missing = "bitsandbytes is not installed"
        rows += [Row(name=name, value=None, unit="x", bar=NAMES[name], note=missing) for name in names[2:4]]
    else:
        small = in_four_bits(host, dtype)
        rows += inference(names[2:4], small, attach(sharing(small), sizes))
        del small
    options = gpu_prompt.prompt_rows(attached, prompted, rounds, clock)  # before PEFT puts its layers into the model
    training = _training(host, attached, longer, prompted)
    steps = interleaved(training, rounds=rounds, clock=clock)
    step_floor = [seconds + 3 * floor for seconds in steps["host"]]  # backward takes twice the forward's
    rows.append(median_row(names[4], ratios(steps["attached"], step_floor), unit="x", bar=1.10, note=note))
    rows.append(_memory(names[5], training, device))
    return rows + _attention(sizes, device, dtype, rounds, clock) + options


def in_four_bits(host: Any, dtype: torch.dtype) -> Any:
    """Return a copy on the same weights, but for the language model's linear layers, which are in NF4."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    small = sharing(host)
    for block in small.model.language_model.layers.modules():
        for name, linear in block.named_children():
            if type(linear) is nn.Linear:
                quantised = Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, device="meta"
                )
                weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                quantised.weight = weight.to(linear.weight.device)
                setattr(block, name, quantised)
    return small


def build(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Return LLaVA at random weights, made on the device."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    heads = sizes["text"]["num_attention_heads"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes["vision"]),
        text_config=LlamaConfig(
            **sizes["text"], num_key_value_heads=heads, vocab_size=sizes["vocabulary"], max_position_embeddings=4096
        ),
        image_token_id=IMAGE_ID,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            host = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    host.generation_config.pad_token_id = 0
    return host.requires_grad_(False)


def attach(host: Any, sizes: dict[str, Any]) -> Any:
    """Attach both prompts, in the family's sizes."""
    config = VPPConfig(
        global_vpp=GlobalVPPConfig(size=sizes["vision"]["image_size"], border=sizes["vision"]["image_size"] // 11),
        local_vpp=LocalVPPConfig(
            num_queries=sizes["queries"],
            image_size=sizes["side"],
            generator_options=sizes["detector"],
            mask_padding=False,
        ),
    )
    attach_vpp(host, config)
    host.vpp.bind_token(VPP_ID)
    host.vpp.trained = True  # it is not, and would say so
    return host


def inputs(
    sizes: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return an image and 40 words: with as many other tokens as VPP would add, and with VPP's own."""
    side = sizes["vision"]["image_size"]
    patches = (side // sizes["vision"]["patch_size"]) ** 2
    ids = torch.tensor([[1, *[IMAGE_ID] * patches, *[FILLER_ID] * sizes["queries"], *[7] * 40]], device=device)
    longer = {"input_ids": ids, "pixel_values": torch.randn(1, 3, side, side, device=device, dtype=dtype)}
    images = torch.randn(1, 3, sizes["side"], sizes["side"], device=device, dtype=dtype)
    prompted = longer | {"input_ids": ids.masked_fill(ids == FILLER_ID, VPP_ID), "vpp_pixel_values": images}
    return longer, prompted


def _decoding(model: Any, given: dict[str, Tensor], answer: dict[str, Any]) -> Callable[[], Any]:
    return lambda: model.generate(**given, **answer)


def _training(
    host: Any,
    attached: Any,
    longer: dict[str, Tensor],
    prompted: dict[str, Tensor],
) -> dict[str, Callable[[], None]]:
    """Return a step of LoRA on the language model's attention, and one with all of VPP trained beside it."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=16, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    models = {"host": (get_peft_model(host, lora), longer), "attached": (get_peft_model(attached, lora), prompted)}
    attached.vpp.requires_grad_(True)

    def step(model: Any, given: dict[str, Tensor]) -> None:
        with torch.enable_grad():
            model(**given, labels=given["input_ids"]).loss.backward()
        model.zero_grad(set_to_none=True)

    return {name: lambda pair=pair: step(*pair) for name, pair in models.items()}  # type: ignore[misc]


def _memory(name: str, steps: dict[str, Callable[[], None]], device: torch.device) -> Row:
    """Compare what torch has allocated at the peaks; the prompts' gradients and activations are in it."""
    if device.type != "cuda":
        return Row(name=name, value=None, unit="MiB", note=COMMAND)
    peaks = {}
    for variant, step in steps.items():
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[variant] = torch.cuda.max_memory_allocated() / 2**20
    return Row(
        name=name,
        value=peaks["attached"] - peaks["host"],
        unit="MiB",
        note=f"the bare host's: {peaks['host']:,.0f} MiB",
    )


def _attention(
    sizes: dict[str, Any], device: torch.device, dtype: torch.dtype, rounds: int, clock: Callable[[], float]
) -> list[Row]:
    """Time the detector's self-attention over the image, for 8 images, forward and backward."""
    tokens = (sizes["side"] // 32) ** 2
    query, key, value = (
        torch.randn(8, 8, tokens, 32, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )

    def attention(implementation: str) -> Callable[[], Any]:
        def run_it() -> None:
            with torch.enable_grad():
                for _ in range(20):
                    attend(query, key, value, implementation=implementation).sum().backward()

        return run_it

    names = ["sdpa", "math", *(["xformers"] if _has_xformers(device) else [])]
    times = interleaved({name: attention(name) for name in names}, rounds=rounds, clock=clock)
    by_xformers, by_sdpa, ragged = list(NAMES)[6:9]
    missing = Row(name=by_xformers, value=None, unit="x", note="xformers is not installed, or has no GPU here")
    return [
        median_row(by_xformers, ratios(times["xformers"], times["sdpa"]), unit="x") if len(names) == 3 else missing,
        median_row(by_sdpa, ratios(times["sdpa"], times["math"]), unit="x"),
        _ragged(ragged, query.detach(), rounds, clock),
    ]


def _ragged(name: str, images: Tensor, rounds: int, clock: Callable[[], float]) -> Row:
    """Time images of different lengths, forward: the i-th of 8 brings (8 + i) / 15 of its tokens."""
    if not _has_xformers(images.device):
        return Row(name=name, value=None, unit="x", note="xformers is not installed, or has no GPU here")
    from torch.nn.attention.varlen import varlen_attn

    lengths = [images.shape[2] * (8 + i) // 15 for i in range(8)]
    packed = torch.cat([image[:, :length].transpose(0, 1) for image, length in zip(images, lengths, strict=True)])
    bounds = torch.tensor([0, *lengths], device=images.device).cumsum(0).int()
    times = interleaved(
        {
            "xformers": lambda: attend_ragged(*[packed[None]] * 3, lengths, lengths, implementation="xformers"),
            "varlen": lambda: varlen_attn(*[packed] * 3, bounds, bounds, max(lengths), max(lengths)),
        },
        rounds=rounds,
        clock=clock,
    )
    return median_row(name, ratios(times["xformers"], times["varlen"]), unit="x")


def _has_xformers(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("xformers") is not None


def _clock(device: torch.device) -> Callable[[], float]:
    """Return a clock that waits for the device."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def _flops(run_it: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_it()
    total: int = counter.get_total_flops()
    return total


def _flops_per_second(side: int, device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    seconds = interleaved({"product": lambda: matrix @ matrix}, rounds=10, warm_up=3, clock=clock)["product"]
    return 2 * side**3 / min(seconds)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a bar is missed, or if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, at toy size: shows only that it runs")
    parser.add_argument("--out", type=Path, default=OUT, help="where the rows are written (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        show_rows(run(TINY, torch.device("cpu"), torch.float32, rounds=3), "toy size: the numbers mean nothing")
        return 0
    rows = measure()
    show_rows(rows, f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    write_rows(rows, chosen.out)
    return int(any(row.status in ("fail", "not run") for row in rows if row.bar is not None))


if __name__ == "__main__":
    sys.exit(main())
