import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError

EVERYTHING = VPPConfig(
    global_vpp=GlobalVPPConfig(
        size=224,
        alpha=0.9,
        border=20,
        style="cross",
        unit="0-1000",
        frame="image",
        interior="scaled",
        resample="nearest",
        font_size=8,
        image_mean=(0.5, 0.25, 0.125),
        image_std=(0.5, 1, 2.0),
    ),
    local_vpp=LocalVPPConfig(
        num_queries=7,
        generator="other",
        generator_options={"backbone": "resnet18", "sizes": [1, 2], "nested": {"é": None}},
        weights="some/where",
        frozen_weights={"some.safetensors": "0a1b"},
        image_size=320,
        projector_size=64,
        gain=2.0,
        overlay=False,
        overlay_units="host",
        mask_padding=False,
    ),
    seed=3,
)


@pytest.fixture
def without_signature_checks() -> Iterator[None]:
    """As users run it; in the other tests the checks of conftest.py would refuse a wrong type first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "config", [VPPConfig(), EVERYTHING, replace(EVERYTHING, local_vpp=None), replace(EVERYTHING, global_vpp=None)]
)
def test_a_saved_configuration_comes_back_equal(config: VPPConfig, tmp_path: Path) -> None:
    path = tmp_path / "vpp_config.json"

    config.save(path)

    assert VPPConfig.load(path) == config
    assert VPPConfig.from_dict(config.to_dict()) == config


def test_every_field_of_the_example_above_differs_from_its_default() -> None:
    """So that the round trip means something, also for the field that is added next."""
    for ours, default in (
        (EVERYTHING, VPPConfig()),
        (EVERYTHING.global_vpp, GlobalVPPConfig()),
        (EVERYTHING.local_vpp, LocalVPPConfig()),
    ):
        assert [name for name in vars(default) if getattr(ours, name) == getattr(default, name)] == []


def test_the_defaults_are_the_paper_s() -> None:
    """VPP-LLaVA (arXiv 2503.15426): P of 336 x 336, band 30 pixels, alpha 0.95, 100 queries of a 640 x 640 image."""
    axes, local = GlobalVPPConfig(), LocalVPPConfig()

    assert (axes.size, axes.border, axes.alpha, axes.style) == (336, 30, 0.95, "edge-0.1")
    assert (local.num_queries, local.image_size, local.projector_size, local.generator) == (100, 640, 1024, "detr")


def test_missing_keys_take_their_defaults() -> None:
    assert VPPConfig.from_dict({}) == VPPConfig()
    assert VPPConfig.from_dict({"global_vpp": {"alpha": 1}}).global_vpp == GlobalVPPConfig(alpha=1)


def test_configurations_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        VPPConfig().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global": {}}, r"unknown configuration key 'global'\. Did you mean 'global_vpp'\? Known: global_vpp, local_"),
        ({"global_vpp": {"stile": "cross"}}, r"'global_vpp\.stile'\. Did you mean 'style'\?"),
        ({"local_vpp": {"queries": 3}}, r"'local_vpp\.queries'\."),
        ({"global_vpp": None, "local_vpp": None}, "needs a global prompt, a local prompt or both"),
        ({"global_vpp": {"style": "edge"}}, r"global_vpp\.style must be one of edge-0\.1, .*, but is 'edge'\."),
        ({"global_vpp": {"style": 3}}, r"global_vpp\.style must be one of"),
        ({"global_vpp": {"unit": "0-100"}}, r"global_vpp\.unit .* Did you mean '0-1000'\?"),
        ({"global_vpp": {"interior": "scale"}}, r"global_vpp\.interior .* Did you mean 'scaled'\?"),
        ({"global_vpp": {"resample": "bicubic"}}, r"global_vpp\.resample must be one of bilinear, nearest"),
        ({"local_vpp": {"overlay_units": "hosts"}}, r"local_vpp\.overlay_units .* Did you mean 'host'\?"),
        ({"global_vpp": {"alpha": -0.1}}, r"alpha must lie between 0 and 1, but is -0\.1"),
        ({"global_vpp": {"alpha": 1.1}}, r"alpha must lie between 0 and 1, but is 1\.1"),
        ({"global_vpp": {"alpha": float("nan")}}, "alpha must be float, but is nan"),
        ({"global_vpp": {"alpha": "0.95"}}, r"alpha must be float, but is '0\.95'"),
        ({"global_vpp": {"border": 0}}, "border must be 1 to 167 pixels .*, but is 0"),
        ({"global_vpp": {"border": 168}}, "border must be 1 to 167 pixels .*, but is 168"),
        ({"global_vpp": {"size": 0}}, "size must be at least 4"),
        ({"global_vpp": {"size": 336.0}}, "size must be int"),
        ({"global_vpp": {"image_mean": [0.5]}}, "image_mean must be tuple"),
        ({"global_vpp": {"image_std": [0.5, 0, 1]}}, "image_std must be above 0"),
        ({"local_vpp": {"num_queries": 0}}, "num_queries must be at least 1"),
        ({"local_vpp": {"num_queries": True}}, "num_queries must be int, but is True"),
        ({"local_vpp": {"projector_size": 0}}, "projector_size must be at least 1"),
        ({"local_vpp": {"gain": 0.0}}, r"gain must be above 0 and at most 10,000, but is 0\.0"),
        ({"local_vpp": {"gain": 1e9}}, "gain must be above 0 and at most 10,000"),
        ({"local_vpp": {"image_size": 100}}, "image_size must be a multiple of 32, but is 100"),
        ({"local_vpp": {"image_size": 0}}, "image_size must be a multiple of 32"),
        ({"local_vpp": {"generator_options": [1]}}, "generator_options must be dict"),
        ({"local_vpp": {"weights": 3}}, "weights must be"),
        ({"local_vpp": "detr"}, "local_vpp must be .*LocalVPPConfig.*, but is 'detr'"),
        ({"seed": "zero"}, "seed must be int"),
    ],
)
@pytest.mark.usefixtures("without_signature_checks")
def test_wrong_values_are_refused_with_their_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(VPPError, match=message):
        VPPConfig.from_dict(values)


def test_fusion_of_0_1_0_loads_where_it_was_off_and_is_refused_where_it_was_on(tmp_path: Path) -> None:
    """Its vpp_config.json always named one of three; only the paper's own choice is left."""
    path = tmp_path / "vpp_config.json"
    values = EVERYTHING.to_dict()
    path.write_text(json.dumps({**values, "local_vpp": {**values["local_vpp"], "fusion": "concatenate"}}))
    assert VPPConfig.load(path) == EVERYTHING

    for fusion in ("queries-attend", "image-attends"):
        old = {"local_vpp": {"num_queries": 7, "fusion": fusion}}
        path.write_text(json.dumps(old))
        for build in (lambda: VPPConfig.load(path), lambda old=old: VPPConfig.from_dict(old)):
            with pytest.raises(
                VPPError, match=rf"^local_vpp\.fusion = '{fusion}' was removed .* train these prompts anew\.$"
            ):
                build()


def test_changes_lie_on_top_of_what_is_there() -> None:
    changed = EVERYTHING.changed({"global_vpp": {"style": "padding", "alpha": 0.8}, "seed": 4})

    assert changed.global_vpp == replace(EVERYTHING.global_vpp, style="padding", alpha=0.8)
    assert (changed.local_vpp, changed.seed) == (EVERYTHING.local_vpp, 4)
    assert EVERYTHING.changed({}) == EVERYTHING
    assert VPPConfig().changed({"local_vpp": False}) == VPPConfig(local_vpp=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"globel_vpp": {}}, "unknown configuration key 'globel_vpp'. Did you mean 'global_vpp'"),
        ({"global_vpp": {"stile": "cross"}}, "unknown configuration key 'global_vpp.stile'. Did you mean 'style'"),
        ({"local_vpp": {"overlay_units": "hosts"}}, "overlay_units must be one of .* 'hosts'. Did you mean 'host'"),
        ({"local_vpp": {"fusion": "image-attends"}}, "local_vpp.fusion = 'image-attends' was removed after 0.1.0"),
        ({"local_vpp": True}, "or be false to leave it out, but .* was given True"),
        ({"global_vpp": {"alpha": 0.9}}, "global_vpp must be changed by a table .* is None and was given"),
    ],
)
@pytest.mark.usefixtures("without_signature_checks")
def test_changes_that_cannot_be_made_are_refused(changes: dict[str, Any], message: str) -> None:
    config = VPPConfig(global_vpp=None) if "is None" in message else VPPConfig()
    with pytest.raises(VPPError, match=message):
        config.changed(changes)


def test_unreadable_files_say_what_is_wrong(tmp_path: Path) -> None:
    for name, content, message in (
        ("broken.json", "{", "is not valid JSON"),
        ("latin.json", b"\xff\xfe\xfa", "is not valid JSON"),
        ("deep.json", "[" * 100_000, "is not valid JSON"),
        ("digits.json", "9" * 5000, "is not valid JSON"),
        ("large.json", json.dumps({"global_vpp": {"alpha": 10**400}}), "alpha must be float"),
        ("list.json", "[]", "must hold a JSON object, but holds a list"),
        ("unknown.json", json.dumps({"sed": 1}), "Did you mean 'seed'"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(VPPError, match=message):
            VPPConfig.load(path)
    with pytest.raises(VPPError, match=f"no 'vpp_config.json' in '{tmp_path}'"):
        VPPConfig.load(tmp_path / "vpp_config.json")
