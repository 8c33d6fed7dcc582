"""Any detector of transformers with decoder queries as a generator: the paper's exchange of DETR for another one.

Tried: DETR, Conditional, DAB and Deformable DETR, RT-DETR, RT-DETRv2 and D-FINE.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.prompts.generators.frozen_norm import freeze_batch_norms


class HFDetector(nn.Module):
    """What a detector has inside its heads; its decoder's last hidden states are the queries.

    Heads that the decoder itself uses, to refine boxes from layer to layer, are part of it. Batch norms are frozen, as
    DETR's are: an image's queries do not depend on its batch.
    """

    def __init__(self, model: Any, *, num_queries: int, width: int) -> None:
        super().__init__()
        freeze_batch_norms(model)
        self.model = model
        self.num_queries, self.width = num_queries, width

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        pixel_mask: Bool[Tensor, "images height width"] | None = None,
    ) -> Float[Tensor, "images {self.num_queries} {self.width}"]:
        """Return the object queries; the mask is True on image. RT-DETR and its descendants ignore it."""
        mask = pixel_mask if pixel_mask is None else pixel_mask.long()
        return self.model(pixel_values=pixel_values, pixel_mask=mask).last_hidden_state + self._untouched()

    def _untouched(self) -> Tensor:
        """Return zero, made of every parameter.

        Some detectors choose queries and refine boxes by heads that no gradient reaches. Data-parallel training waits
        for a gradient of every parameter, so these get zeros.
        """
        first = [parameter.flatten()[:1] for parameter in self.model.parameters() if parameter.requires_grad]
        return 0 * torch.cat(first).sum() if first else torch.zeros(())


def build_hf_detector(*, num_queries: int, config: Mapping[str, Any] | str) -> HFDetector:
    """Build a detector at random weights from transformers' configuration of it.

    `config` is the configuration itself as JSON values, its `model_type` among them, or a folder or hub id that holds
    it; only a hub id touches the network. Weights come from `LocalVPPConfig(weights=...)`.

        LocalVPPConfig(generator="hf_detector", num_queries=300, generator_options={"config": "PekingU/rtdetr_r50vd"})

    Raises VPPError for what is no detector with decoder queries, and for one that needs a text, as Grounding DINO does:
    the local prompt is made of the image alone, before a question is known.
    """
    from transformers import AutoModelForObjectDetection
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES

    settings = _configuration(config)
    kind, values = settings.model_type, settings.to_dict()
    if kind in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES:
        raise VPPError(
            f"'{kind}' needs a text, and the local prompt is made of the image alone: name a detector without one."
        )
    if "num_queries" not in values:
        raise VPPError(f"'{kind}' has no num_queries, so it makes no object queries: name a DETR-like detector.")
    settings.num_queries = num_queries
    if "two_stage_num_proposals" in values:
        settings.two_stage_num_proposals = num_queries
    for part in (settings, values.get("backbone_config") and settings.backbone_config):
        if part and "use_pretrained_backbone" in part.to_dict():
            part.use_pretrained_backbone = False  # or it would be fetched
    try:
        detector = AutoModelForObjectDetection.from_config(settings)
    except ValueError as error:
        raise VPPError(f"transformers cannot build '{kind}' as a detector: {error}") from None
    return HFDetector(detector.model, num_queries=num_queries, width=settings.hidden_size)


def load_hf_weights(detector: HFDetector, source: str | os.PathLike[str]) -> None:
    """Copy the weights of a folder or hub id that transformers loads into a detector of the same configuration.

    Heads that make no queries are left out. Raises VPPError, and changes nothing, unless every tensor is found in its
    shape.
    """
    from transformers import AutoModelForObjectDetection

    try:
        loaded, report = AutoModelForObjectDetection.from_pretrained(
            source, config=detector.model.config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise VPPError(f"'{source}' could not be loaded into this detector: {error}") from None
    if lost := sorted(report["missing_keys"]):
        raise VPPError(
            f"'{source}' lacks {len(lost)} of this detector's tensors, such as '{lost[0]}': its configuration is "
            "another one, or it is another detector. Nothing was loaded."
        )
    detector.model.load_state_dict(
        {
            name: tensor
            for name, tensor in loaded.model.state_dict().items()
            if not name.endswith(".num_batches_tracked")
        }
    )


def configuration_values(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a detector's configuration as JSON values, for who has not the folder that holds it."""
    values = json.loads(_configuration(str(folder)).to_json_string())
    return {name: value for name, value in values.items() if name not in ("_name_or_path", "transformers_version")}


def _configuration(config: Mapping[str, Any] | str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if isinstance(config, str):
        try:
            return AutoConfig.from_pretrained(config)
        except (OSError, ValueError) as error:
            raise VPPError(f"'{config}' is no folder or hub id with a configuration of transformers: {error}") from None
    values = dict(config)
    kind = values.pop("model_type", None)
    if kind is None:
        raise VPPError("the detector's configuration has no model_type: add it, such as 'conditional_detr'.")
    if kind not in CONFIG_MAPPING:
        raise VPPError(f"transformers knows no model_type '{kind}'.{nearest(kind, list(CONFIG_MAPPING))}")
    return CONFIG_MAPPING[kind](**values)
