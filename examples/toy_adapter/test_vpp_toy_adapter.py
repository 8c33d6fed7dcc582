"""Visual Position Prompts keep their promises on ToyMLLM."""

from toy_mllm import tiny_toy_mllm

from vpp_plugins import is_attached
from vpp_plugins.testing import check_adapter


def test_the_promises_hold() -> None:
    model, processor = tiny_toy_mllm()

    report = check_adapter(model, processor)

    assert report.adapter == "toy_mllm"
    assert not report.skipped
    assert not is_attached(model)  # what was checked is a copy
