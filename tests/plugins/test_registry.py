"""Plugins are found, asked and, where broken, left out with a warning; every refusal names who is installed."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from examples import box_format
from tests.tiny import ToyGenerator, tiny_llava, tiny_processor
from vpp_plugins import Grounder, VPPError, attach_vpp, hookimpl
from vpp_plugins.boxes import BoxCodec, ImageMeta, codec
from vpp_plugins.plugins import registry
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.plugins.registry import (
    BrokenPluginWarning,
    adapters,
    box_codec,
    broken,
    build_generator,
    build_loss,
    converter,
    describe,
    generators,
    manager,
)


def backbone(name: str, *, fallback: bool = False) -> Backbone:
    return Backbone(
        adapter=name, hidden_size=24, vision_encoders=(), box_format="llava", frame="square", fallback=fallback
    )


class Claims:
    """An adapter for one class of models, called by another name than it is installed under."""

    def __init__(self, kind: type, *, fallback: bool = False) -> None:
        self.kind, self.fallback = kind, fallback

    @hookimpl
    def vpp_adapter(self, model: nn.Module) -> Backbone | None:
        return backbone("displayed", fallback=self.fallback) if isinstance(model, self.kind) else None


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

    def test_a_fallback_gives_way(self) -> None:
        with installed(generic_too=Claims(nn.Module, fallback=True)):
            assert describe(tiny_llava()).adapter == "llava"
            assert describe(tiny_llava(), "generic_too").adapter == "displayed"
            assert describe(nn.Linear(2, 2)).fallback

    def test_two_fallbacks_are_refused_where_nobody_else_claims(self) -> None:
        with installed(one=Claims(nn.Linear, fallback=True), two=Claims(nn.Linear, fallback=True)):
            with pytest.raises(VPPError, match="the adapters 'one' and 'two' all claim Linear: pass adapter=NAME"):
                describe(nn.Linear(2, 2))
            with installed(firm=Claims(nn.Linear)):
                assert not describe(nn.Linear(2, 2)).fallback

    def test_a_refusal_is_shown_where_nobody_claims(self) -> None:
        """An adapter that knows better than "nobody claims it" why a model cannot take VPP says so by VPPError."""

        class Refuses:
            @hookimpl
            def vpp_adapter(self, model: nn.Module) -> Backbone | None:
                raise VPPError("it has no eyes")

        with installed(aaa=Refuses()):
            assert describe(tiny_llava()).adapter == "llava"
            with pytest.raises(VPPError, match="it has no eyes"):
                describe(nn.Linear(2, 2))

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
        kept = manager()
        with pytest.MonkeyPatch.context() as patch:
            self.patch = patch
            patch.setattr(registry, "_loaded", functools.cache(registry._loaded.__wrapped__))
            yield
        assert manager() is kept

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
        assert broken() == {"broken": f"{type(error).__name__}: {error}"}

    def test_broken_plugins_are_listed_without_asking_first(self) -> None:
        self.entries(Entry("gone", ImportError("no 'that'")))

        with pytest.warns(BrokenPluginWarning):
            assert broken() == {"gone": "ImportError: no 'that'"}
        broken().clear()
        assert broken()

    def test_a_hook_of_a_wrong_shape_is_warned_about(self) -> None:
        class Wrong:
            @hookimpl
            def vpp_adapter(self, host: nn.Module) -> None:
                """Takes an argument that the hook does not have."""

        self.entries(Entry("wrong", Wrong()), Entry("good", Claims(nn.Linear)))

        with pytest.warns(BrokenPluginWarning, match="'wrong'.*PluginValidationError"):
            assert list(adapters()) == ["good"]
        assert "vpp_adapter" in broken()["wrong"]
        assert "host" in broken()["wrong"]
        assert not manager().has_plugin("wrong")

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
            VPPError,
            match=r"no plugin builds the generator 'dert'\. Did you mean 'detr'\? Known: detr, hf_detector, nanodet",
        ):
            build_generator("dert", 4, {})

    def test_a_plugin_s_generators_are_known_by_their_names(self) -> None:
        class Names:
            @hookimpl
            def vpp_generator_names(self) -> list[str]:
                return ["swan", "goose"]

            @hookimpl
            def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
                return nn.Identity() if name == "swan" else None

        class Silent:
            @hookimpl
            def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
                return None

        with installed(birds=Names(), silent=Silent()):
            assert generators() == {
                "detr": "built-in",
                "goose": "birds",
                "hf_detector": "built-in",
                "nanodet": "nanodet",
                "swan": "birds",
                "(silent)": "silent",
            }
            with pytest.raises(VPPError, match=r"the generator 'gose'\. Did you mean 'goose'\?"):
                build_generator("gose", 4, {})

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


class TestConverters:
    def test_a_strangers_converter(self, tmp_path: Path) -> None:
        class Knows:
            @hookimpl
            def vpp_converter(self, folder: Path) -> Any:
                return (lambda source, target, dtype: None) if (folder / "strange.json").exists() else None

        (tmp_path / "strange.json").write_text("{}")
        with installed(strange=Knows()):
            assert callable(converter(tmp_path))

    def test_a_layout_that_no_plugin_knows(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match=r"no plugin converts the checkpoint in .*Installed converters: .*vpp_llava"):
            converter(tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="is no folder here"):
            converter(tmp_path / "missing")


class Impostor:
    """A stranger's plugin that would have the name of a built-in format."""

    @hookimpl
    def vpp_box_format(self, name: str) -> BoxCodec | None:
        return replace(codec("llava"), family=name) if name == "shikra" else None


class TestBoxFormats:
    def test_a_strangers_format(self) -> None:
        with installed(formats=box_format):
            found = box_codec("my-llava")

        assert found.prompt("the cup") == "Give the box of the cup."
        meta = ImageMeta(size_hw=(10, 10))
        assert found.decode(found.encode([(1, 2, 3, 4)], meta), meta).boxes_xyxy_px == ((1, 2, 3, 4),)

    def test_built_in_formats_keep_their_names(self) -> None:
        with installed(formats=Impostor()):
            assert box_codec("shikra") is codec("shikra")

    def test_an_unknown_name(self) -> None:
        with (
            installed(formats=box_format),
            pytest.raises(VPPError, match=r"no box codec is called 'mime'\. Did you mean 'mine'\?|Known: .*llava"),
        ):
            box_codec("my-lava")

    def test_the_grounder_asks_for_it(self) -> None:
        model, processor = tiny_llava(), tiny_processor()

        with installed(formats=box_format):
            assert Grounder(model, processor, box_format="my-llava").codec.family == "my-llava"


def test_a_loss_comes_from_whoever_knows_its_name() -> None:
    class Brings:
        @hookimpl
        def vpp_loss(self, name: str, model: nn.Module, processor: Any) -> nn.Module | None:
            return nn.Identity() if name == "mine" else None

    with installed(brings=Brings()):
        assert isinstance(build_loss("mine", nn.Linear(1, 1), None), nn.Identity)
        assert build_loss("other", nn.Linear(1, 1), None) is None
