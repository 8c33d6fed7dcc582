"""VPP on one architecture: attached to its tiny host, compared, and summed up as one row of the coverage table."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.zoo.hosts import ARCHITECTURES, PLACEHOLDER, QUERIES, inputs_of, tiny_host
from vpp_adapters.generic.table import NO_GLOBAL
from vpp_plugins import LocalVPPConfig, VPPConfig, VPPError, attach_vpp
from vpp_plugins.plugins.backbone import PixelLayout
from vpp_plugins.plugins.registry import describe
from vpp_plugins.testing import check_adapter, toy_generator
from vpp_plugins.testing.coverage import Coverage, recorded_coverage, recorded_version
from vpp_plugins.testing.reference_host import give_row, spare_ids

DEFAULTLESS = {"vision-encoder-decoder": "5.17"}
"""Model types that a release of transformers cannot build from its defaults."""


def check_coverage(model_type: str, record_property: Any) -> None:
    """Test one architecture; raise AssertionError where a promise is broken, or the row is not the recorded one."""
    release = DEFAULTLESS.get(model_type)
    if release is not None and transformers.__version__.startswith(release):
        pytest.skip(f"transformers {release} cannot build it from its defaults")
    row = covered(model_type)
    record_property("coverage", vars(row))
    recorded = vars(recorded_coverage()[model_type])
    if transformers.__version__ != recorded_version():  # what a bare host can do differs between releases
        recorded = recorded | {"note": row.note}
    assert vars(row) == recorded, "record it again: python -m tests.zoo.record"


def covered(model_type: str) -> Coverage:
    """Return the row of one architecture, from what holds on its tiny host."""
    name, host = ARCHITECTURES[model_type], tiny_host(model_type)
    try:
        backbone = describe(host)
    except VPPError as refusal:
        reason = str(refusal).partition(": ")[2].partition(";")[0].rstrip(".")
        return Coverage(model_type, name, local_prompt="no", global_prompt="no", note=reason)
    inputs = inputs_of(model_type, host)
    report = check_adapter(host, inputs=inputs, token_id=PLACEHOLDER)
    check_without_hooks(host, inputs)
    notes = [NO_GLOBAL[model_type]] if model_type in NO_GLOBAL else []
    fails = [what.removeprefix("generate, ") for what, why in report.skipped.items() if "host itself fails" in why]
    if fails:
        notes.append(f"the host itself fails at {' and '.join(fails)}")
    return Coverage(
        model_type,
        name,
        adapter=backbone.adapter,
        layout=layout_name(backbone.pixel_layout) if backbone.vision_encoders else "",
        box_format=backbone.box_format,
        local_prompt="exact",
        global_prompt="yes" if backbone.vision_encoders else "no",
        note="; ".join(notes),
    )


@torch.no_grad()
def check_without_hooks(host: Any, inputs: dict[str, Any]) -> None:
    """Compare the local prompt with an unhooked copy of the host, in whose weights the features stand as embeddings.

    Embeddings that scale, norm or split what they look up are left out: their output cannot be written as weights.
    """
    if type(host.get_input_embeddings()) is not nn.Embedding:
        return
    with toy_generator() as toy:
        local = LocalVPPConfig(num_queries=QUERIES, generator=toy, image_size=64, projector_size=16)
        attached = attach_vpp(copy.deepcopy(host), VPPConfig(global_vpp=None, local_vpp=local))
    attached.vpp.bind_token(PLACEHOLDER)
    attached.vpp.trained = True
    placeholders = inputs["input_ids"] == PLACEHOLDER
    spare = spare_ids(host, [inputs["input_ids"]], int(placeholders.sum()))
    plain = copy.deepcopy(host)
    for model in (attached, plain):
        give_row(model, PLACEHOLDER, spare)
    plain.get_input_embeddings().weight[spare] = attached.vpp(inputs["vpp_pixel_values"]).features
    theirs = {name: value for name, value in inputs.items() if not name.startswith("vpp_")}
    theirs["input_ids"] = inputs["input_ids"].masked_scatter(placeholders, spare)
    torch.manual_seed(0)
    expected = plain(**theirs).logits
    torch.manual_seed(0)
    ours = attached(**inputs).logits
    answers = torch.ones(expected.shape[-1], dtype=torch.bool)
    answers[spare[spare < len(answers)]] = False  # a head tied to the embedding has changed there
    assert torch.equal(ours[..., answers], expected[..., answers]), "logits differ from those of the edited host"


def layout_name(layout: PixelLayout) -> str:
    """Return a layout's name in `vpp_plugins.plugins.layouts`."""
    name: str = layout.__name__ if callable(layout) and isinstance(layout, type(layout_name)) else type(layout).__name__
    return name
