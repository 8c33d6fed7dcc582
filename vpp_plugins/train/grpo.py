"""GRPO on an attached model: TRL's trainer, with the detector's images passed on.

TRL knows the inputs of vision models by name, and cuts them into batches by hand. It makes `vpp_pixel_values` with the
processor and generates with them, but its log-probabilities take no input that it does not know. `VPPGRPOTrainer` hands
them the images. It overrides a private method, which is the same in TRL 1.8 to 1.16; tests/train/test_grpo.py says so
when another release differs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from vpp_plugins import plugins
from vpp_plugins.attach import active_vpp, host_state, unwrap
from vpp_plugins.boxes import metas_of
from vpp_plugins.errors import VPPError
from vpp_plugins.images import letterbox, load_image
from vpp_plugins.train.checkpoints import SealedTrainer, check_files

Images = list[Float[Tensor, "images 3 side side"]]
"""The detector's images of each sample."""


class VPPGRPOTrainer(SealedTrainer, GRPOTrainer):
    """GRPOTrainer for an attached model; `processing_class` is its VPPProcessor, and data have `image` or `images`.

    Not for hosts that cut images into tiles, nor for a reference model beside the trained one (`beta` above 0
    without PEFT): TRL loads that one anew, without prompts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        host = unwrap(model)
        vpp = active_vpp(host)
        if vpp.global_vpp is not None and host_state(host).backbone.tiled:
            raise VPPError(
                "this host cuts images into tiles, whose vpp_tile_boxes TRL cannot split into batches: attach with "
                "VPPConfig(global_vpp=None), or train with another family."
            )
        if self.beta and self.ref_model is not None:
            raise VPPError(
                "beta above 0 compares with a reference model, which TRL loads without prompts: set beta=0, or train "
                "with PEFT, whose reference is the model with its adapter off."
            )
        self._codec = plugins.box_codec(host_state(host).backbone.box_format)
        self._side = 0 if vpp.config.local_vpp is None else vpp.config.local_vpp.image_size
        self._images: Images = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep the images beside the samples, which TRL shuffles and splits."""
        self._images = [self._views(example) for example in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions([self._sized(one) for one in inputs])
        return {**output, "vpp_pixel_values": self._images}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Raise VPPError first where a file of the checkpoint is not as it was saved."""
        check_files(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the images of this part of the samples."""
        self._images = inputs["vpp_pixel_values"]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Give the model the images of the samples that it is called with, a few at a time and in order."""
        kwargs.pop("vpp_pixel_values", None)
        fed = _Fed(model, self._images) if self._side else model
        return super()._get_per_token_logps_and_entropies(fed, *args, **kwargs)

    def _views(self, example: Mapping[str, Any]) -> Float[Tensor, "images 3 side side"]:
        views = [letterbox(load_image(image), self._side) for image in _given(example)]
        return torch.stack(views) if views else torch.empty(0, 3, self._side, self._side)

    def _sized(self, example: dict[str, Any]) -> dict[str, Any]:
        """Return a sample with the size in which its image is shown, for rewards of families that count its pixels.

        Raises VPPError where the sample says otherwise: its reward would be of another box.
        """
        images = _given(example)
        if self._codec.scale.full is not None or len(images) != 1:
            return example
        processor: Any = self.processing_class
        (meta,) = metas_of([load_image(images[0])], self._codec, processor.image_processor)
        stated, shown = example.get("processed_size_hw"), meta.processed_size_hw
        if stated is not None and tuple(stated) != shown:
            raise VPPError(
                f"a sample's processed_size_hw is {list(stated)}, but the processor shows its image at {shown}, "
                "height and width: leave the column out, it is filled in."
            )
        return {**example, "processed_size_hw": shown}


def _given(example: Mapping[str, Any]) -> list[Any]:
    """Return the images of a sample."""
    if "images" not in example and "image" not in example:
        raise VPPError("every sample needs its image in a column 'image', or a list of them in 'images'.")
    images: Sequence[Any] = example["images"] if "images" in example else [example["image"]]
    return [image for image in images if image is not None]


class _Fed:
    """A model that is called with consecutive samples, and gets their images too."""

    def __init__(self, model: Any, images: Images) -> None:
        self.model, self.images, self.row = model, images, 0

    def __call__(self, *, input_ids: Tensor, **inputs: Any) -> Any:
        images = self.images[self.row : self.row + len(input_ids)]
        self.row += len(input_ids)
        views = torch.cat(images).to(input_ids.device)
        return self.model(input_ids=input_ids, vpp_pixel_values=views, **inputs)
