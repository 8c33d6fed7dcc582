"""The local prompt's detectors against ONNX Runtime and OpenVINO: the same weights, each on its own graph of them."""

import importlib.util
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.rows import Row, check_same, interleaved, median_row, ratios
from vpp_adapters.nanodet import build_nanodet
from vpp_plugins.prompts.generators import build_detr

TOLERANCE = 1e-4
Run = Callable[[], Tensor]


def measure(rounds: int = 8) -> list[Row]:
    """Return how much faster ours is than each runtime, on one thread, for one image."""
    torch.manual_seed(0)
    nanodet = Answers(build_nanodet(num_queries=16).network)
    detectors = {"DETR": (build_detr(), 640), "NanoDet's network": (nanodet, 416)}
    return [row for name, (one, side) in detectors.items() for row in rows_of(name, one.eval(), side, rounds)]


class Answers(nn.Module):
    """NanoDet's convolutions, as one tensor; what chooses its places from them loops, and is in no graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [1, places, numbers]."""
        output = self.network(pixels)
        return torch.cat([output.logits, output.bins.flatten(2)], dim=-1)


def rows_of(name: str, detector: nn.Module, side: int, rounds: int) -> list[Row]:
    """Return a row for each runtime, "not run" where it is not installed; raises where the queries differ."""
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = _export(detector, pixels, Path(folder))
        known = {"ONNX Runtime": ("onnxruntime", _onnxruntime), "OpenVINO": ("openvino", _openvino)}
        found = {other: load(path, pixels) for other, (package, load) in known.items() if _installed(package)}
        variants: dict[str, Run] = {"ours": lambda: detector(pixels), **found}
        for other, run in found.items():
            check_same(other, run(), variants["ours"](), TOLERANCE)
        times = interleaved(variants, rounds=rounds, warm_up=2)
    return [_row(f"{name}, 1 image, float32, speed against {other}", times, other, known[other][0]) for other in known]


def _row(name: str, times: dict[str, list[float]], other: str, package: str) -> Row:
    if other not in times:
        return Row(name=name, value=None, unit="x", better="more", note=f"pip install {package}")
    ours, theirs = (1000 * statistics.median(times[one]) for one in ("ours", other))
    note = f"{ours:.0f} ms, {other} {theirs:.0f} ms"
    return median_row(name, ratios(times[other], times["ours"]), unit="x", better="more", note=note)


def _export(detector: nn.Module, pixels: Tensor, folder: Path) -> Path:
    path = folder / "detector.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter calls its own deprecated names
        program = torch.onnx.export(detector, (pixels,), dynamo=True, verbose=False, input_names=["pixels"])
    assert program is not None  # dynamo returns one
    program.save(path, external_data=False)
    return path


def _onnxruntime(path: Path, pixels: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _openvino(path: Path, pixels: Tensor) -> Run:
    import openvino

    exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", exact)
    return lambda: torch.from_numpy(model(pixels.numpy())[0])


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
