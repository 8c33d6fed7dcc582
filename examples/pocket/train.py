"""Stage 1: train a pocket model on cached features, with VPP or without; all else is equal.

    python examples/pocket/train.py --cache cache --out runs/vpp --arm vpp --steps 1700

Stop it at any time; `--resume` goes on from the last checkpoint in --out.
"""

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from boxes import validate
from cached_scenes import CachedScenes
from losses import answer_loss, corner_loss, word_loss
from pretrain_detector import match, set_loss, targets
from questions import Questions, choose, disturb, patch_words
from schedule import rate
from student import Student, build_student
from torch import Tensor, nn

from vpp_plugins.prompts.generators import Detections
from vpp_plugins.train.packing import IGNORE, pack


def query_loss(
    student: Student,
    queries: Tensor,
    projected: Tensor,
    scenes: list[dict],
    classes: dict[str, int],
    questions: Questions,
) -> Tensor:
    """Keep the detector a detector, and align its projector: a matched query should look like its noun and its box.

    The image projector is aligned with nouns in the same way, in both arms; boxes are what the detector is there for.
    """
    seen = Detections(*(part.float() for part in student.heads(queries)))
    names, wanted = zip(*(targets(scene, classes) for scene in scenes), strict=True)
    class_weights = torch.ones(len(classes) + 1)
    class_weights[-1] = 0.1
    detection = set_loss(seen.logits, seen.boxes_cxcywh, names, wanted, class_weights)
    pairs = match(seen.logits, seen.boxes_cxcywh, names, wanted)
    objects = [
        [scene["objects"][i] for i in columns.tolist()] for scene, (_, columns) in zip(scenes, pairs, strict=True)
    ]
    places = [
        [(row, word) for row, (name, _) in zip(rows.tolist(), found, strict=True) for word in questions.words(name)]
        for (rows, _), found in zip(pairs, objects, strict=True)
    ]
    naming = word_loss(
        projected, student.table, [tuple(torch.tensor(p).T) for p in places], questions.tokenizer.pad_token_id
    )
    tokens = torch.cat([projected[i, rows] for i, (rows, _) in enumerate(pairs)])
    boxes = torch.tensor([box for found in objects for _, box in found])
    coordinates = student.table[questions.coordinates[0] : questions.coordinates[-1] + 1]
    return 0.2 * detection + naming + 0.5 * corner_loss(tokens, coordinates, student.corners, boxes)


def build_optimizers(student: Student, lr: float, muon_lr: float, detector_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the language model's and the projectors' matrices, where it needs about 0.6 of the steps; AdamW else."""
    matrices, others, detector = [], [], []
    for name, parameter in student.named_parameters():
        if ".backbone." in name:
            continue
        if name.startswith(("local_vpp.generator", "heads")):
            detector.append(parameter)
        elif parameter.ndim == 2 and not any(
            part in name for part in ("embed_tokens", "lm_head", "position", "corners")
        ):
            matrices.append(parameter)
        else:
            others.append(parameter)
    adam = [{"params": others, "lr": lr}] + ([{"params": detector, "lr": detector_lr}] if detector else [])
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", choices=["plain", "vpp"], required=True)
    parser.add_argument("--detector", type=Path, default=Path("runs/detector/detector.pt"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--groundings", type=int, default=7)
    parser.add_argument("--regions", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--detector-lr", type=float, default=2e-4)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument(
        "--align", type=float, default=0.3, help="weight of the loss that aligns image tokens with nouns"
    )
    parser.add_argument(
        "--disturb", type=float, default=0.5, help="share of boxes whose corners are hidden, until the last fifth"
    )
    parser.add_argument(
        "--curriculum", type=float, default=0.1, help="share of the steps that only sees scenes of 1 to 3 objects"
    )
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--eval-scenes", type=int, default=48)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    size = {"hidden_size": args.hidden, "layers": args.layers, "intermediate_size": args.intermediate}
    student, questions = build_student(args.arm, size, args.seed, args.detector)
    student.train()
    train, val = (CachedScenes(args.cache, split, args.arm) for split in ("train", "val"))
    optimizers = build_optimizers(student, args.lr, args.muon_lr, args.detector_lr)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    average = {name: value.clone() for name, value in student.weights().items()}
    step, spent = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"], strict=False)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average, step, spent = state["average"], state["step"], state["minutes"]
    begin, running = time.time() - 60 * spent, []
    trained = [p for group in groups for p in group["params"]]

    while step < args.steps:
        for group in groups:
            group["lr"] = group["peak"] * rate(step, args.steps, args.warmup)
        train.refresh(step)
        rng = random.Random(f"{args.seed}/{step}")  # the same questions in both arms, and after a resume
        torch.manual_seed(args.seed * 1_000_003 + step)
        indices = draw(train, rng, args.batch, small=step < args.curriculum * args.steps)
        scenes = [train.records[i] for i in indices]
        segments = [choose(scene, questions, rng, args.groundings, args.regions) for scene in scenes]
        packed = pack(questions.prefix, segments, questions.tokenizer.pad_token_id)
        share = args.disturb if step < 0.8 * args.steps else 0.1
        packed = dataclasses.replace(packed, input_ids=disturb(packed.input_ids, packed.labels, questions, share))
        coarse = train.coarse(indices) if student.local_vpp is not None else None
        with torch.autocast("cpu", torch.bfloat16):
            image_tokens = student.image_tokens(train.features(indices))
            queries, prompts = student.prompt_tokens(coarse)
            hidden = student(packed, image_tokens, prompts)
            answers = answer_loss(F.linear(hidden[packed.labels != IGNORE], student.table), packed.labels, questions)
            words = word_loss(
                image_tokens,
                student.table,
                [patch_words(s, questions) for s in scenes],
                questions.tokenizer.pad_token_id,
            )
            loss = answers + args.align * words
            if queries is not None:
                loss = loss + args.align * query_loss(student, queries, prompts, scenes, train.classes, questions)
        student.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        running.append([float(answers.detach()), float(words.detach())])
        decay = min(args.ema, step / (step + 10))
        for name, value in student.weights().items():
            average[name].lerp_(value, 1 - decay)
        if step % args.eval_every == 0 or step == args.steps:
            minutes = (time.time() - begin) / 60
            current = {name: value.clone() for name, value in student.weights().items()}
            state = {"student": current, "average": average, "optimizers": [o.state_dict() for o in optimizers]}
            state |= {"step": step, "minutes": minutes, "arm": args.arm, "size": size}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            student.load_state_dict(average, strict=False)
            scores = validate(student, questions, val, args.eval_scenes)
            student.load_state_dict(current, strict=False)
            row = {"step": step, "minutes": round(minutes, 2), "loss": np.mean(running, 0).round(3).tolist()}
            running = []
            with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row | scores | {"scenes": len(train)}) + "\n")


def draw(scenes: CachedScenes, rng: random.Random, count: int, small: bool) -> list[int]:
    """Random scenes, or with `small` only those of one to three objects from the curriculum's share."""
    chosen: list[int] = []
    while len(chosen) < count:
        index = rng.randrange(len(scenes))
        if not small or len(scenes.records[index]["objects"]) <= 2:
            chosen.append(index)
    return chosen


if __name__ == "__main__":
    main()
