"""What a model says before it learns to ground: chats of its own, for a recipe's `mix` and `keep`.

Its own answers, sampled as they are likely, teach it nothing new, and are to hold it where it is; other people's chats
would move it (learning without forgetting, Li and Hoiem 2016, with text for the old task and samples for its
probabilities).
"""

import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from vpp_plugins.data import Sample, Talk
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file
from vpp_plugins.ground import Grounder

WORDINGS = (
    "What is {}?",
    "Tell me about {}.",
    "Write one sentence about {}.",
    "Write a short paragraph about {}.",
    "Explain {} to a child.",
    "Why do people care about {}?",
    "What should everyone know about {}?",
    "Give me an interesting fact about {}.",
    "What is the history of {}?",
    "How has {} changed over time?",
    "Name three things that have to do with {}.",
    "What do people often get wrong about {}?",
    "Write a question about {}, and answer it.",
    "Write the beginning of a story about {}.",
    "Write a short poem about {}.",
    "What is good about {}, and what is bad?",
    "How would you describe {} in a few words?",
    "Where would I learn more about {}?",
    "Is {} important? Say why or why not.",
    "What comes to mind when you hear of {}?",
)
TOPICS = (
    "bread",
    "winter",
    "music",
    "money",
    "rain",
    "a village school",
    "chess",
    "the moon",
    "gardening",
    "friendship",
    "electricity",
    "the post office",
    "mathematics",
    "a long journey",
    "breakfast",
    "the Roman Empire",
    "volcanoes",
    "honesty",
    "photography",
    "football",
    "the alphabet",
    "medicine",
    "the desert",
    "a lost key",
    "coffee",
    "democracy",
    "birds",
    "dreams",
    "the printing press",
    "a broken clock",
    "swimming",
    "the internet",
    "gravity",
    "neighbours",
    "a market",
    "forests",
    "painting",
    "the kitchen",
    "learning a language",
    "growing old",
)
BATCH = 16
"""Questions that are answered at a time."""
AS_LIKELY: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
"""Arguments of `generate`: each token as often as the model finds it likely."""
_WHOLE = re.compile(r".*(?:(?<!\d)[.!?][\"')*\]]*(?=\s|$)|[。！？])", re.DOTALL)


def plain_questions(count: int | None = None, *, seed: int = 0) -> list[str]:
    """Return plain questions in random order, none twice, all unless `count` says how many.

    Raises VPPError for more than there are.
    """
    known = [wording.format(topic) for wording, topic in itertools.product(WORDINGS, TOPICS)]
    count = len(known) if count is None else count
    if not 1 <= count <= len(known):
        raise VPPError(f"there are {len(known)} questions, but {count} were asked for: bring more in a file of yours.")
    return random.Random(seed).sample(known, count)


def read_questions(file: Path) -> list[str]:
    """Return the lines of a text that are not empty; raises VPPError where it cannot be read, and where none is."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VPPError(f"'{file}' cannot be read as a text in UTF-8 ({error}): name another file.") from None
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise VPPError(f"'{file}' holds no question: write one on each line.")
    return questions


def write_chats(
    target: str | Path, grounder: Grounder, questions: Sequence[str], *, longest: int = 64, seed: int = 0
) -> int:
    """Write a model's answers to `questions` as neutral samples, a line each, and return how many there are.

    Answers are sampled at temperature 1, `longest` tokens at most; of one that is cut off the whole sentences are kept,
    and without one it is left out. The file appears when it is complete. Raises VPPError where no answer is left.
    """
    written = 0
    with whole_file(Path(target)) as file, torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in track(range(0, len(questions), BATCH), "The model's own answers", transient=True):
            asked = questions[start : start + BATCH]
            told = grounder.talk(asked, max_new_tokens=longest, **AS_LIKELY)
            answers = [text.strip() if ended else whole_sentences(text) for text, ended in told]
            chats = [Talk(question, answer) for question, answer in zip(asked, answers, strict=True) if answer]
            for number, chat in enumerate(chats, written):
                file.write(Sample(f"chat-{number}", "", 0, 0, (chat,)).line() + b"\n")
            written += len(chats)
        if not written:
            raise VPPError(
                f"none of the model's {len(questions)} answers is a whole sentence of {longest} tokens at most."
            )
    return written


def whole_sentences(text: str) -> str:
    """Return a text up to the end of its last whole sentence, "" where there is none; "3." of a list is no end."""
    found = _WHOLE.match(text.strip())
    return found[0] if found else ""
