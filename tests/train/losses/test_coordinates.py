"""Coordinates as tokens: soft targets, and boxes that are hidden while they are learned."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_processor
from vpp_plugins.errors import VPPError
from vpp_plugins.pocket import build_tokenizer
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.losses.coordinates import OTHERS, HiddenBoxes, SoftBoxLoss, coordinate_ids, learned_alone

FIRST, VOCABULARY = 10, 120
IDS = torch.arange(FIRST, FIRST + 101)
WORD = 3


def loss_of(logits: Tensor, labels: list[int], **options: Any) -> Tensor:
    shifted = torch.tensor([[IGNORED, *labels]])
    return SoftBoxLoss(IDS)(SimpleNamespace(logits=logits), shifted, **options)


def sure(labels: list[int]) -> Tensor:
    """Logits that say just these tokens, the last place free."""
    return torch.nn.functional.one_hot(torch.tensor([[*labels, 0]]), VOCABULARY).float() * 50


class TestSoftBoxLoss:
    def test_a_near_number_costs_less_than_a_far_one(self) -> None:
        costs = [float(loss_of(sure([FIRST + 50 + off]), [FIRST + 50])) for off in (0, 1, 2, 10)]

        assert costs == sorted(costs)
        assert len(set(costs)) == 4

    def test_the_bell_itself_costs_nothing(self) -> None:
        loss = SoftBoxLoss(IDS)
        logits = torch.full((1, 2, VOCABULARY), -50.0)
        logits[0, 0, FIRST : FIRST + 101] = loss.bell[30].clamp(min=1e-20).log()

        assert loss_of(logits, [FIRST + 30]) == pytest.approx(0, abs=1e-5)

    def test_words_have_ordinary_cross_entropy(self) -> None:
        logits = torch.randn(1, 3, VOCABULARY, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([WORD, WORD + 1])

        assert loss_of(logits, labels.tolist()) == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits[0, :2], labels)), abs=1e-6
        )

    def test_words_weigh_less_than_numbers(self) -> None:
        logits = torch.randn(1, 3, VOCABULARY, generator=torch.Generator().manual_seed(0))
        number, word = loss_of(logits, [FIRST, IGNORED]), loss_of(logits, [IGNORED, WORD])

        assert float(loss_of(logits, [FIRST, WORD])) == pytest.approx(
            float((number + OTHERS * word) / (1 + OTHERS)), abs=1e-5
        )

    def test_a_head_that_reads_the_learned_places_alone_costs_the_same(self) -> None:
        head = torch.nn.Linear(8, VOCABULARY).requires_grad_(False)
        hidden = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
        labels = torch.full((2, 6), IGNORED)
        labels[0, 2:4], labels[1, 5] = torch.tensor([FIRST + 3, WORD]), FIRST + 9
        with learned_alone(head, labels):
            few = head(hidden)

        assert few.shape == (3, VOCABULARY)
        assert head(hidden).shape == (2, 6, VOCABULARY)
        costs = [float(SoftBoxLoss(IDS)(SimpleNamespace(logits=logits), labels)) for logits in (few, head(hidden))]
        assert costs[0] == pytest.approx(costs[1], abs=1e-6)

    def test_what_is_not_learned_has_no_part(self) -> None:
        logits = torch.randn(1, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))

        assert loss_of(logits, [FIRST, IGNORED, IGNORED]) == loss_of(logits[:, [0, 3]], [FIRST])

    def test_parts_of_a_batch_add_up(self) -> None:
        """Under gradient accumulation Trainer gives the whole batch's number of learned tokens."""
        logits = torch.randn(1, 5, VOCABULARY, generator=torch.Generator().manual_seed(0))
        labels = [FIRST, FIRST + 7, FIRST + 9, FIRST + 11]

        parts = [
            loss_of(logits[:, :3], labels[:2], num_items_in_batch=4),
            loss_of(logits[:, 2:], labels[2:], num_items_in_batch=4),
        ]

        assert float(sum(parts)) == pytest.approx(float(loss_of(logits, labels)), abs=1e-5)


class TestHiddenBoxes:
    ids = torch.tensor([[1, FIRST + 9, 2, *range(FIRST + 20, FIRST + 24), 2, *range(FIRST + 40, FIRST + 44), 4]])
    labels = torch.tensor(
        [[*[IGNORED] * 3, *range(FIRST + 20, FIRST + 24), IGNORED, *range(FIRST + 40, FIRST + 44), 4]]
    )

    def test_only_learned_numbers_change(self) -> None:
        changed = HiddenBoxes(IDS, 1.0, samples=10)(self.ids, self.labels, (0,))
        number = (self.labels != IGNORED) & (self.labels >= FIRST)

        assert torch.equal(changed[~number], self.ids[~number])
        assert (changed[number] != self.ids[number]).any()
        assert ((changed[number] >= FIRST) & (changed[number] < FIRST + 101)).all()

    def test_without_a_share_numbers_are_only_blurred(self) -> None:
        changed = torch.cat([HiddenBoxes(IDS, 0.0, samples=99)(self.ids, self.labels, (n,)) for n in range(99)])

        assert (changed - self.ids).abs().max() <= 9  # six standard deviations
        assert (changed != self.ids).any()

    def test_a_box_is_hidden_as_a_whole_and_about_as_often_as_said(self) -> None:
        hide = HiddenBoxes(IDS, 0.5, samples=1000)
        far = (torch.cat([hide(self.ids, self.labels, (n,)) for n in range(400)]) - self.ids).abs() > 9
        boxes = torch.cat([far[:, 3:7], far[:, 8:12]])  # of a random number four in five are so far away

        assert 0.4 < float(boxes.any(1).float().mean()) < 0.6
        assert float(boxes[boxes.any(1)].float().mean()) > 0.7

    def test_the_samples_number_decides_not_the_batch(self) -> None:
        hide = HiddenBoxes(IDS, 0.5, samples=10)
        together = hide(self.ids.repeat(3, 1), self.labels.repeat(3, 1), (4, 5, 6))

        assert torch.equal(together[1:2], hide(self.ids, self.labels, (5,)))

    def test_late_samples_are_hidden_less(self) -> None:
        hide = HiddenBoxes(IDS, 1.0, samples=1000)
        far = [(hide(self.ids, self.labels, (n,)) - self.ids).abs()[:, 3:7].max() > 9 for n in range(900, 1000)]

        assert 0.05 < sum(map(bool, far)) / 100 < 0.4

    def test_a_stand_in_row_is_left_out(self) -> None:
        """A batch of text alone has one row more than samples."""
        changed = HiddenBoxes(IDS, 1.0, samples=10)(self.ids.repeat(2, 1), self.labels.repeat(2, 1), (0,))

        assert changed.shape == (2, self.ids.shape[1])
        assert torch.equal(changed[1], self.ids[0])


class TestCoordinateIds:
    def test_of_the_pocket_tokenizer_they_are_its_101_numbers(self) -> None:
        tokenizer = build_tokenizer(["cup"])

        assert tokenizer.convert_ids_to_tokens(coordinate_ids(tokenizer).tolist())[:12:11] == ["0.0", "0.11"]

    def test_a_tokenizer_without_them_is_refused(self) -> None:
        with pytest.raises(VPPError, match="leave them out"):
            coordinate_ids(tiny_processor().tokenizer)
