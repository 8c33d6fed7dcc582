"""Try every promise of VPP on one host, and say which hold."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vpp_plugins.config import VPPConfig
from vpp_plugins.plugins import Backbone
from vpp_plugins.testing import promises
from vpp_plugins.testing.fixture import Fixture, build, toy_generator
from vpp_plugins.testing.promises import Skipped

PROMISES: Mapping[str, Callable[[Fixture], None]] = {
    "description": promises.description,
    "axes on the pixels": promises.axes_on_the_pixels,
    "processor": promises.processor,
    "forward": promises.forward,
    "forward with labels": promises.forward_with_labels,
    **{f"generate, {decoder}": promises.generates(decoder) for decoder in promises.DECODERS},
    "gradients": promises.gradients,
    "disabled": promises.disabled,
    "detached": promises.detached,
    "copies": promises.copies,
    "saved and loaded": promises.saved_and_loaded,
}
"""What `check_adapter` tries, in order."""


@dataclass
class Report:
    """What became of each promise, by its name in `PROMISES`."""

    host: str
    """The host's class."""
    adapter: str
    held: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """What the bare host itself cannot do, or was not asked for, and why."""
    broken: dict[str, str] = field(default_factory=dict)
    """One sentence each."""

    def __str__(self) -> str:
        lines = [f"{self.host} with the adapter '{self.adapter}': {len(self.held)} promises hold"]
        lines += [f"  skipped: {name} ({why})" for name, why in self.skipped.items()]
        lines += [f"  BROKEN: {name}: {why}" for name, why in self.broken.items()]
        return "\n".join(lines)


class BrokenPromises(AssertionError):  # noqa: N818 - its name is what it says
    """An adapter breaks promises; `report` says which."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def check_adapter(
    model: Any,
    processor: Any = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    token_id: int | None = None,
    adapter: str | Backbone | None = None,
    config: VPPConfig | None = None,
    generate: bool = True,
) -> Report:
    """Check that VPP does on `model` what it promises, and return what held.

    `model` is a bare host, as small as can be; it stays as it is. Give either the host's `processor`, with which texts
    of two images and of one are made, or ready `inputs` as VPPProcessor returns them: `input_ids` in which every
    image has its placeholders `token_id`, the images in reading order as `vpp_pixel_values` (`sample_pixels`), and
    whatever the host wants. `adapter` is as for `attach_vpp`. `config` replaces the adapter's own one at toy size;
    without `generate` only forwards are compared.

    Outputs are compared bit for bit with those of an unpatched copy of the host that gets the same features by plain
    means. What the bare host itself cannot do is skipped, and listed.
    Raises VPPError where the model cannot be attached, and BrokenPromises, an AssertionError with one sentence for each
    broken promise.
    """
    with toy_generator():
        fixture = build(model, processor, inputs, token_id, adapter, config)
        report = Report(type(model).__name__, fixture.backbone.adapter)
        for name, promise in PROMISES.items():
            if name.startswith("generate") and not generate:
                report.skipped[name] = "not asked for"
                continue
            try:
                promise(fixture)
            except Skipped as reason:
                report.skipped[name] = str(reason)
            except AssertionError as error:
                report.broken[name] = str(error)
            except Exception as error:  # noqa: BLE001 - an attached host may fail in any way
                where = traceback.extract_tb(error.__traceback__)[-1]
                report.broken[name] = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
            else:
                report.held.append(name)
    if report.broken:
        raise BrokenPromises(report)
    return report
