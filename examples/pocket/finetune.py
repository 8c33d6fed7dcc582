"""Stage 2: a short end-to-end finetune from pixels through the real attached model, so that the axes learn too.

    python examples/pocket/finetune.py runs/vpp/checkpoint.pt --assets assets --out runs/vpp2 --steps 150

Both arms take the same steps over the same scenes; only the backbones stay frozen. `--resume` goes on after a stop.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from assemble import assemble
from cached_scenes import SIZE, curriculum, describe
from losses import answer_loss
from questions import Questions, choose
from schedule import rate
from torch import Tensor, nn

from vpp_plugins.attach import is_attached
from vpp_plugins.data.scenes import find_assets
from vpp_plugins.images import letterbox
from vpp_plugins.pocket import BACKBONE_PREFIXES
from vpp_plugins.train.packing import IGNORE, pack

LOCAL = "vpp.local_prompt."
FIRST_SCENE = 1_000_000  # beyond those that stage 1 saw


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights but the frozen backbones', under stage 1's names, so that `assemble` reads both stages."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(BACKBONE_PREFIXES)}
    host = {f"llava.{name}": value for name, value in state.items() if not name.startswith("vpp.")}
    local = {f"local_vpp.{n.removeprefix(LOCAL)}": v for n, v in state.items() if n.startswith(LOCAL)}
    axes = "vpp.global_prompt.prompt"
    return host | local | ({"global_vpp.prompt": state[axes]} if axes in state else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="stage 1's, of one arm")
    parser.add_argument("--assets", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--axes-lr", type=float, default=1e-2, help="the prompt's, in normalised pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=25)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    saved, last = torch.load(args.checkpoint, weights_only=True), args.out / "checkpoint.pt"
    resumed = torch.load(last, weights_only=True) if args.resume and last.exists() else None
    model, processor, _ = assemble(last if resumed else args.checkpoint)
    model.train()
    attached = is_attached(model)
    tokens, prompts = model.config.image_seq_length, model.vpp.tokens_per_image if attached else 0
    questions = Questions(processor.tokenizer, tokens, prompts)
    generators = curriculum(find_assets(args.assets), "train", seed=0)

    axes, others = [], []
    for name, parameter in model.named_parameters():
        if not name.startswith(BACKBONE_PREFIXES):
            (axes if name == "vpp.global_prompt.prompt" else others).append(parameter)
    groups = [{"params": others, "lr": args.lr, "peak": args.lr}]
    groups += [{"params": axes, "lr": args.axes_lr, "peak": args.axes_lr}] if axes else []
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    step, losses, begin = 0, [], time.time()
    if resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        step = resumed["step"]

    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, args.steps, warmup=10)
        numbers = range(FIRST_SCENE + step * args.batch, FIRST_SCENE + (step + 1) * args.batch)
        scenes = [generators[number % len(generators)].scene(number) for number in numbers]
        rng = random.Random(f"{args.seed}/{step}")
        segments = [choose(describe(scene), questions, rng, groundings=8, regions=1) for scene in scenes]
        packed = pack(questions.prefix, segments, questions.tokenizer.pad_token_id)
        pixels = torch.stack([letterbox(scene.image, SIZE) for scene in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            output = model(
                input_ids=packed.input_ids,
                attention_mask=packed.mask(),
                position_ids=packed.position_ids,
                pixel_values=pixels,
                **({"vpp_pixel_values": pixels} if attached else {}),
            )
            loss = answer_loss(output.logits[packed.labels != IGNORE], packed.labels, questions)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        if step % args.save_every == 0 or step == args.steps:
            with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(
                    json.dumps(
                        {"step": step, "minutes": round((time.time() - begin) / 60, 2), "loss": float(np.mean(losses))}
                    )
                    + "\n"
                )
            losses = []
            state = {"average": trained_weights(model), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"arm": saved["arm"], "size": saved["size"]}, last.with_suffix(".tmp"))
            last.with_suffix(".tmp").replace(last)


if __name__ == "__main__":
    main()
