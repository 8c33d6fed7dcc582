"""`train_detector`: pretrain the local prompt's DETR on box data (Carion et al., 2020; VPP-LLaVA starts from one).

The result is a folder that `LocalVPPConfig(weights=...)` loads, with the same `num_queries` and `generator_options`.
"""

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import TrainingArguments, set_seed

from vpp_plugins.errors import VPPError
from vpp_plugins.files import only_one, whole_file
from vpp_plugins.prompts.generators import DETR, DetectionHeads, Detections, build_detr, load_detr_weights
from vpp_plugins.train.checkpoints import SealedTrainer, check_files
from vpp_plugins.train.detector.boxed_images import BoxedImages, collate_boxed, load_boxed
from vpp_plugins.train.detector.loss import Objects, count_found, detection_loss

WEIGHTS_FILE, ABOUT_FILE = "model.safetensors", "detector.json"


@dataclass(frozen=True)
class DetectorScore:
    """How well a detector finds what is boxed: shares of all objects, 0 to 1."""

    recall: float
    """Objects that some query's box meets at IoU 0.5."""
    recall_named: float
    """Those of them whose best box is also given the right class."""


class DetectorTask(nn.Module):
    """A DETR with detection heads, as Trainer wants it: a batch in, its loss out, and in evaluation what was found.

    With `flip`, half of the training images are mirrored. `mask_padding` is the prompt's own setting.
    """

    def __init__(self, detector: DETR, heads: DetectionHeads, *, mask_padding: bool = True, flip: bool = True) -> None:
        super().__init__()
        self.detector, self.heads = detector, heads
        self.mask_padding, self.flip = mask_padding, flip

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        classes: Int64[Tensor, "images objects"],
        boxes_cxcywh: Float[Tensor, "images objects 4"],
    ) -> dict[str, Tensor]:
        """Return `loss`, summed over the decoder's layers, and outside training `counts`, see `count_found`."""
        if self.training and self.flip:
            # drawn here, not while images are loaded: here the random state is the step's, so a resumed run agrees
            mirrored = torch.rand(len(pixel_values), device=pixel_values.device) < 0.5
            pixel_values = torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)
            other_side = torch.cat([1 - boxes_cxcywh[..., :1], boxes_cxcywh[..., 1:]], dim=-1)
            boxes_cxcywh = torch.where(mirrored[:, None, None], other_side, boxes_cxcywh)
        mask = (pixel_values != 0).any(dim=1) if self.mask_padding else None
        features = self.detector.features(pixel_values)
        seen = self.heads(self.detector.queries(features, mask, intermediate=True))
        objects = Objects(classes, boxes_cxcywh)
        loss = detection_loss(seen, objects)
        if self.training:
            return {"loss": loss}
        return {"loss": loss, "counts": count_found(Detections(seen.logits[-1], seen.boxes_cxcywh[-1]), objects)}


class DetectorTrainer(SealedTrainer):
    """Trainer with a learning rate of its own for the backbone, as DETR has."""

    def __init__(self, *args: Any, backbone_lr: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backbone_lr = backbone_lr

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over two groups."""
        if self.optimizer is None:
            task: Any = self.model
            backbone = {id(parameter) for parameter in task.detector.backbone.parameters()}
            groups: list[dict[str, Any]] = [
                {"params": [p for p in task.parameters() if id(p) not in backbone], "lr": self.args.learning_rate},
                {"params": list(task.detector.backbone.parameters()), "lr": self.backbone_lr},
            ]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=self.args.weight_decay)
        return self.optimizer


def train_detector(
    data: str | Path,
    output_dir: str | Path,
    *,
    data_format: str = "coco",
    images: str | Path | None = None,
    split: str = "",
    eval_data: str | Path | None = None,
    one_class: bool = False,
    num_queries: int = 100,
    generator_options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    image_size: int = 640,
    mask_padding: bool = True,
    flip: bool = True,
    backbone_lr: float = 1e-5,
    resume: bool = False,
    **trainer: Any,
) -> DetectorScore:
    """Train a DETR on boxes, write it to `output_dir`, and return its score on `eval_data` (None: on the data itself).

    `num_queries`, `generator_options`, `image_size` and `mask_padding` are those of the `LocalVPPConfig` that will load
    it; `weights` are DETR weights to begin with. `trainer` are transformers' TrainingArguments by name; the defaults
    are DETR's: learning rate 1e-4 (1e-5 for the backbone), weight decay 1e-4, gradients clipped at 0.1. Names with
    "left" or "right" in them want `flip=False`.

    Killed at any point, the same call with `resume=True` goes on from the last whole checkpoint. Raises VPPError for
    data, weights or settings that do not fit, before anything is trained.
    """
    out = Path(output_dir)
    last = _last_whole(out)
    _check_fresh(out, last, resume=resume)
    if last is not None:
        check_files(last)
    arguments = _arguments(out, trainer)
    for name, rate in (("learning_rate", arguments.learning_rate), ("backbone_lr", backbone_lr)):
        if not 0 <= rate < math.inf:  # with NaN it would train on, to weights of NaN
            raise VPPError(f"{name} should be a number, 0 or more, but is {rate}.")
    set_seed(arguments.seed)
    train_set, eval_set = _load(
        Path(data), eval_data, data_format, images=images, split=split, one_class=one_class, side=image_size
    )
    about = {
        "classes": list(train_set.classes),
        "num_queries": num_queries,
        "generator_options": dict(generator_options or {}),
        "image_size": image_size,
        "mask_padding": mask_padding,
    }
    task = _task(about, weights, flip=flip)
    runner = DetectorTrainer(
        model=task,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=collate_boxed,
        compute_metrics=_score,
        backbone_lr=backbone_lr,
    )
    held = only_one(out, "training run", advice="name another folder")
    with held if arguments.should_save else nullcontext():
        score = _trained(runner, last)
        if arguments.should_save:
            save_detector(task, out, {**about, "recall": score.recall, "recall_named": score.recall_named})
    return score


def _task(about: Mapping[str, Any], weights: str | Path | None, *, flip: bool) -> DetectorTask:
    detector = build_detr(num_queries=about["num_queries"], **about["generator_options"])
    if weights is not None:
        load_detr_weights(detector, weights)
    heads = DetectionHeads(detector.width, len(about["classes"]))
    return DetectorTask(detector, heads, mask_padding=about["mask_padding"], flip=flip)


def _trained(runner: DetectorTrainer, last: Path | None) -> DetectorScore:
    """Train from the last checkpoint on, or from the beginning, and return the score."""
    if last is not None and _steps(last) >= runner.args.max_steps > 0:  # Trainer would take one more
        runner._load_from_checkpoint(str(last))
    else:
        runner.train(resume_from_checkpoint=None if last is None else str(last))
    metrics = runner.evaluate()
    return DetectorScore(metrics["eval_recall"], metrics["eval_recall_named"])


def save_detector(task: DetectorTask, folder: Path, about: Mapping[str, Any]) -> None:
    """Write weights under DETR's own names, heads included, and `detector.json` about them; each whole or not at all.

    Weights come last: where they are, the rest is too.
    """
    from safetensors.torch import save

    tensors = {**task.detector.state_dict(), **task.heads.state_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / ABOUT_FILE) as file:
        file.write(json.dumps(about, indent=2, ensure_ascii=False).encode() + b"\n")
    with whole_file(folder / WEIGHTS_FILE) as file:
        file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def _load(
    data: Path,
    eval_data: str | Path | None,
    data_format: str,
    *,
    images: str | Path | None,
    split: str,
    one_class: bool,
    side: int,
) -> tuple[BoxedImages, BoxedImages]:
    folder = None if images is None else Path(images)
    loaded, root = load_boxed(data, data_format, images=folder, split=split, one_class=one_class)
    classes = sorted({name for image in loaded for name in image.names})
    train_set = BoxedImages(loaded, root, classes, side=side)
    if eval_data is None:
        return train_set, train_set
    held_out, root = load_boxed(Path(eval_data), data_format, images=folder, one_class=one_class)
    unknown = sorted({name for image in held_out for name in image.names} - {*classes})
    if unknown:
        raise VPPError(
            f"'{eval_data}' has {len(unknown)} names that '{data}' has not, such as '{unknown[0]}': the detector "
            "cannot learn them; leave them out, or train with one class."
        )
    return train_set, BoxedImages(held_out, root, classes, side=side)


def _arguments(out: Path, given: Mapping[str, Any]) -> TrainingArguments:
    steps = given.get("max_steps", -1)
    values: dict[str, Any] = {
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "max_grad_norm": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(0, min(200, steps // 10)),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "save_total_limit": 2,
        "report_to": [],
        "dataloader_pin_memory": torch.cuda.is_available(),
        **given,
        "output_dir": str(out),
        "remove_unused_columns": False,
        "label_names": ["classes", "boxes_cxcywh"],
    }
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError) as error:
        raise VPPError(f"transformers does not take these settings: {error}") from None


def _score(predicted: Any) -> dict[str, float]:
    objects, met, named = predicted.predictions.sum(axis=0).tolist()
    return {"recall": met / objects, "recall_named": named / objects}


def _check_fresh(out: Path, last: Path | None, *, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise VPPError(f"'{out}' is a file: name a folder to write the detector to.")
    if not resume and (last is not None or (out / WEIGHTS_FILE).exists()):
        raise VPPError(f"'{out}' holds an earlier run: go on with it (--resume), or name another folder.")


def _last_whole(out: Path) -> Path | None:
    """Return the last checkpoint that was written to its end: Trainer writes trainer_state.json last."""
    for folder in sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):
            _steps(folder)
            return folder
    return None


def _steps(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
