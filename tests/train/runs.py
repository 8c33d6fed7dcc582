"""Small data sets and recipes for training the tiny hosts. Imported as `tests.train.runs`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.families.tiny_hosts import WORDS
from tests.families import attached_family
from tests.tiny import TOY_GLOBAL, TOY_LOCAL, image
from vpp_plugins.config import VPPConfig
from vpp_plugins.data.formats import Writing
from vpp_plugins.data.formats.neutral import write_neutral
from vpp_plugins.data.formats.webdataset import write_webdataset
from vpp_plugins.data.sample import Sample, Talk
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import Trained, train

SIZE = (40, 24)
WORDS_SAID = WORDS[6:]


def word(number: int) -> str:
    return WORDS_SAID[number % len(WORDS_SAID)]


def samples(count: int, *, text_only: Sequence[int] = ()) -> list[Sample]:
    """Questions of two words, and answers that follow from them; those numbered in `text_only` have no image."""
    return [
        Sample(
            id=f"s{n}",
            image="" if n in text_only else f"{n % 4}.png",
            width=0 if n in text_only else SIZE[0],
            height=0 if n in text_only else SIZE[1],
            turns=(Talk(f"{word(n)} {word(n // 6)}", f"{word(n + 1)} {word(n // 6 + 2)}"),),
        )
        for n in range(count)
    ]


def write_data(folder: Path, made: Sequence[Sample]) -> Path:
    """Write samples and four images of noise; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(4):
        image(seed, SIZE).save(folder / f"{seed}.png")
    write_neutral(made, Writing(folder / "data.jsonl"))
    return folder / "data.jsonl"


def write_shards(folder: Path, made: Sequence[Sample], *, images: Path, shard_bytes: int = 8000) -> Path:
    """Write samples and their images as shards of a few samples; returns their folder."""
    write_webdataset(made, Writing(folder, images=images, shard_bytes=shard_bytes))
    return folder


QUICK: Mapping[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "dataloader_pin_memory": False,
    "learning_rate": 1e-3,
}
"""A short run on the CPU, quiet and deterministic."""


def recipe(data: Path, out: Path, **changes: Any) -> Recipe:
    """A quick run."""
    return Recipe.from_dict({"model": "given", "data": str(data), "output_dir": str(out), **QUICK, **changes})


def run_llava(data: Path, out: Path, **changes: Any) -> Trained:
    """Train the attached tiny LLaVA on a quick recipe."""
    model, processor = attached_family("llava")
    return train(recipe(data, out, **changes), model=model, processor=processor)


def toy_prompts() -> VPPConfig:
    return VPPConfig(global_vpp=TOY_GLOBAL, local_vpp=TOY_LOCAL)
