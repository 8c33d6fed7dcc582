"""What keeping encodings saves a training step: the pocket model with its frozen tower and NanoDet, one thread."""

import copy
import statistics
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.rows import Row, interleaved, median_row, ratios
from benchmarks.training import Step
from vpp_plugins.pocket import untrained_pocket
from vpp_plugins.processor import VPPProcessor
from vpp_plugins.train.encodings import KeptEncodings

IMAGES, SIDE = 4, 320
TEXT = "USER: <image>\nPlease provide the bounding box coordinate: the cup. ASSISTANT:[0.1, 0.2, 0.3, 0.4]"


def measure(rounds: int = 12, images: int = IMAGES) -> list[Row]:
    """Return the time of a step that reads what was kept, to that of one that encodes, the loading of images aside."""
    model, processor = untrained_pocket()
    model.vpp.trained = True
    model.vpp.global_vpp.requires_grad_(False)
    inputs = _inputs(VPPProcessor(processor, model), images)
    models: dict[str, Any] = {"kept": model, "anew": copy.deepcopy(model)}
    steps = {name: Step(one, partial(_loss, one, inputs)) for name, one in models.items()}
    with TemporaryDirectory() as folder:
        encodings = KeptEncodings(model, folder)
        steps["kept"]()  # writes them
        times = interleaved(steps, rounds=rounds)
        encodings.remove()
    shown = ", ".join(f"{name} {1000 * statistics.median(seconds):.0f} ms" for name, seconds in times.items())
    name = f"training step of the pocket model, {images} images, encodings kept, to encoding anew"
    return [median_row(name, ratios(times["kept"], times["anew"]), unit="x", note=shown)]


def _loss(model: Any, inputs: Any) -> Tensor:
    loss: Tensor = model(**inputs, labels=inputs["input_ids"]).loss
    return loss


def _inputs(processor: VPPProcessor, images: int) -> Any:
    noise = torch.randint(0, 256, (images, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shown = [[Image.fromarray(image.numpy())] for image in noise]
    return processor(images=shown, text=[TEXT] * images, return_tensors="pt", padding=True)
