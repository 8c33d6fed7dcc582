"""Stage 1: train a pocket model on cached features, with VPP (`--arm vpp`) or without (`--arm plain`); all else is equal.

    python examples/pocket/train.py --cache cache --out runs/vpp --arm vpp --detector runs/detector/detector.pt --steps 3000

Stop it at any time; `--resume` goes on from the last checkpoint in --out.
"""

import argparse
import dataclasses
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from cached_scenes import CachedScenes, arm_config
from questions import VPP_TOKEN, Questions, choose, disturb, patch_words
from vpp_plugins.pocket.build import build_pocket
from vpp_plugins.pocket.packing import IGNORE, Packed, forward_packed, pack
from vpp_plugins.prompts.generators.detr import build_detr
from vpp_plugins.prompts.local_vpp import LocalVPP


class Student(nn.Module):
    """The trainable parts of one arm: LLaVA without its backbone and, with VPP, the local prompt without its backbone."""

    def __init__(self, llava: nn.Module, local_vpp: LocalVPP | None, prompt_id: int | None) -> None:
        super().__init__()
        self.llava, self.local_vpp, self.prompt_id = llava, local_vpp, prompt_id

    def image_tokens(self, features: Tensor) -> Tensor:
        """The projected features of cached backbone features."""
        tokens: Tensor = self.llava.model.multi_modal_projector(self.llava.model.vision_tower.embed(features))
        return tokens

    def forward(self, packed: Packed, image_tokens: Tensor, coarse: Tensor | None) -> Tensor:
        """Hidden states of packed sequences."""
        prompts = None if self.local_vpp is None else self.local_vpp.projector(self.local_vpp.generator.queries(coarse))
        return forward_packed(self.llava, packed, image_tokens, prompts, prompt_id=self.prompt_id)

    def weights(self) -> dict[str, Tensor]:
        """All weights but the frozen backbones'."""
        return {name: value for name, value in self.state_dict().items() if ".backbone." not in name}


def build_student(arm: str, size: dict[str, int], seed: int, detector: Path | None) -> tuple[Student, Questions]:
    """Build one arm; both arms start from the same language model."""
    llava, processor = build_pocket(seed=seed, **size)
    tokenizer = processor.tokenizer
    tokens = llava.config.image_seq_length
    if arm == "plain":
        return Student(llava, None, None), Questions(tokenizer, tokens, 0)
    tokenizer.add_tokens([VPP_TOKEN], special_tokens=True)
    local = arm_config().local_vpp
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        generator = build_detr(num_queries=local.num_queries, **local.generator_options)
        prompts = LocalVPP(
            generator,
            num_queries=local.num_queries,
            query_width=generator.width,
            hidden_size=llava.config.text_config.hidden_size,
            projector_size=local.projector_size,
        )
    if detector is not None:
        missing, foreign = generator.load_state_dict(torch.load(detector, weights_only=True)["detector"], strict=False)
        assert not foreign and all(name.startswith("backbone.") for name in missing)
    prompt_id = tokenizer.convert_tokens_to_ids(VPP_TOKEN)
    return Student(llava, prompts, prompt_id), Questions(tokenizer, tokens, local.num_queries)


def answer_loss(student: Student, hidden: Tensor, labels: Tensor, questions: Questions, blur: float, other: float) -> Tensor:
    """Cross-entropy on answers; a coordinate's target is a bell over its neighbours, `blur` hundredths wide.

    Brackets and commas are learnt at once: they count `other` as much as a coordinate, words of a description half.
    """
    chosen = labels != IGNORE
    target = labels[chosen]
    logits = F.linear(hidden[chosen], student.llava.lm_head.weight).float()
    log_probability = logits.log_softmax(-1)
    first = questions.coordinates[0]
    coordinate = (target >= first) & (target <= questions.coordinates[-1])
    distance = torch.arange(101)[None] - (target[coordinate] - first)[:, None]
    bell = (-(distance**2) / (2 * blur**2)).exp()
    bell = bell / bell.sum(-1, keepdim=True)
    box_loss = -(bell * log_probability[coordinate, first : first + 101]).sum(-1)
    entropy = -(bell * bell.clamp(min=1e-9).log()).sum(-1)
    rest = -log_probability[~coordinate].gather(1, target[~coordinate, None])[:, 0]
    punctuation = torch.isin(target[~coordinate], _punctuation(questions))
    weight = torch.where(punctuation, other, 0.5)
    total = (box_loss - entropy).sum() + (rest * weight).sum()
    return total / (coordinate.sum() + weight.sum())


def word_loss(student: Student, image_tokens: Tensor, targets: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Align the projector with the language model's words, as LLaVA's first stage does: a token should look like the noun it shows.

    Empty cells count a fifth.
    """
    pictures = torch.cat([torch.full_like(cells, i) for i, (cells, _) in enumerate(targets)])
    cells, words = (torch.cat(part) for part in zip(*targets, strict=True))
    tokens = F.rms_norm(image_tokens.float(), image_tokens.shape[-1:])
    losses = F.linear(tokens, student.llava.lm_head.weight).log_softmax(-1)[pictures, cells, words]
    weight = torch.where(words == student.llava.config.text_config.pad_token_id, 0.2, 1.0)
    return -(losses * weight).sum() / weight.sum()


def _punctuation(questions: Questions) -> Tensor:
    return torch.tensor(questions.tokenizer.convert_tokens_to_ids(["[", ", ", "]", "</s>"]))


@torch.no_grad()
def answer_boxes(student: Student, questions: Questions, features: Tensor, coarse: Tensor, texts: list[list[str]]) -> list[Tensor]:
    """Greedy boxes (fractions) for the expressions of each picture, four coordinates one after another."""
    segments = [[questions.grounding(text, [0, 0, 0, 0]) for text in per_image] for per_image in texts]
    packed = pack(questions.prefix, segments, questions.tokenizer.pad_token_id)
    first = questions.coordinates[0]
    is_coordinate = (packed.labels >= first) & (packed.labels <= questions.coordinates[-1])  # positions before a coordinate
    rows, columns = torch.nonzero(is_coordinate, as_tuple=True)
    rows, columns = rows.view(-1, 4), columns.view(-1, 4)
    ids, answers = packed.input_ids.clone(), []
    for corner in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = student(dataclasses.replace(packed, input_ids=ids), student.image_tokens(features), coarse)
        logits = F.linear(hidden[rows[:, corner], columns[:, corner]].float(), student.llava.lm_head.weight)
        value = logits[:, first : first + 101].argmax(-1)
        ids[rows[:, corner], columns[:, corner] + 1] = first + value
        answers.append(value / 100)
    return list(torch.stack(answers, -1).split([len(t) for t in texts]))


@torch.no_grad()
def evaluate(student: Student, questions: Questions, scenes: CachedScenes, count: int) -> dict[str, float]:
    """Acc@0.5 and mean IoU on validation expressions, and Acc@0.5 where each picture gets another picture's expressions."""
    student.eval()
    records = scenes.records[:count]
    flat = [text for record in records for text, *_ in record["expressions"]]
    random.Random(0).shuffle(flat)
    strangers = iter(flat)
    scores: dict[str, list[Tensor]] = {"right": [], "shuffled": []}
    kinds: dict[str, list[float]] = {}
    for first in range(0, len(records), 8):
        batch = records[first : first + 8]
        indices = range(first, first + len(batch))
        features, coarse = scenes.features(indices), scenes.coarse(indices)
        truth = [torch.tensor([box for _, box, *_ in record["expressions"]]) for record in batch]
        for condition in scores:
            texts = [[text if condition == "right" else next(strangers) for text, *_ in r["expressions"]] for r in batch]
            found = answer_boxes(student, questions, features, coarse, texts)
            ious = [torch.diag(box_iou(a, b)).nan_to_num(0.0) for a, b in zip(found, truth, strict=True)]
            scores[condition] += ious
            if condition == "right":
                for record, iou in zip(batch, ious, strict=True):
                    for (_, _, kind, _), value in zip(record["expressions"], iou, strict=True):
                        kinds.setdefault(kind, []).append(float(value >= 0.5))
    student.train()
    right, shuffled = (torch.cat(scores[c]) for c in ("right", "shuffled"))
    result = {"acc": (right >= 0.5).float().mean(), "iou": right.mean(), "shuffled": (shuffled >= 0.5).float().mean()}
    return {k: round(float(v), 4) for k, v in result.items()} | {k: round(float(np.mean(v)), 3) for k, v in kinds.items()}


def parameter_groups(student: Student, lr: float, detector_lr: float) -> list[dict]:
    """Trainable parts with their peak learning rates; matrices decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if ".backbone." in name:
            continue
        rate = detector_lr if name.startswith("local_vpp.generator") else lr
        decay = 0.05 if parameter.ndim == 2 and "embed" not in name and "position" not in name else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", choices=["plain", "vpp"], required=True)
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--groundings", type=int, default=7)
    parser.add_argument("--regions", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--detector-lr", type=float, default=1e-4)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--blur", type=float, default=1.5)
    parser.add_argument("--align", type=float, default=0.3, help="weight of the loss that aligns image tokens with nouns")
    parser.add_argument("--other", type=float, default=0.1)
    parser.add_argument("--disturb", type=float, default=0.5, help="share of boxes whose corners are hidden, until the last fifth")
    parser.add_argument("--curriculum", type=float, default=0.1, help="share of the steps that only sees scenes of 1 to 3 objects")
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
    optimizer = torch.optim.AdamW(parameter_groups(student, args.lr, args.detector_lr), betas=(0.9, 0.95))
    average = {name: value.clone() for name, value in student.weights().items()}
    step, spent = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["minutes"]
    begin, running = time.time() - 60 * spent, []
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, args.steps, args.warmup)
        train.refresh(step)
        rng = random.Random(f"{args.seed}/{step}")  # the same questions in both arms, and after a resume
        torch.manual_seed(args.seed * 1_000_003 + step)
        indices = draw(train, rng, args.batch, small=step < args.curriculum * args.steps)
        segments = [choose(train.records[i], questions, rng, args.groundings, args.regions) for i in indices]
        packed = pack(questions.prefix, segments, questions.tokenizer.pad_token_id)
        share = args.disturb if step < 0.8 * args.steps else 0.1
        packed = dataclasses.replace(packed, input_ids=disturb(packed.input_ids, packed.labels, questions, share))
        coarse = train.coarse(indices) if student.local_vpp is not None else None
        with torch.autocast("cpu", torch.bfloat16):
            image_tokens = student.image_tokens(train.features(indices))
            hidden = student(packed, image_tokens, coarse)
            answers = answer_loss(student, hidden, packed.labels, questions, args.blur, args.other)
            words = word_loss(student, image_tokens, [patch_words(train.records[i], questions) for i in indices])
            loss = answers + args.align * words
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        running.append([float(answers.detach()), float(words.detach())])
        decay = min(args.ema, step / (step + 10))
        for name, value in student.weights().items():
            average[name].lerp_(value, 1 - decay)
        if step % args.eval_every == 0 or step == args.steps:
            row = {"step": step, "minutes": round((time.time() - begin) / 60, 2), "loss": np.mean(running, 0).round(3).tolist()}
            running = []
            current = {name: value.clone() for name, value in student.weights().items()}
            student.load_state_dict(average, strict=False)
            row |= evaluate(student, questions, val, args.eval_scenes if step < args.steps else 400) | {"scenes": len(train)}
            student.load_state_dict(current, strict=False)
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            state = {"student": current, "average": average, "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"minutes": (time.time() - begin) / 60, "arm": args.arm, "size": size}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)


def rate(step: int, steps: int, warmup: int) -> float:
    """Warm-up, then a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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
