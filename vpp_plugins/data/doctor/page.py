"""The doctor's report as one file that needs no server: findings, evidence, and boxes drawn as they may be meant."""

import html
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from vpp_plugins.boxes import Box
from vpp_plugins.data.doctor.collect import Specimen
from vpp_plugins.data.doctor.doctor import Examination
from vpp_plugins.data.doctor.frame_candidates import Candidate
from vpp_plugins.data.doctor.frame_evidence import ENOUGH, FrameVerdict
from vpp_plugins.data.image_sizes import image_path
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_file

_COLUMNS = 3
_SIDE = 480
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 84rem; padding: 2rem 1.5rem 4rem;
       color: #1d2129; background: #f6f7f9 }
h1, h2 { line-height: 1.2 } p, li { max-width: 60rem }
table { border-collapse: collapse; background: #fff }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e3e6ea }
td:first-child, th:first-child { text-align: left }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem; margin: 0 0 1.5rem }
figure { margin: 0; padding: .5rem; background: #fff; border: 1px solid #e3e6ea } img { width: 100% }
figcaption { font-size: .85rem; color: #4a5160 } .fault { font-weight: 600; color: #c0392b }
"""


def write_doctor_page(examination: Examination, path: str | Path) -> Path:
    """Write the report, with up to twelve samples' boxes drawn under the declared and the likeliest candidates."""
    path = Path(path)
    verdict = examination.verdicts[0] if examination.verdicts else None
    findings = "".join(f"<li><span class=fault>{html.escape(str(found.fault))}</span>{_rest(str(found))}</li>"
                       for found in examination.findings)  # fmt: skip
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vpp doctor: {html.escape(examination.path.name)}</title>
<style>{_STYLE}</style></head><body>
<h1>{html.escape(examination.path.name)}</h1>
<p>{examination.samples:,} samples, {examination.boxes:,} boxes, {examination.images:,} images; read as
{html.escape(examination.format)}.</p>
<h2>Findings</h2><ul>{findings or "<li>Nothing was found.</li>"}</ul>
<ul>{"".join(f"<li>{html.escape(note)}</li>" for note in examination.notes)}</ul>
{"".join(_evidence(each) for each in examination.verdicts)}
<h2>How the boxes would lie</h2>
{"".join(_row(specimen, examination.folder, verdict) for specimen in examination.specimens)}
</body></html>
"""
    with whole_file(path) as file:
        file.write(page.encode(errors="replace"))
    return path


def _rest(finding: str) -> str:
    return html.escape(finding[finding.index(":") :])


def _evidence(verdict: FrameVerdict) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(fit.candidate))}{' (declared)' if fit.candidate == verdict.declared else ''}</td>"
        f"<td>{fit.fits:.1%}</td><td>{fit.inverted:.1%}</td><td>{fit.beyond:.1%}</td>"
        f"<td>{_odds(fit.score - verdict.fits[0].score)}</td></tr>"
        for fit in verdict.shown()
    )
    titles = ("read as", "boxes that fit", "inverted", "beyond the edge", "how likely beside the first")
    return (
        f"<h2>Frame and unit</h2><p>{html.escape(str(verdict))}</p>"
        f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>{rows}</table>"
    )


def _odds(difference: float) -> str:
    """Say in words how a difference of two logarithms of likelihoods weighs, with odds of 20 to 1 as the line."""
    if abs(difference) < ENOUGH:
        return "about as likely"
    if difference > 0:
        return "fits a smaller frame, which the boxes do not fill"
    return f"1 to {math.exp(-difference):,.0f}" if difference > -14 else "less than 1 to a million"


def _row(specimen: Specimen, folder: Path | None, verdict: FrameVerdict | None) -> str:
    from vpp_plugins.images import load_image  # loads torch, which nothing else here needs

    if verdict is None:
        return ""
    size, image = specimen.size_wh, None
    with suppress(VPPError):  # it is named among the findings; its boxes are drawn on grey
        image = load_image(image_path(folder, specimen.image)) if folder is not None else None
    size = image.size if image is not None else size
    if size is None:
        return ""
    shrink = min(1.0, _SIDE / max(size))
    shown = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
    canvas = image.resize(shown) if image is not None else Image.new("RGB", shown, "#d0d4da")
    candidates = [fit.candidate for fit in verdict.shown()][:_COLUMNS]
    figures = "".join(_figure(canvas, size, specimen, candidate) for candidate in candidates)
    return f"<p><b>{html.escape(specimen.id)}</b> {html.escape(specimen.text[:200])}</p><div class=row>{figures}</div>"


def _figure(canvas: Image.Image, size_wh: tuple[int, int], specimen: Specimen, candidate: Candidate) -> str:
    """Draw a specimen's boxes on its image as it is shown, whatever size the image has or is said to have."""
    from vpp_plugins.images import draw_boxes, jpeg_url

    numbers = np.array([box for box in specimen.boxes if len(box) == 4 and np.isfinite(box).all()], dtype=float)
    boxes: list[Box] = []
    if len(numbers):
        pixels = candidate.pixels(numbers, np.tile(np.array(size_wh, dtype=float), (len(numbers), 1)))
        boxes = [_drawable(box, size_wh) for box in pixels.tolist()]
    across, down = canvas.width / size_wh[0], canvas.height / size_wh[1]
    drawn = draw_boxes(canvas, [(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in boxes])
    caption = html.escape(f"as {candidate}: {[list(map(round, box)) for box in boxes]}")
    return f'<figure><img alt="" src="{jpeg_url(drawn)}"><figcaption>{caption}</figcaption></figure>'


def _drawable(box: list[float], size_wh: tuple[int, int]) -> Box:
    """Order the corners, and keep a box that lies outside at the edge, where it can be seen."""
    x1, x2 = (min(max(x, 0.0), size_wh[0] - 1.0) for x in sorted((box[0], box[2])))
    y1, y2 = (min(max(y, 0.0), size_wh[1] - 1.0) for y in sorted((box[1], box[3])))
    return x1, y1, x2, y2
