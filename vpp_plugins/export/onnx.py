"""The local prompt as an ONNX graph, for serving it without PyTorch."""

import copy
import importlib.util
import os
import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file
from vpp_plugins.prompts import VPP


def export_local_prompt(vpp: VPP, path: str | os.PathLike[str]) -> Path:
    """Write the local prompt as one ONNX file, in float32, and return its path; the file appears whole or not at all.

    The graph takes `pixel_values [images, 3, side, side]`, as `images.letterbox` makes them at the configuration's
    `image_size`, any number of images at a time, and returns `features [images, queries, hidden]`: what the
    placeholders' rows of the token embeddings are replaced by. The global prompt on the detector's images, and the
    mask of their padding, are in the graph. `vpp` is an attached model's `model.vpp`, and stays as it is.

        export_local_prompt(model.vpp, "local_prompt.onnx")
        features = onnxruntime.InferenceSession("local_prompt.onnx").run(None, {"pixel_values": pixels})[0]

    Needs the packages onnx and onnxscript. Raises VPPError without them, without a local prompt, and for a detector
    that ONNX cannot express.
    """
    if vpp.local_vpp is None or vpp.config.local_vpp is None:
        raise VPPError("there is no local prompt to export: this model was attached with VPPConfig(local_vpp=None).")
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise VPPError(f"exporting to ONNX needs {' and '.join(missing)}: pip install onnx onnxscript.")
    side = vpp.config.local_vpp.image_size
    module = _LocalPrompt(copy.deepcopy(vpp).float().cpu()).eval()
    images = torch.zeros(2, 3, side, side)  # two, because tracing takes a single one for a constant
    try:
        with whole_file(Path(path)) as file, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter calls its own deprecated names
            program = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                verbose=False,
                optimize=False,  # runtimes do it themselves
                input_names=["pixel_values"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("images")},),
            )
            if program is None:
                raise VPPError("this version of torch returned no ONNX program: torch 2.6 or newer is needed.")
            program.save(file.name, external_data=False)
    except torch.onnx.OnnxExporterError as error:
        generator = type(vpp.local_vpp.generator).__name__
        raise VPPError(
            f"the generator {generator} cannot be exported to ONNX ({str(error).splitlines()[0]}): serve it with torch."
        ) from error
    return Path(path)


class _LocalPrompt(nn.Module):
    """Images in, features out, one row of queries for each image."""

    def __init__(self, vpp: VPP) -> None:
        super().__init__()
        self.vpp = vpp

    def forward(self, pixel_values: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images queries hidden"]:
        return self.vpp(pixel_values).features.unflatten(0, (pixel_values.shape[0], self.vpp.tokens_per_image))
