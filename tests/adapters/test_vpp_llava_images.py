import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.tiny import image
from vpp_adapters.vpp_llava.images import LlavaImageProcessorPil

SIDE = 48
USUAL = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "do_pad": True}


def same(images: Any, **changes: Any) -> None:
    theirs = transformers.LlavaImageProcessorPil(**{**USUAL, **changes})(images, return_tensors="pt")
    ours = LlavaImageProcessorPil(**{**USUAL, **changes})(images, return_tensors="pt")
    assert ours.keys() == theirs.keys()
    assert ours["pixel_values"].dtype == theirs["pixel_values"].dtype
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@pytest.mark.parametrize(
    "size",
    [(SIDE, SIDE), (90, 50), (50, 90), (91, 52), (200, 9), (9, 200), (20, 12), (131, 130), (SIDE, 30), (30, SIDE)],
)
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_pixels_are_transformers_bit_for_bit(size: tuple[int, int], resample: Image.Resampling) -> None:
    same(image(0, size), resample=resample)
    same(Image.new("RGB", size, (255, 0, 7)), resample=resample)


def test_images_come_in_batches_and_as_arrays() -> None:
    same([image(0, (90, 50)), image(1, (50, 90))])
    same(np.array(image(0, (90, 50))))
    same(image(0, (90, 50)).convert("L"))


@pytest.mark.parametrize(
    "changes",
    [
        {"do_pad": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_center_crop": False},
        {"crop_size": {"height": 32, "width": 32}},
        {"size": {"height": SIDE, "width": SIDE}},
        {"rescale_factor": 1 / 127.5, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
    ],
)
def test_other_settings_do_what_transformers_does(changes: dict[str, Any]) -> None:
    same(image(0, (90, 50)), **changes)


def test_float_arrays_are_left_to_transformers() -> None:
    same(np.random.default_rng(0).random((50, 90, 3), dtype=np.float32), do_pad=False, do_rescale=False)


def test_it_is_saved_under_transformers_name_and_pickles(tmp_path: Path) -> None:
    ours = LlavaImageProcessorPil(**USUAL)

    ours.save_pretrained(tmp_path / "ours")
    transformers.LlavaImageProcessorPil(**USUAL).save_pretrained(tmp_path / "theirs")

    saved, theirs = (
        json.loads((tmp_path / kind / "preprocessor_config.json").read_text()) for kind in ("ours", "theirs")
    )
    assert saved == theirs
    assert pickle.loads(pickle.dumps(ours)).to_dict() == ours.to_dict()
    assert ours.to_dict() == transformers.LlavaImageProcessorPil(**USUAL).to_dict()
