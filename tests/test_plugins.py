"""Plugins are found, asked and, where broken, left out with a warning; every refusal names who is installed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import pytest
from torch import nn

from tests.tiny import ToyGenerator, tiny_llava
from vpp_plugins import VPPError, attach_vpp, hookimpl, plugins
from vpp_plugins.backbone import Backbone
from vpp_plugins.plugins import BrokenPluginWarning, adapters, build_generator, describe, manager


def backbone(name: str) -> Backbone:
    return Backbone(adapter=name, hidden_size=24, vision_encoders=(), box_format="llava", frame="square")


class Claims:
    """An adapter for one class of models, called by another name than it is installed under."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    @hookimpl
    def vpp_adapter(self, model: nn.Module) -> Backbone | None:
        return backbone("displayed") if isinstance(model, self.kind) else None


class Fails:
    @hookimpl
    def vpp_adapter(self, model: nn.Module) -> Backbone | None:
        raise ImportError("no module named 'that_family'")


@contextmanager
def installed(**named: Any) -> Iterator[None]:
    for name, plugin in named.items():
        manager().register(plugin, name)
    try:
        yield
    finally:
        for name in named:
            manager().unregister(name=name)


class TestDescribe:
    def test_ours_arrive_like_a_strangers(self) -> None:
        assert "llava" in adapters()
        assert describe(tiny_llava()).adapter == "llava"

    def test_a_strangers_adapter_is_asked(self) -> None:
        with installed(mine=Claims(nn.Linear)):
            assert describe(nn.Linear(2, 2)).adapter == "displayed"
            assert describe(tiny_llava()).adapter == "llava"

    def test_two_claims_are_refused_by_the_names_to_choose_from(self) -> None:
        model = tiny_llava()

        with installed(mine=Claims(nn.Module)):
            with pytest.raises(
                VPPError, match="the adapters 'llava' and 'mine' all claim LlavaForConditionalGeneration"
            ):
                describe(model)
            assert describe(model, "mine").adapter == "displayed"
            assert describe(model, "llava").adapter == "llava"

    def test_nobody_claims_it(self) -> None:
        with (
            installed(mine=Claims(nn.Linear)),
            pytest.raises(VPPError, match=r"no adapter claims Conv1d: .*llava.*mine"),
        ):
            describe(nn.Conv1d(1, 1, 1))

    def test_the_named_one_does_not_claim_it(self) -> None:
        with pytest.raises(VPPError, match=r"the adapter 'llava' does not claim Linear\. Installed: .*llava"):
            describe(nn.Linear(2, 2), "llava")

    def test_an_unknown_name(self) -> None:
        with pytest.raises(VPPError, match=r"no adapter is called 'lavla'\. Did you mean 'llava'\? Installed: .*llava"):
            describe(tiny_llava(), "lavla")
        with pytest.raises(VPPError, match=r"no adapter is called 'zzz'\. Installed"):
            describe(tiny_llava(), "zzz")

    def test_a_description_is_taken_at_its_word(self) -> None:
        given = backbone("mine")

        assert describe(nn.Linear(2, 2), given) is given

    def test_an_adapter_that_fails_is_left_out(self) -> None:
        """An adapter for a family that this transformers does not have must not stand in the way of all others."""
        with installed(broken=Fails()):
            with pytest.warns(
                BrokenPluginWarning, match="the adapter 'broken' failed on Llava.*ImportError: no module named"
            ):
                assert describe(tiny_llava()).adapter == "llava"
            with pytest.raises(ImportError, match="that_family"):
                describe(tiny_llava(), "broken")


class Entry:
    """An entry point that loads what it is given, or raises it."""

    value = "somewhere:plugin"

    def __init__(self, name: str, loads: Any) -> None:
        self.name, self.loads = name, loads

    def load(self) -> Any:
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads


class TestLoading:
    @pytest.fixture(autouse=True)
    def afresh(self) -> Iterator[None]:
        """Each test loads plugins for itself, and leaves the loaded ones as they were."""
        kept = plugins.manager
        fresh = kept.__wrapped__
        with pytest.MonkeyPatch.context() as patch:
            self.patch = patch
            loaded: list[Any] = []
            patch.setattr(plugins, "manager", lambda: loaded[0] if loaded else loaded.append(fresh()) or loaded[0])
            yield
        assert plugins.manager is kept

    def entries(self, *entries: Entry) -> None:
        self.patch.setattr(metadata, "entry_points", lambda *, group: entries if group == "vpp_plugins" else ())

    @pytest.mark.parametrize(
        "error", [ImportError("no 'that'"), RuntimeError("bad"), SyntaxError("worse"), AttributeError("gone")], ids=repr
    )
    def test_a_broken_plugin_is_warned_about_and_left_out(self, error: Exception) -> None:
        self.entries(Entry("broken", error), Entry("good", Claims(nn.Linear)))

        with pytest.warns(
            BrokenPluginWarning, match=rf"'broken' \(somewhere:plugin\) could not .*{type(error).__name__}"
        ):
            assert describe(nn.Linear(2, 2)).adapter == "displayed"
        assert list(adapters()) == ["good"]

    def test_a_hook_of_a_wrong_shape_is_warned_about(self) -> None:
        class Wrong:
            @hookimpl
            def vpp_adapter(self, host: nn.Module) -> None:
                """Takes an argument that the hook does not have."""

        self.entries(Entry("wrong", Wrong()), Entry("good", Claims(nn.Linear)))

        with pytest.warns(BrokenPluginWarning, match="'wrong'.*PluginValidationError"):
            assert list(adapters()) == ["good"]

    def test_nothing_installed(self) -> None:
        self.entries()

        with pytest.raises(VPPError, match="no adapter claims Linear: installed are none"):
            attach_vpp(nn.Linear(2, 2))
        assert build_generator("detr", 4, {"backbone": "resnet10t", "encoder_layers": 1, "decoder_layers": 1})


class TestGenerators:
    def test_a_strangers_generator(self, toy: None) -> None:
        generator = build_generator("toy", 5, {"width": 12})

        assert isinstance(generator, ToyGenerator)
        assert (generator.num_queries, generator.width) == (5, 12)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(
            VPPError, match=r"no plugin builds the generator 'dert'\. Did you mean 'detr'\? Built in: detr"
        ):
            build_generator("dert", 4, {})

    def test_options_that_do_not_fit(self) -> None:
        with pytest.raises(VPPError, match=r"local_vpp.generator_options do not fit the generator 'detr': .*wdth"):
            build_generator("detr", 4, {"wdth": 3})

    def test_the_built_in_one_cannot_be_replaced_unseen(self) -> None:
        """pluggy asks the latest plugin first, so a stranger's "detr" would hide ours."""

        class Impostor:
            @hookimpl
            def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module:
                return nn.Identity()

        with installed(impostor=Impostor()):
            built = build_generator("detr", 4, {"backbone": "resnet10t", "encoder_layers": 1, "decoder_layers": 1})

        assert not isinstance(built, nn.Identity)
