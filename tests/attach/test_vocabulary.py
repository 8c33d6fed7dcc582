"""The vocabulary grows by rows of zeros and comes back bit for bit, tied or not."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import FULL, attached, inputs_for, tiny_llava, tiny_processor
from vpp_plugins import VPPError, VPPProcessor, detach_vpp, vpp_disabled
from vpp_plugins.attach import vocabulary

either = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def tables(host: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return host.get_input_embeddings().weight, host.get_output_embeddings().weight


def sizes(host: Any) -> set[int]:
    """Every place where a host keeps the size of its vocabulary."""
    embedding, head = host.get_input_embeddings(), host.get_output_embeddings()
    recorded = {embedding.num_embeddings, head.out_features, host.config.text_config.vocab_size}
    return recorded | {len(embedding.weight), len(head.weight), host.config.get_text_config().vocab_size}


@either
def test_growing_appends_zeros(tied: bool) -> None:
    host = tiny_llava(vocabulary=FULL, tied=tied)
    before = [table.detach().clone() for table in tables(host)]
    state = torch.get_rng_state()

    vocabulary.grow(host, FULL + 2)

    assert sizes(host) == {FULL + 2}
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before, tables(host), strict=True):
        assert torch.equal(new[:FULL], old)
        assert not new[FULL:].any()


@either
def test_shrinking_is_the_way_back(tied: bool) -> None:
    host = tiny_llava(vocabulary=FULL, tied=tied)
    before = [table.detach().clone() for table in tables(host)]

    vocabulary.grow(host, FULL + 2)
    vocabulary.shrink(host, FULL)

    assert sizes(host) == {FULL}
    assert all(torch.equal(new, old) for old, new in zip(before, tables(host), strict=True))
    assert (tables(host)[0] is tables(host)[1]) is tied


@either
def test_what_was_learned_survives_shrinking(tied: bool) -> None:
    host = tiny_llava(vocabulary=FULL, tied=tied)
    vocabulary.grow(host, FULL + 1)
    tables(host)[0].data[:FULL] += 1
    expected = tables(host)[0][:FULL].detach().clone()

    vocabulary.shrink(host, FULL)

    assert torch.equal(tables(host)[0], expected)


@either
def test_narrowed_shows_views_and_ends(tied: bool) -> None:
    host = tiny_llava(vocabulary=FULL, tied=tied)
    vocabulary.grow(host, FULL + 1)
    parameters = tables(host)

    with pytest.raises(RuntimeError, match="inside"):  # noqa: PT012, SIM117
        with vocabulary.narrowed(host, FULL):
            assert sizes(host) == {FULL}
            assert all(now is then for now, then in zip(tables(host), parameters, strict=True))
            tables(host)[0].data[0] += 1
            first = tables(host)[0][0].clone()
            raise RuntimeError("inside")

    assert sizes(host) == {FULL + 1}
    assert torch.equal(tables(host)[0][0], first)


@pytest.mark.parametrize("rows", [None, FULL, FULL + 1])
def test_narrowed_to_no_less_changes_nothing(rows: int | None) -> None:
    host = tiny_llava(vocabulary=FULL)

    with vocabulary.narrowed(host, rows):
        assert sizes(host) == {FULL}


@pytest.mark.parametrize("trainable", [True, False])
def test_trainability_is_kept(trainable: bool) -> None:
    host = tiny_llava(vocabulary=FULL).requires_grad_(trainable)

    vocabulary.grow(host, FULL + 1)
    assert all(table.requires_grad is trainable for table in tables(host))
    vocabulary.shrink(host, FULL)
    assert all(table.requires_grad is trainable for table in tables(host))


def test_a_bias_of_the_head_grows_with_it() -> None:
    host = tiny_llava(vocabulary=FULL)
    host.lm_head = nn.Linear(24, FULL, bias=True)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    expected = host(**inputs).logits

    vocabulary.grow(host, FULL + 1)

    assert torch.equal(host(**inputs).logits[..., :FULL], expected)
    assert not host(**inputs).logits[..., FULL:].any()
    vocabulary.shrink(host, FULL)
    assert torch.equal(host(**inputs).logits, expected)


@pytest.mark.usefixtures("toy")
class TestInAnAttachedHost:
    @pytest.mark.parametrize(("rows", "grows"), [(32, False), (FULL + 1, False), (FULL, True)])
    def test_grows_only_where_no_row_is_spare(self, rows: int, grows: bool) -> None:
        model, _ = attached(tiny_llava(vocabulary=rows))

        assert model.vpp.token_id == FULL
        assert sizes(model) == {rows + grows}

    def test_only_the_tables_become_new_parameters(self) -> None:
        """Which is why an optimizer is made after the VPPProcessor."""
        model = tiny_llava(vocabulary=FULL)
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        model, _ = attached(model)

        new = {n for n, p in model.named_parameters() if id(p) not in names and not n.startswith("vpp.")}
        assert new == {"model.language_model.embed_tokens.weight", "lm_head.weight"}

    def test_a_second_processor_does_not_grow_it_again(self) -> None:
        model, processor = attached(tiny_llava(vocabulary=FULL))
        type(processor)(processor.processor, model)

        assert sizes(model) == {FULL + 1}
        assert sizes(detach_vpp(model)) == {FULL}

    def test_a_cast_in_a_disabled_block_holds_for_all_rows(self) -> None:
        """The tables went back to what they were before the block, in the old type, and no forward ran any more."""
        model, processor = attached(tiny_llava(vocabulary=FULL))
        placeholder = model.get_input_embeddings().weight[FULL].detach().clone()

        with vpp_disabled(model):
            model.to(torch.float64)

        assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
        assert torch.equal(model.get_input_embeddings().weight[FULL], placeholder.double())
        assert sizes(model) == {FULL + 1}
        model(**inputs_for(processor, [1], dtype=torch.float64))
        assert sizes(detach_vpp(model)) == {FULL}

    @either
    def test_gradients_fit_before_in_and_after_a_disabled_block(self, tied: bool) -> None:
        """One of the block had too few rows for the next backward, and one from before too many within the block."""
        model, processor = attached(tiny_llava(vocabulary=FULL, tied=tied))
        inputs = inputs_for(processor, [1])
        model(**inputs).logits.sum().backward()
        before = [table.grad.clone() for table in tables(model)]

        with vpp_disabled(model):
            assert all(table.grad.shape == table.shape for table in tables(model))
            model(**inputs_for(processor, [1])).logits.sum().backward()
            within = [table.grad.clone() for table in tables(model)]

        for table, first, second in zip(tables(model), before, within, strict=True):
            assert torch.equal(table.grad, torch.cat([second, first[FULL:]]))
            assert not torch.equal(second, first[:FULL])
        model.zero_grad()
        with vpp_disabled(model):
            model(**inputs_for(processor, [1])).logits.sum().backward()
        assert all(table.grad.shape == table.shape and not table.grad[FULL:].any() for table in tables(model))
        model(**inputs).logits.sum().backward()

    def test_another_tokenizer_is_refused_and_all_of_it_comes_off(self) -> None:
        model, _ = attached(tiny_llava(vocabulary=FULL))
        larger = tiny_processor()
        larger.tokenizer.add_tokens(["cat", "dog"])

        with pytest.raises(VPPError, match=r"is not the processor of this .*: its tokenizer has 'dog' at 14"):
            VPPProcessor(larger, model)

        assert model.vpp.token_id == FULL
        assert sizes(model) == {FULL + 1}
        assert sizes(detach_vpp(model)) == {FULL}

    def test_a_deep_copy_detaches_by_itself(self) -> None:
        model, processor = attached(tiny_llava(vocabulary=FULL))
        inputs = inputs_for(processor, [1])

        twin = detach_vpp(copy.deepcopy(model))

        assert sizes(twin) == {FULL}
        assert sizes(model) == {FULL + 1}
        assert model(**inputs).logits.shape[-1] == FULL + 1

    def test_offloaded_tables_cannot_change(self) -> None:
        model, _ = attached(tiny_llava(vocabulary=FULL))
        model.lm_head.to("meta")

        for attempt in (lambda: detach_vpp(model), lambda: vpp_disabled(model).__enter__()):
            with pytest.raises(
                VPPError, match="cannot change its size while accelerate offloads its weights: make the"
            ):
                attempt()
        assert model.vpp.token_id == FULL
