"""What the pocket model is trained on: answers, and the alignment of what it sees with its words."""

import torch
import torch.nn.functional as F
from questions import Questions
from torch import Tensor, nn

from vpp_plugins.train.packing import IGNORE

BLUR = 1.5  # hundredths: a coordinate's neighbours count as nearly right
PUNCTUATION_WEIGHT, WORD_WEIGHT = 0.1, 0.5  # beside a coordinate's 1
EMPTY_WEIGHT = 0.2  # of a cell without object, beside 1 of a cell with one


def answer_loss(logits: Tensor, labels: Tensor, questions: Questions) -> Tensor:
    """Cross-entropy on answers; `logits` [answers, vocabulary] are those where `labels` is not IGNORE.

    A coordinate's target is a bell over its neighbours. Brackets and commas are learnt at once, so they count little.
    """
    target = labels[labels != IGNORE]
    log_probability = logits.float().log_softmax(-1)
    first, last = questions.coordinates[0], questions.coordinates[-1]
    coordinate = (target >= first) & (target <= last)
    box_loss = bell_loss(log_probability[coordinate, first : last + 1], target[coordinate] - first)
    rest = -log_probability[~coordinate].gather(1, target[~coordinate, None])[:, 0]
    punctuation = torch.tensor(questions.tokenizer.convert_tokens_to_ids(["[", ", ", "]", "</s>"]))
    weight = torch.where(torch.isin(target[~coordinate], punctuation), PUNCTUATION_WEIGHT, WORD_WEIGHT)
    return (box_loss.sum() + (rest * weight).sum()) / (coordinate.sum() + weight.sum())


def bell_loss(log_probability: Tensor, steps: Tensor) -> Tensor:
    """Divergence from a bell around each value, in hundredths, over the 101 coordinates."""
    bell = (-((torch.arange(101)[None] - steps[:, None]) ** 2) / (2 * BLUR**2)).exp()
    bell = bell / bell.sum(-1, keepdim=True)
    return (bell * (bell.clamp(min=1e-9).log() - log_probability)).sum(-1)


def word_loss(tokens: Tensor, table: Tensor, targets: list[tuple[Tensor, Tensor]], empty_id: int) -> Tensor:
    """Align projected tokens [batch, tokens, hidden] with the words' embeddings, as LLaVA's first stage does.

    `targets` holds, per image, (token, word) pairs: see `questions.patch_words`.
    """
    images = torch.cat([torch.full_like(places, i) for i, (places, _) in enumerate(targets)])
    places, words = (torch.cat(part) for part in zip(*targets, strict=True))
    losses = read_words(tokens, table)[images, places, words]
    weight = torch.where(words == empty_id, EMPTY_WEIGHT, 1.0)
    return -(losses * weight).sum() / weight.sum()


def corner_loss(tokens: Tensor, table: Tensor, corners: nn.ModuleList, boxes: Tensor) -> Tensor:
    """Align projected queries [objects, hidden] with the coordinates of their boxes (xyxy fractions).

    One linear map reads one of the four: then an attention head can copy what it would else have to compute.
    """
    tokens = F.rms_norm(tokens.float(), tokens.shape[-1:])
    read = [F.linear(corner(tokens), table).log_softmax(-1) for corner in corners]
    return torch.stack([bell_loss(r, 100 * boxes[:, k]).mean() for k, r in enumerate(read)]).sum()


def read_words(tokens: Tensor, table: Tensor) -> Tensor:
    """Log-probability of every word, were the tokens the language model's output."""
    return F.linear(F.rms_norm(tokens.float(), tokens.shape[-1:]), table).log_softmax(-1)
