"""The doctor's report as one file that needs no server: findings, evidence, and boxes drawn as they may be meant."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpp_plugins.boxes import Box
from vpp_plugins.data.doctor.collect import Example
from vpp_plugins.data.doctor.doctor import DoctorReport
from vpp_plugins.data.doctor.frame_evidence import ENOUGH, Candidate, FrameVerdict
from vpp_plugins.data.doctor.statistics import Statistics
from vpp_plugins.data.record import image_path
from vpp_plugins.errors import VPPError

_COLUMNS = 3
_SIDE = 480


def write_doctor_page(report: DoctorReport, path: str | Path) -> Path:
    """Write the report, with up to twelve samples' boxes drawn under the declared and the likeliest candidates."""
    from vpp_plugins.report import write_page  # loads torch, which nothing else here needs

    verdict = report.verdicts[0] if report.verdicts else None
    return write_page(
        path,
        "doctor",
        title=f"vpp doctor: {report.path.name}",
        name=report.path.name,
        summary=f"{report.samples:,} samples, {report.boxes:,} boxes, {report.images:,} images; read as "
        f"{report.format}.",
        findings=[(str(found.fault), str(found)[str(found).index(":") :]) for found in report.findings],
        notes=report.notes,
        changes=[(str(found.fault), f"{found.count:,}", report.cure.change(found)) for found in report.findings],
        statistics=_drawn(report.statistics),
        evidence=[(str(each), _evidence(each)) for each in report.verdicts],
        samples=[
            (example.id, example.text[:200], cards)
            for example in report.examples
            if verdict is not None and (cards := _cards(example, report.folder, verdict))
        ],
    )


def _drawn(statistics: Statistics) -> dict[str, Any] | None:
    """Return the curves, the map and the table of a set, or None without a box or an expression."""
    from vpp_plugins.report import curve, image_url

    if not statistics.sizes.any() or not statistics.words:
        return None
    steps = len(statistics.sizes)
    sizes = [((step + 0.5) / steps, int(count)) for step, count in enumerate(statistics.sizes)]
    most = max(statistics.words) + 1
    step = 1 + most // 16
    longest = -(-most // step) * step
    words = [(number, statistics.words.get(number, 0)) for number in range(longest + 1)]
    ticks = range(0, longest + 1, step)
    shades = 255 - (statistics.places * (215 / statistics.places.max())).astype(np.uint8)
    places = Image.fromarray(shades).resize((240, 240), Image.Resampling.NEAREST)
    return {
        "sizes": curve(
            {"": sizes}, x="root of the share of its image that a box has", y="boxes", x_ticks=(0, 0.25, 0.5, 0.75, 1)
        ),
        "words": curve(
            {"": words}, x="words of an expression (30: or more)", y="expressions", x_ticks=(*ticks, longest)
        ),
        "places": [{"image": image_url(places), "caption": "Where the boxes' middles lie", "lines": []}],
        "nouns": [(noun, f"{images:,}") for noun, images in statistics.nouns],
    }


def _evidence(verdict: FrameVerdict) -> list[list[str]]:
    return [
        [
            f"{fit.candidate}{' (declared)' if fit.candidate == verdict.declared else ''}",
            *(f"{share:.1%}" for share in (fit.fits, fit.inverted, fit.beyond)),
            _odds(fit.score - verdict.fits[0].score),
        ]
        for fit in verdict.shown()
    ]


def _odds(difference: float) -> str:
    """Say in words how a difference of two logarithms of likelihoods weighs, with odds of 20 to 1 as the line."""
    if difference == 0:
        return "the most likely"
    if abs(difference) < ENOUGH:
        return "about even"
    if difference > 0:
        return "fits a smaller frame, which the boxes do not fill"
    return f"1 to {math.exp(-difference):,.0f}" if difference > -14 else "less than 1 to a million"


def _cards(example: Example, folder: Path | None, verdict: FrameVerdict) -> list[dict[str, Any]]:
    """Draw an example's boxes under each candidate; on grey where its image is not at hand, in whatever size it has."""
    from vpp_plugins.images import load_image

    size, image = example.size_wh, None
    with suppress(VPPError):  # it is named among the findings
        image = load_image(image_path(folder, example.image)) if folder is not None else None
    size = image.size if image is not None else size
    if size is None:
        return []
    if image is None:
        shrink = min(1.0, _SIDE / max(size))
        image = Image.new("RGB", (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))), "#d0d4da")
    return [_card(image, size, example, fit.candidate) for fit in verdict.shown()[:_COLUMNS]]


def _card(image: Image.Image, size_wh: tuple[int, int], example: Example, candidate: Candidate) -> dict[str, Any]:
    from vpp_plugins.report import image_url

    numbers = np.array([box for box in example.boxes if len(box) == 4 and np.isfinite(box).all()], dtype=float)
    boxes: list[Box] = []
    if len(numbers):
        pixels = candidate.pixels(numbers, np.tile(np.array(size_wh, dtype=float), (len(numbers), 1)))
        boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in pixels.tolist()]
    caption = f"as {candidate}: {[list(map(round, box)) for box in boxes]}"
    return {"image": image_url(image, boxes, size_wh=size_wh), "caption": caption, "lines": []}
