"""Whether a language model still speaks after it learned to point: `python -m benchmarks.plain_answers BEFORE AFTER`.

Prints a table of Markdown with the perplexity of plain prose before and after, then ten questions with the answers of
both, each up to its first line. There is no image, so prompts say nothing, and what differs is what was trained.

The prose is of Python's own language reference, which every Python ships (`pydoc_data.topics`, PSF licence): whole
paragraphs, without code. Intervals are over paragraphs.
"""

import argparse
import platform
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from rich.progress import track

from vpp_plugins import Grounder, VPPError
from vpp_plugins.evaluate import load_grounder
from vpp_plugins.evaluate.metrics import interval

CHARACTERS = range(200, 900)
"""How long a paragraph is."""
TOKENS = 48
"""How long an answer gets at most."""
QUESTIONS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "What colour is the sky on a clear day?",
    "Which animal says meow?",
    "What is the opposite of hot?",
    "Write one sentence about the sea.",
    "Why do people sleep?",
    "Name three fruits.",
    "What does a carpenter do?",
    "Translate 'good morning' to French.",
)


def paragraphs() -> list[str]:
    """Return the prose, a paragraph each on one line, in the order of its topics."""
    blocks = [block for topic in sorted(topics) for block in topics[topic].split("\n\n") if "\n " not in block]
    prose = [" ".join(block.split()) for block in blocks if not block.startswith((" ", "*", "-"))]
    return list(dict.fromkeys(one for one in prose if len(one) in CHARACTERS and one.endswith(".")))


@torch.inference_mode()
def losses(model: Any, texts: Sequence[Sequence[int]], *, said: str = "") -> list[float]:
    """Return the mean loss of a token of each text, given as tokens, in nats, the first token left out."""
    found = []
    for tokens in track(texts, said, transient=True):
        ids = torch.tensor([tokens], device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        found.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
    return found


def answers(grounder: Grounder) -> list[str]:
    """Return the first lines of the greedy answers."""
    return [text.strip().partition("\n")[0] for text, _ in grounder.talk(QUESTIONS, max_new_tokens=TOKENS)]


def main(models: Sequence[tuple[str, str | None]], limit: int) -> None:
    """Measure two models, each a host and what was trained for it."""
    prose = paragraphs()[:limit]
    nats, told, tokens = [], [], []
    for host, vpp in models:
        grounder = load_grounder(host, vpp=vpp, dtype="float32", device="cpu")
        tokens.append(grounder.processor.tokenizer(prose)["input_ids"])
        nats.append(losses(grounder.model, tokens[-1], said=vpp or host))
        told.append(answers(grounder))
    if tokens[0] != tokens[1]:
        raise VPPError("the two models read the prose as different tokens, so their perplexities cannot be compared.")
    before, after = np.array(nats)

    print(f"Perplexity of {len(prose)} paragraphs of the language reference of Python {platform.python_version()}:\n")
    print("| before | after | after / before |\n|---|---|---|")
    found = [interval(one.tolist(), range(len(prose))) for one in (before, after, after - before)]
    print(f"| {' | '.join('{:.2f} [{:.2f}, {:.2f}]'.format(*np.exp([o.mean, o.low, o.high])) for o in found)} |\n")
    print("| question | before | after |\n|---|---|---|")
    for row in zip(QUESTIONS, *told, strict=True):
        print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a host, such as out/smollm2")
    parser.add_argument("after", help="the host of what was trained, such as out/smollm2-align/final")
    parser.add_argument("--vpp", help="what was trained for it, such as out/smollm2-lora/final (default: nothing)")
    parser.add_argument(
        "--limit",
        type=int,
        default=200,
        choices=range(1, 201),
        metavar="N",
        help="how many paragraphs (default: %(default)s)",
    )
    chosen = parser.parse_args()
    main([(chosen.before, None), (chosen.after, chosen.vpp)], chosen.limit)
