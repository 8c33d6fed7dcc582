"""Losses that bind answers to the tokens which show what they speak of, each against a plain twin."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.families import attached_family, family_inputs
from tests.tiny import TOY_LOCAL
from vpp_plugins import VPPConfig, VPPError, VPPProcessor, attach_vpp
from vpp_plugins.data import Describe, Locate, Sample
from vpp_plugins.pocket import build_pocket
from vpp_plugins.train.collate import About
from vpp_plugins.train.losses.alignment import drawn_rows
from vpp_plugins.train.losses.coordinates import bell
from vpp_plugins.train.losses.copying import Copying, CopyingAloud, shown_boxes
from vpp_plugins.train.losses.evidence import Evidence, answers
from vpp_plugins.train.losses.looking import Looking
from vpp_plugins.train.losses.naming import NAMED, Naming
from vpp_plugins.train.losses.pointing import Pointing

pytestmark = pytest.mark.usefixtures("toy")

SIZE = 128
BOXES = ((4.0, 4.0, 60.0, 60.0), (64.0, 0.0, 128.0, 64.0))
TEXTS = ("[0.03, 0.03, 0.47, 0.47]", "[0.5, 0.0, 1.0, 0.5]")


def boxes_of_places(queries: Tensor) -> Tensor:
    """Where the toy's four queries look: the quarters of the image."""
    quarters = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    return torch.tensor(quarters, dtype=torch.float32).expand(len(queries), -1, -1)


def pocket(*, queries: bool, heads: int = 4) -> tuple[Any, VPPProcessor]:
    """A tiny pocket model of 4 x 4 image tokens, whose toy queries may say where they look."""
    host, processor = build_pocket(image_size=SIZE, hidden_size=32, layers=3, heads=heads, intermediate_size=48)
    model: Any = attach_vpp(host, VPPConfig(global_vpp=None, local_vpp=TOY_LOCAL)).train()
    model.vpp.trained = True
    if queries:
        generator = model.vpp.local_vpp.generator
        generator.boxes, generator.names, generator.scores = boxes_of_places, (), torch.zeros_like
    return model, VPPProcessor(processor, model)


def batch(processor: VPPProcessor) -> tuple[dict[str, Any], About]:
    """Two images, each with a question that is answered by a box."""
    images = [[Image.new("RGB", (SIZE, SIZE), colour)] for colour in ("red", "blue")]
    texts = [f"USER: <image>\nthe cup ASSISTANT:{text}</s>" for text in TEXTS]
    inputs = dict(processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="right"))
    begins = processor.tokenizer.convert_tokens_to_ids("ASSISTANT:")
    after = (inputs["input_ids"] == begins).cumsum(1).bool() & (inputs["input_ids"] != begins)
    learned = after & inputs["attention_mask"].bool()
    inputs["labels"] = inputs["input_ids"].masked_fill(~learned, -100)
    samples = tuple(Sample(f"s{n}", "a.png", SIZE, SIZE, (Locate("cup", (box,)),)) for n, box in enumerate(BOXES))
    return inputs, About(samples, tuple(sample.meta for sample in samples), (0, 1), ())


def numbers(processor: VPPProcessor, labels: Tensor) -> list[int]:
    """Places of an answer's four numbers."""
    words = processor.tokenizer.convert_ids_to_tokens(labels.clamp(min=0).tolist())
    return [
        place for place, (word, label) in enumerate(zip(words, labels, strict=True)) if label >= 0 and word[0].isdigit()
    ]


@pytest.mark.parametrize("queries", [True, False])
def test_looking_is_what_the_plain_attention_does(queries: bool) -> None:
    model, processor = pocket(queries=queries)
    inputs, about = batch(processor)
    loss = Looking(model, processor)
    value = loss(about, inputs, model(**inputs))
    loss.remove()

    model.set_attn_implementation("eager")
    attention = model(**inputs, output_attentions=True).attentions[-1]
    token = model.vpp.token_id if queries else model.config.image_token_id
    on, away = [], []
    for row in range(2):
        places = (inputs["input_ids"][row] == token).nonzero()[:, 0]
        fits = [[0, 1][row]] if queries else [[0, 1, 4, 5], [2, 3, 6, 7]][row]  # cells whose centre is in the box
        if not queries and row == 0:
            fits = [0, 1, 4, 5]
        for k, place in enumerate(numbers(processor, inputs["labels"][row])):
            seen = attention[row, :, place - 1][:, places]
            on.append(-seen[k, fits].sum().log())
            away += [-(1 - seen[other].sum()).log() for other in range(4) if other != k]

    torch.testing.assert_close(value, torch.stack(on).mean() + 0.2 * torch.stack(away).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Copying, CopyingAloud])
def test_copying_is_what_one_token_alone_would_say(kind: Any) -> None:
    model, processor = pocket(queries=True)
    inputs, about = batch(processor)
    loss = kind(model, processor)
    value = loss(about, inputs, model(**inputs))
    loss.remove()

    caught: dict[str, Any] = {}
    attention = model.get_decoder().layers[-1].self_attn
    handle = attention.register_forward_pre_hook(
        lambda _, args, named: caught.update(hidden=named["hidden_states"]), with_kwargs=True
    )
    layer = model.get_decoder().layers[-1].register_forward_hook(lambda _, args, left: caught.update(stream=left))
    model(**inputs)
    handle.remove()
    layer.remove()
    spoken = (inputs["labels"] >= 0).nonzero() - torch.tensor([0, 1])
    stream = torch.stack([caught["stream"][row, place].norm() for row, place in spoken.tolist()]).mean()
    losses = []
    for row in range(2):
        for place, box in zip(
            (inputs["input_ids"][row] == model.vpp.token_id).nonzero()[:, 0],
            boxes_of_places(torch.zeros(1))[0],
            strict=True,
        ):
            values = attention.v_proj(caught["hidden"][row, place])
            for k in range(4):
                alone = torch.zeros_like(values)
                alone[8 * k : 8 * k + 8] = values[8 * k : 8 * k + 8]
                handed = attention.o_proj(alone)
                logits = model.lm_head(model.get_decoder().norm(handed))[loss.coordinates]
                if kind is CopyingAloud:  # the norm's scale is then that of the stream
                    logits = logits * handed.norm() / stream
                target = bell(box[k])
                losses.append((target * (target.clamp(min=1e-9).log() - logits.log_softmax(-1))).sum())

    torch.testing.assert_close(value, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_pointing_is_a_softmax_over_cosines() -> None:
    model, processor = pocket(queries=True)
    inputs, about = batch(processor)
    loss = Pointing(model, processor)
    embedded: list[Tensor] = []
    handle = model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    output = model(**inputs, output_hidden_states=True)
    value = loss(about, inputs, output)
    handle.remove()
    loss.remove()

    losses = []
    for state in (output.hidden_states[1], output.hidden_states[2]):  # after the first and second of three layers
        for row in range(2):
            keys = embedded[0][row, inputs["input_ids"][row] == model.vpp.token_id]
            start = answers(inputs["labels"][row])[0][0]
            for place in (start, *numbers(processor, inputs["labels"][row])):
                cosines = torch.cosine_similarity(state[row, place - 1][None], keys)
                losses.append(-(8 * cosines).log_softmax(-1)[row])  # the first quarter, then the second

    torch.testing.assert_close(value, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_naming_is_pointing_and_the_words_that_the_table_reads() -> None:
    model, processor = pocket(queries=True)
    inputs, about = batch(processor)
    named = (Describe((BOXES[0],), "cup"), Describe((BOXES[1],), "cup"))
    samples = tuple(replace(sample, turns=(*sample.turns, *named)) for sample in about.samples)
    losses = [kind(model, processor) for kind in (Naming, Pointing)]
    output = model(**inputs, output_hidden_states=True)
    naming, pointing = (loss(replace(about, samples=samples), inputs, output) for loss in losses)
    for loss in losses:
        loss.remove()

    table, words = (
        model.get_input_embeddings().weight,
        processor.tokenizer(" cup", add_special_tokens=False)["input_ids"],
    )
    rows = sorted({*words, *drawn_rows(processor.tokenizer).tolist()})
    read = []
    for state in (output.hidden_states[1], output.hidden_states[2]):
        for row in range(2):
            start = answers(inputs["labels"][row])[0][0]
            for place in (start, *numbers(processor, inputs["labels"][row])):
                said = F.rms_norm(state[row, place - 1], state.shape[-1:])  # the maps begin as they are
                logs = (table[rows] @ said).log_softmax(-1)
                read.append(-torch.stack([logs[rows.index(word)] for word in words]).mean())

    torch.testing.assert_close(naming, pointing + NAMED * torch.stack(read).mean(), rtol=1e-4, atol=1e-5)


def test_naming_without_descriptions_is_pointing() -> None:
    model, processor = pocket(queries=True)
    inputs, about = batch(processor)
    losses = [kind(model, processor) for kind in (Naming, Pointing)]
    output = model(**inputs)
    naming, pointing = (loss(about, inputs, output) for loss in losses)
    for loss in losses:
        loss.remove()

    assert torch.equal(naming, pointing)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_pointing_works_on_any_host_with_image_tokens(family: str) -> None:
    model, processor = attached_family(family)
    inputs = family_inputs(processor, [1, 1], side="right")
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, :-2] = -100
    loss = Pointing(model.train(), processor)
    metas = (Sample("s", "a.png", 40, 24, (Locate("cup", ((4.0, 4.0, 20.0, 20.0),)),)),) * 2
    about = About(metas, tuple(sample.meta for sample in metas), (0, 1), ())
    value = loss(about, inputs, model(**inputs))
    value.backward()
    loss.remove()

    assert float(value.detach()) > 0
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in loss.maps.parameters())
    assert sum(float(p.grad.abs().sum()) for p in model.get_decoder().layers[0].parameters() if p.grad is not None) > 0


def test_all_of_it_comes_off() -> None:
    model, processor = pocket(queries=False)
    before = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    kind = type(model)
    for loss in [kind_(model, processor) for kind_ in (Pointing, Naming, Looking, Copying, CopyingAloud)]:
        loss.remove()

    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in model.get_decoder().modules())
    assert type(model) is kind


def test_a_batch_of_text_alone_costs_nothing() -> None:
    model, processor = pocket(queries=False)
    inputs, _ = batch(processor)
    samples = (Sample("s", "", 0, 0, ()),) * 2
    about = About(samples, (None, None), (0, 1), ())
    for kind in (Pointing, Naming, Looking, Copying, CopyingAloud):
        loss = kind(model, processor)
        assert float(loss(about, inputs, model(**inputs)).detach()) == 0
        loss.remove()


def test_a_cell_copies_the_smallest_box_around_its_centre() -> None:
    cells = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    evidence = Evidence(torch.tensor([0]), torch.tensor([[0, 1]]), cells, square=True, are_queries=False)
    turns = (Describe(((0.0, 0.0, 100.0, 100.0),), "room"), Locate("cup", ((10.0, 10.0, 40.0, 40.0),)))
    sample = Sample("s", "a.png", 100, 100, turns)
    shown = shown_boxes(evidence, About((sample,), (sample.meta,), (0,), ()))

    torch.testing.assert_close(shown[0], torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.0, 0.0, 1.0, 1.0]]))


class TestRefuses:
    @pytest.mark.parametrize("kind", [Looking, Copying])
    def test_two_heads(self, kind: Any) -> None:
        model, processor = pocket(queries=False, heads=2)
        with pytest.raises(VPPError, match="at least 4 heads"):
            kind(model, processor)

    @pytest.mark.parametrize("kind", [Looking, Copying])
    def test_numbers_of_several_tokens(self, kind: Any) -> None:
        model, processor = attached_family("llava")
        with pytest.raises(VPPError, match="a token for every number"):
            kind(model, processor)

    def test_several_images_for_a_text(self) -> None:
        model, processor = attached_family("llava")
        inputs = family_inputs(processor, [1, 2])
        inputs["labels"] = inputs["input_ids"]
        loss = Pointing(model.train(), processor)
        sample = Sample("s", "a.png", 40, 24, ())
        about = About((sample, sample), (sample.meta, sample.meta), (0, 1), ())
        with pytest.raises(VPPError, match="one image for each text"):
            loss(about, inputs, model(**inputs))
        loss.remove()
