"""What converting a VPP-LLaVA checkpoint of 7B shapes takes: memory at its peak, against the largest shard, and time.

`python -m benchmarks.convert --width 1` makes random weights of the whole size, 14 GB, and as much again; 0.125, the
default, an eighth of the language model's width. CLIP's and the detector's sizes stay.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference import FOLDER, reference_keys

HIDDEN, INTERMEDIATE, SHARDS = 4096, 11008, 3
CHILD = """
import json, re, sys, time
from pathlib import Path
import timm
from vpp_adapters.vpp_llava.convert import convert
from vpp_plugins.plugins.registry import manager

manager()
def peak():  # getrusage would count what the parent held when it forked
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before, start = peak(), time.perf_counter()
convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps({"imports_mb": before, "peak_mb": peak(), "seconds": time.perf_counter() - start}))
"""


@dataclass(frozen=True)
class Conversion:
    """One conversion; sizes in MB of 2**20 bytes."""

    width: float
    checkpoint_mb: float
    largest_shard_mb: float
    imports_mb: float
    """Peak of the process before it converts: Python and the libraries."""
    peak_mb: float
    seconds: float

    @property
    def extra_shards(self) -> float:
        """Memory that converting takes, in largest shards."""
        return (self.peak_mb - self.imports_mb) / self.largest_shard_mb

    def __str__(self) -> str:
        return (
            f"converting {self.checkpoint_mb:,.0f} MB at {self.width:g} of 7B's width: {self.peak_mb:,.0f} MB at the "
            f"peak, {self.peak_mb - self.imports_mb:,.0f} MB more than the imports, which is {self.extra_shards:.2f} "
            f"of the largest shard ({self.largest_shard_mb:,.0f} MB); {self.seconds:.0f} s"
        )


def measure(width: float = 0.125) -> Conversion:
    """Make a checkpoint, and convert it in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="vpp-convert-") as folder:
        source = Path(folder) / "source"
        write_checkpoint(source, width)
        sizes = [path.stat().st_size / 2**20 for path in source.glob("*.safetensors")]
        command = [sys.executable, "-c", CHILD, str(source), str(Path(folder) / "converted")]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Conversion(width=width, checkpoint_mb=sum(sizes), largest_shard_mb=max(sizes), **json.loads(answer))


def write_checkpoint(folder: Path, width: float) -> None:
    """Write random weights in VPP-LLaVA's own layout, in bfloat16, in three shards with their index."""
    folder.mkdir(parents=True)
    shapes = {key: _narrowed(key, shape, width) for key, shape in reference_keys("7b").items()}
    places = {}
    noise = torch.randn(2**22).mul_(0.02).bfloat16()
    for number, keys in enumerate(_parts(shapes), start=1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        save_file({key: _random(shapes[key], noise) for key in keys}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(keys, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    settings = {
        **json.loads((FOLDER / "checkpoint" / "config.json").read_text()),
        "hidden_size": int(HIDDEN * width),
        "intermediate_size": int(INTERMEDIATE * width),
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(FOLDER / "checkpoint" / name, folder)


def _narrowed(key: str, shape: tuple[int, ...], width: float) -> tuple[int, ...]:
    if "vision_tower" in key:
        return shape
    return tuple(int(side * width) if side in (HIDDEN, INTERMEDIATE) else side for side in shape)


def _parts(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    total, done, part = sum(map(math.prod, shapes.values())), 0, 0
    keys: list[str] = []
    for key in sorted(shapes):
        keys.append(key)
        done += math.prod(shapes[key])
        if done * SHARDS >= total * (part + 1):
            yield keys
            keys, part = [], part + 1


def _random(shape: tuple[int, ...], noise: Tensor) -> Tensor:
    count = math.prod(shape)
    return noise.repeat(-(-count // len(noise)))[:count].reshape(shape).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.125, help="share of 7B's width (default: %(default)s)")
    conversion = measure(parser.parse_args().width)
    print(conversion)
    print(json.dumps(asdict(conversion)))


if __name__ == "__main__":
    main()
