"""The generator "nanodet": the best places of a small detector that knows COCO's 80 classes, without any training."""

from vpp_adapters.nanodet.generator import (
    NAMES,
    NanoDetQueries,
    box_code,
    build_nanodet,
    vpp_generator,
    vpp_generator_names,
)

__all__ = ["NAMES", "NanoDetQueries", "box_code", "build_nanodet", "vpp_generator", "vpp_generator_names"]
