"""Pretrain the local prompt's detector on cached features: DETR's set loss, with the scenes' nouns as classes.

python examples/pocket/pretrain_detector.py --cache cache --out runs/detector --steps 2600
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cached_scenes import CachedScenes
from schedule import rate
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from vpp_plugins.pocket import pocket_config
from vpp_plugins.prompts.generators import DetectionHeads, build_detr

CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT, NOTHING_WEIGHT = 1.0, 5.0, 2.0, 0.1


def targets(scene: dict, classes: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Class numbers and boxes (cxcywh, fractions) of one scene's objects."""
    names = torch.tensor([classes[name] for name, _ in scene["objects"]])
    boxes = torch.tensor([box for _, box in scene["objects"]])
    return names, box_convert(boxes, "xyxy", "cxcywh")


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, names: list[Tensor], wanted: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The cheapest one-to-one assignment of queries to objects, per image."""
    sizes = [len(n) for n in names]
    all_names, all_boxes = torch.cat(names), torch.cat(wanted)
    flat = boxes.flatten(0, 1).float()
    cost = -CLASS_WEIGHT * logits.float().softmax(-1).flatten(0, 1)[:, all_names]
    cost += L1_WEIGHT * torch.cdist(flat, all_boxes, p=1)
    cost -= GIOU_WEIGHT * generalized_box_iou(
        box_convert(flat, "cxcywh", "xyxy"), box_convert(all_boxes, "cxcywh", "xyxy")
    )
    per_image = cost.view(len(names), boxes.shape[1], -1).split(sizes, -1)
    pairs = [linear_sum_assignment(c[i].numpy()) for i, c in enumerate(per_image)]
    return [(torch.from_numpy(rows), torch.from_numpy(columns)) for rows, columns in pairs]


def set_loss(logits: Tensor, boxes: Tensor, names: list[Tensor], wanted: list[Tensor], class_weights: Tensor) -> Tensor:
    """DETR's loss of one decoder layer."""
    pairs = match(logits, boxes, names, wanted)
    image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(pairs)])
    query = torch.cat([rows for rows, _ in pairs])
    labels = torch.full(logits.shape[:2], len(class_weights) - 1)
    labels[image, query] = torch.cat([n[columns] for n, (_, columns) in zip(names, pairs, strict=True)])
    found = boxes[image, query].float()
    truth = torch.cat([w[columns] for w, (_, columns) in zip(wanted, pairs, strict=True)])
    giou = torch.diag(generalized_box_iou(box_convert(found, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy")))
    loss = CLASS_WEIGHT * F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), class_weights)
    return loss + L1_WEIGHT * F.l1_loss(found, truth, reduction="sum") / len(truth) + GIOU_WEIGHT * (1 - giou).mean()


@torch.no_grad()
def evaluate(detector: nn.Module, heads: nn.Module, scenes: CachedScenes, count: int) -> dict[str, float]:
    """Recall at IoU 0.5 of all queries, and of those that also name the object right."""
    detector.eval()
    boxes_found = named = total = 0
    for first in range(0, count, 50):
        indices = range(first, min(first + 50, count))
        seen = heads(detector.queries(scenes.coarse(indices)))
        for i, index in enumerate(indices):
            truth = torch.tensor([box for _, box in scenes.records[index]["objects"]])
            iou = box_iou(box_convert(seen.boxes_cxcywh[i].float(), "cxcywh", "xyxy"), truth)
            boxes_found += int((iou.amax(0) >= 0.5).sum())
            total += len(truth)
            guess = seen.logits[i, :, :-1].argmax(-1)[iou.argmax(0)]
            right = torch.tensor([scenes.classes.get(name, -1) for name, _ in scenes.records[index]["objects"]])
            named += int(((iou.amax(0) >= 0.5) & (guess == right)).sum())
    detector.train()
    return {"recall": boxes_found / total, "recall_named": named / total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--val", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train, val = CachedScenes(args.cache, "train", "vpp"), CachedScenes(args.cache, "val", "vpp")
    val.classes = train.classes

    local = pocket_config().local_vpp
    detector = build_detr(num_queries=local.num_queries, **{**local.generator_options, "dropout": args.dropout})
    heads = DetectionHeads(detector.width, len(train.classes))
    weights = torch.ones(len(train.classes) + 1)
    weights[-1] = NOTHING_WEIGHT
    parameters = [p for n, p in detector.named_parameters() if not n.startswith("backbone.")] + list(heads.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-4)
    order = np.random.default_rng(args.seed)
    log = (args.out / "log.jsonl").open("a")
    begin, step, running = time.time(), 0, []
    detector.train()
    while step < args.steps:
        now = args.lr * rate(step, args.steps, warmup=200)
        for group in optimizer.param_groups:
            group["lr"] = now
        train.refresh(step)
        indices = order.choice(len(train), args.batch, replace=False)
        names, wanted = zip(*(targets(train.records[i], train.classes) for i in indices), strict=True)
        seen = heads(detector.queries(train.coarse(indices), intermediate=True))
        losses = [set_loss(logits, boxes, names, wanted, weights) for logits, boxes in zip(*seen, strict=True)]
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running.append(float(losses[-1].detach()))
        step += 1
        if step % 200 == 0 or step == 50:
            row = {"step": step, "minutes": round((time.time() - begin) / 60, 2), "loss": float(np.mean(running))}
            running = []
            log.write(json.dumps(row | evaluate(detector, heads, val, args.val)) + "\n")
            log.flush()
            save(args.out, detector, heads, train.classes)
    save(args.out, detector, heads, train.classes)
    log.write(json.dumps({"done": True, "step": step, **evaluate(detector, heads, val, len(val))}) + "\n")


def save(folder: Path, detector: nn.Module, heads: nn.Module, classes: dict[str, int]) -> None:
    """Write everything but the backbone, whole or not at all."""
    state = {n: v for n, v in detector.state_dict().items() if not n.startswith("backbone.")}
    torch.save({"detector": state, "heads": heads.state_dict(), "classes": classes}, folder / "detector.tmp")
    (folder / "detector.tmp").replace(folder / "detector.pt")


if __name__ == "__main__":
    main()
