"""The alignment with a large table's words: what it adds up to, what keeps its weights, and that it comes off."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import TOY_LOCAL, attached, inputs_for, tiny_llava
from vpp_plugins import VPPConfig
from vpp_plugins.data import Describe, Sample
from vpp_plugins.pocket import written_boxes
from vpp_plugins.train.collate import About
from vpp_plugins.train.losses.alignment import Alignment, drawn_rows

pytestmark = pytest.mark.usefixtures("toy")
SIDE = 4
"""Tokens along a side of the tiny host's images."""
WIDE = 200
"""A projector's hidden numbers, over four times the tiny host's width."""
CUP = Sample("s", "a.png", 40, 40, (Describe(((0.0, 0.0, 20.0, 20.0),), "cup"),))
ABOUT = About((CUP,), (CUP.meta,), (0,), ())


def with_boxes() -> tuple[Any, Any]:
    """A tiny host whose toy queries, all in the upper left quarter, write their boxes in their first numbers."""
    config = VPPConfig(global_vpp=None, local_vpp=replace(TOY_LOCAL, projector_size=WIDE))
    model, processor = attached(tiny_llava().train(), config)
    generator = model.vpp.local_vpp.generator
    generator.boxes = lambda queries: torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(*queries.shape[:2], 4)
    generator.names, generator.scores, generator.box_code = (), torch.zeros_like, slice(0, 4)
    return model, processor


def test_it_is_the_words_among_drawn_rows_and_how_long_tokens_are() -> None:
    model, processor = with_boxes()
    loss = Alignment(model, processor)
    caught: dict[str, Any] = {}
    model.model.multi_modal_projector.register_forward_hook(lambda *given: caught.update(cells=given[2].detach()))
    model.vpp.local_vpp.projector.register_forward_hook(lambda *given: caught.update(queries=given[2].detach()))
    model(**inputs_for(processor, [1]))
    value = loss(ABOUT, {}, None)
    loss.remove()

    table, tokenizer = model.get_input_embeddings().weight.detach(), processor.tokenizer
    cup, pad = tokenizer.convert_tokens_to_ids("cup"), tokenizer.pad_token_id
    length = table[: len(tokenizer)].norm(dim=-1).mean()
    rows = sorted({cup, pad, *drawn_rows(tokenizer).tolist()})
    expected = []
    for tokens, shown, times in (
        (caught["cells"][0], [cup if n in (0, 1, 4, 5) else pad for n in range(SIDE**2)], 1.0),
        (caught["queries"][0], [cup] * 4, 1.5),
    ):
        read = (F.rms_norm(tokens, tokens.shape[-1:]) @ table[rows].T).log_softmax(-1)
        counts = [0.2 if word == pad else 1.0 for word in shown]
        words = sum(
            -count * read[n, rows.index(word)] for n, (word, count) in enumerate(zip(shown, counts, strict=True))
        )
        expected += [words / sum(counts), (tokens.norm(dim=-1) / (times * length) - 1).square().mean()]
    torch.testing.assert_close(value.detach(), torch.stack(expected).sum(), rtol=1e-4, atol=1e-5)


def test_what_writes_boxes_keeps_its_weights_until_the_loss_comes_off() -> None:
    model, processor = with_boxes()
    local = model.vpp.local_vpp
    first, _, last = local.projector
    half = written_boxes(local)
    assert half == slice(0, 2 * len(last.weight))
    loss = Alignment(model, processor)

    model(**inputs_for(processor, [1]))
    loss(ABOUT, {}, None).backward()
    assert not first.weight.grad[half].any()
    assert not first.bias.grad[half].any()
    assert not last.weight.grad[:, half].any()
    assert first.weight.grad[half.stop :].any()
    assert last.weight.grad[:, half.stop :].any()

    loss.remove()
    model.zero_grad()
    model(**inputs_for(processor, [1]), labels=inputs_for(processor, [1])["input_ids"]).loss.backward()
    assert first.weight.grad[half].any()


def test_a_projector_without_room_for_boxes_has_none() -> None:
    model, _ = attached(tiny_llava())

    assert written_boxes(model.vpp.local_vpp) is None


def test_the_rows_are_the_same_each_time() -> None:
    class Large(SimpleNamespace):
        def __len__(self) -> int:
            return 5000

    assert len(drawn_rows(Large()).unique()) == 2048
    assert torch.equal(drawn_rows(Large()), drawn_rows(Large()))
