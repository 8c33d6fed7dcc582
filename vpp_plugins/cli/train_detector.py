"""`vpp train-detector`: pretrain the local prompt's detector."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vpp_plugins.errors import VPPError
from vpp_plugins.files import unique_keys


def train_detector(
    data: Annotated[
        Path, typer.Argument(help="Box data, such as COCO's instances_train2017.json.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    data_format: Annotated[str, typer.Option("--format", help="Its format; see vpp data formats.")] = "coco",
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if not the data's own.")] = None,
    split: Annotated[str, typer.Option(help="Only this split, where the file holds several.")] = "",
    eval_data: Annotated[Path | None, typer.Option(help="Held-out data of the same format.")] = None,
    one_class: Annotated[bool, typer.Option(help="Call everything an object; for expressions.")] = False,
    weights: Annotated[str | None, typer.Option(help="DETR weights to begin with: a file, folder or hub id.")] = None,
    queries: Annotated[int, typer.Option(help="Object queries.", min=1)] = 100,
    options: Annotated[str, typer.Option(help='Generator options as JSON: {"backbone": "resnet50"}.')] = "{}",
    image_size: Annotated[int, typer.Option(help="Side of the detector's image, a multiple of 32.")] = 640,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images; not for names with left and right.")] = True,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = 10_000,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 500,
    batch_size: Annotated[int, typer.Option(help="Images per step and device.", min=1)] = 8,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    backbone_lr: Annotated[float, typer.Option(help="Learning rate of the backbone.")] = 1e-5,
    workers: Annotated[int, typer.Option(help="Processes that load images.", min=0)] = 2,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16, on a GPU.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with an earlier run in the folder.")] = False,
) -> None:
    """Pretrain the local prompt's detector on boxes.

    The folder then goes into local_vpp.weights. Prints recall at IoU 0.5.

    Several GPUs: torchrun --nproc-per-node 8 -m vpp_plugins.cli train-detector ...

    Example: vpp train-detector instances_train2017.json --images train2017 --out runs/detector --steps 50000
    """
    from vpp_plugins.train.detector import train_detector as train

    score = train(
        data,
        out,
        data_format=data_format,
        images=images,
        split=split,
        eval_data=eval_data,
        one_class=one_class,
        num_queries=queries,
        generator_options=_parsed(options),
        weights=weights,
        image_size=image_size,
        flip=flip,
        backbone_lr=backbone_lr,
        resume=resume,
        max_steps=steps,
        save_steps=save_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        dataloader_num_workers=workers,
        bf16=bf16,
        seed=seed,
    )
    typer.echo(f"recall at IoU 0.5: {score.recall:.1%}; with the right name: {score.recall_named:.1%}")
    typer.echo(f'written to {out}: local_vpp.weights = "{out}", local_vpp.num_queries = {queries}')


def _parsed(options: str) -> dict[str, Any]:
    try:
        values = json.loads(options, object_pairs_hook=unique_keys)
    except ValueError as error:
        raise VPPError(f"--options should be JSON, but is {options!r} ({error}).") from None
    if not isinstance(values, dict):
        raise VPPError(f"--options should be a JSON object, but is {options!r}.")
    return values
