"""Mixtures: exact shares, whole passes, even spread, and the same order whenever it is asked for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vpp_plugins import VPPError
from vpp_plugins.data import Mixture, mixture_order

SOURCES = {"boxes": [f"box {n}" for n in range(30)], "chat": [f"chat {n}" for n in range(10)]}


class TestOrder:
    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 10)), min_size=1, max_size=4),
        st.integers(1, 200),
        st.integers(0, 5),
    )
    def test_shares_are_exact_and_passes_whole(self, sources: list[tuple[int, float]], length: int, seed: int) -> None:
        sizes, weights = zip(*sources, strict=True)
        order = mixture_order(sizes, weights, length=length, seed=seed)
        assert len(order) == length
        edges = np.cumsum([0, *sizes])
        for number, (size, weight) in enumerate(sources):
            own = [item for item in order if edges[number] <= item < edges[number + 1]]
            assert abs(len(own) - length * weight / sum(weights)) < 1
            for start in range(0, len(own), size):
                assert len({*own[start : start + size]}) == len(own[start : start + size])

    def test_is_the_seeds(self) -> None:
        first, again, other = (mixture_order([30, 10], [1, 1], length=50, seed=seed) for seed in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()

    def test_every_stretch_has_about_the_shares(self) -> None:
        order = mixture_order([1000, 1000], [3, 1], length=4000)
        shares = (order.reshape(40, 100) < 1000).mean(axis=1)
        assert shares.min() > 0.6
        assert shares.max() < 0.9

    def test_sources_may_keep_their_own_order(self) -> None:
        order = mixture_order([6, 2], [2, 1], length=9, shuffled=False)

        assert [item for item in order if item < 6] == [0, 1, 2, 3, 4, 5]
        assert [item - 6 for item in order if item >= 6] == [0, 1, 0]

    @pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]])
    def test_weights_that_mean_nothing_are_refused(self, weights: list[float]) -> None:
        with pytest.raises(VPPError, match="weights of a mixture"):
            mixture_order([2, 2], weights, length=4)

    def test_an_empty_source_is_refused_only_if_it_is_wanted(self) -> None:
        assert sorted(mixture_order([0, 2], [0, 1], length=2)) == [0, 1]
        with pytest.raises(VPPError, match="no items"):
            mixture_order([0, 2], [1, 1], length=4)

    def test_an_empty_mixture_is_refused(self) -> None:
        with pytest.raises(VPPError, match="at least one item"):
            mixture_order([2], [1], length=0)


class TestMixture:
    def test_by_size_every_item_comes_once(self) -> None:
        mixed = Mixture(SOURCES)
        assert sorted(mixed[index] for index in range(len(mixed))) == sorted(SOURCES["boxes"] + SOURCES["chat"])

    def test_by_weight(self) -> None:
        mixed = Mixture(SOURCES, weights={"chat": 3, "boxes": 1}, length=100)
        counts = Counter(mixed[index].split()[0] for index in range(100))
        assert counts == {"chat": 75, "box": 25}
        assert mixed.counts() == {"boxes": 25, "chat": 75}

    def test_says_where_an_item_is_from(self) -> None:
        mixed = Mixture(SOURCES)
        for index in range(len(mixed)):
            source, item = mixed.where(index)
            assert SOURCES[source][item] == mixed[index]

    def test_goes_on_from_any_step(self) -> None:
        """A run is resumed by its step: what comes after is the same, whoever asks, and nothing was saved."""
        whole = list(DataLoader(Mixture(SOURCES, seed=3), batch_size=4))
        rest = Mixture(SOURCES, seed=3)
        assert [[rest[index] for index in range(start, start + 4)] for start in range(20, 40, 4)] == whole[5:]

    def test_names_are_checked(self) -> None:
        with pytest.raises(VPPError, match=r"'chatt'.*Did you mean 'chat'\?"):
            Mixture(SOURCES, weights={"boxes": 1, "chatt": 1})
        with pytest.raises(VPPError, match="'chat' of the mixture has no weight"):
            Mixture(SOURCES, weights={"boxes": 1})
        with pytest.raises(VPPError, match="at least one source"):
            Mixture({})
