"""The alignment of an image's tokens with words: right cells, right words, gradients where they belong."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.tiny import attached, inputs_for, tiny_llava
from vpp_plugins import VPPError
from vpp_plugins.data.sample import Describe, Locate, Sample
from vpp_plugins.train.collate import About
from vpp_plugins.train.losses.words import WordAlignment, described_things, shown_by_cells, shown_by_queries

pytestmark = pytest.mark.usefixtures("toy")
SIDE = 4
"""Tokens along a side of the tiny host's images."""


def sample(*turns: Any, size: tuple[int, int] = (40, 40)) -> Sample:
    return Sample("s", "a.png", *size, turns)


@pytest.fixture
def host() -> Any:
    return attached(tiny_llava().train())


@pytest.fixture
def task(host: Any) -> Iterator[WordAlignment]:
    model, processor = host
    task = WordAlignment(model, processor)
    yield task
    task.remove()


def loss_of(task: WordAlignment, given: list[Sample]) -> torch.Tensor:
    about = About(tuple(given), tuple(one.meta for one in given), tuple(range(len(given))), ())
    return task.weighted(about, {}, None)


def words(task: WordAlignment, given: Sample) -> list[list[int]]:
    """Token ids of the cells, row by row."""
    return [task._ids(text) for text in shown_by_cells(*described_things(given), SIDE)]


def test_a_cell_stands_for_what_is_described_at_its_centre(task: WordAlignment) -> None:
    cup, red_dot = task.tokenizer.convert_tokens_to_ids(["cup", "red"])
    found = words(task, sample(Describe(((0.0, 0.0, 20.0, 20.0),), "cup"), Describe(((10.0, 0.0, 20.0, 10.0),), "red")))

    assert found[0] == found[4] == found[5] == [cup]
    assert found[1] == [red_dot]  # the smaller one
    assert all(cell == [task.tokenizer.pad_token_id] for n, cell in enumerate(found) if n not in (0, 1, 4, 5))


def test_cells_are_those_of_the_padded_square(task: WordAlignment) -> None:
    wide = sample(Describe(((0.0, 0.0, 40.0, 20.0),), "the red cup"), size=(40, 20))
    found = words(task, wide)

    assert [len(cell) for cell in found] == [1] * 4 + [3] * 8 + [1] * 4


def test_only_descriptions_count(task: WordAlignment) -> None:
    found = words(task, sample(Locate("cup", ((0.0, 0.0, 40.0, 40.0),))))

    assert found == [[task.tokenizer.pad_token_id]] * SIDE**2


def test_the_loss_reaches_the_projector_and_goes_down_along_its_gradient(host: Any, task: WordAlignment) -> None:
    model, processor = host
    given, batch = [sample(Describe(((0.0, 0.0, 40.0, 40.0),), "cup"))] * 2, inputs_for(processor, [1, 1])
    projector = model.model.multi_modal_projector

    losses = []
    for _ in range(3):
        model.zero_grad()
        model(**batch)
        loss = loss_of(task, given)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in projector.parameters():
                parameter -= 0.1 * parameter.grad

    assert losses == sorted(losses, reverse=True)
    assert model.model.language_model.layers[0].mlp.up_proj.weight.grad is None


def test_without_a_image_it_is_nothing(task: WordAlignment) -> None:
    assert loss_of(task, []) == 0


def test_each_forward_counts_once(host: Any, task: WordAlignment) -> None:
    model, processor = host
    model(**inputs_for(processor, [1]))

    assert loss_of(task, [sample(Describe(((0.0, 0.0, 40.0, 40.0),), "cup"))]) > 0
    assert loss_of(task, [sample()]) == 0


def test_weight_scales_it(host: Any, task: WordAlignment) -> None:
    model, processor = host
    double = WordAlignment(model, processor)
    double.weight = 2.0
    given = [sample(Describe(((0.0, 0.0, 40.0, 40.0),), "cup"))]
    model(**inputs_for(processor, [1]))

    torch.testing.assert_close(loss_of(double, given), 2 * loss_of(task, given))
    double.remove()


def test_another_number_of_images_is_refused(host: Any, task: WordAlignment) -> None:
    model, processor = host
    model(**inputs_for(processor, [1]))

    with pytest.raises(VPPError, match="one square grid of tokens for each of 2 images"):
        loss_of(task, [sample(), sample()])


def test_generating_is_not_listened_to(host: Any, task: WordAlignment) -> None:
    model, processor = host
    with torch.no_grad():
        model(**inputs_for(processor, [1]))

    assert loss_of(task, [sample()]) == 0


def test_taken_off_it_leaves_no_hook(host: Any) -> None:
    model, processor = host
    WordAlignment(model, processor).remove()

    assert not model.model.multi_modal_projector._forward_hooks


def test_a_query_stands_for_what_it_overlaps_by_half() -> None:
    things = sample(Describe(((0.0, 0.0, 20.0, 20.0),), "cup"), Describe(((0.0, 0.0, 40.0, 40.0),), "table"))
    queries = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0.6, 0.5], [0, 0, 1, 0.9], [0.5, 0.5, 1, 1], [0, 0, 0, 0]])

    assert shown_by_queries(*described_things(things), queries) == ["cup", "cup", "table", "", ""]
    assert shown_by_queries(*described_things(sample()), queries) == [""] * 5


def test_queries_that_say_where_they_look_are_read_too(host: Any) -> None:
    model, processor = host
    batch, given = inputs_for(processor, [1]), [sample(Describe(((0.0, 0.0, 40.0, 40.0),), "cup"))]
    plain = WordAlignment(model, processor)
    model(**batch)
    cells = loss_of(plain, given)
    plain.remove()
    local = model.vpp.local_vpp
    local.generator.boxes = lambda queries: torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(*queries.shape[:2], 4)
    local.generator.names, local.generator.scores = (), lambda queries: queries[..., :0]
    task = WordAlignment(model, processor)
    seen: list[torch.Tensor] = []
    handle = local.projector.register_forward_hook(lambda module, args, output: seen.append(output))
    model(**batch)
    together = loss_of(task, given)
    handle.remove()
    task.remove()

    table = model.get_input_embeddings().weight
    read = torch.nn.functional.rms_norm(seen[0], seen[0].shape[-1:]) @ table.T
    cup = processor.tokenizer.convert_tokens_to_ids("cup")
    torch.testing.assert_close(together, cells - read.log_softmax(-1)[..., cup].mean())
    assert any(name.startswith("vpp.local_prompt") for name, _ in model.named_parameters())
