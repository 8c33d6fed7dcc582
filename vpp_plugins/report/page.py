"""The one page writer: a template of `templates/` with plain values in it, which are escaped."""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vpp_plugins.boxes import Box
from vpp_plugins.errors import few
from vpp_plugins.files import write_whole
from vpp_plugins.images import draw_boxes

TRUTH = "#2e9e4f"
"""Colour of true boxes on images, `truth` in the style sheet."""
COLOURS = ("#4363d8", "#f58231", "#2e9e4f", "#911eb4", "#e6194b", "#469990", "#9a6324", "#808000", "#000075", "#808080")
"""Colours of boxes on images; lines and words have them as `c0` to `c9` of the style sheet."""
_WIDTH, _HEIGHT, _MARGIN = 640, 280, 52
Points = Sequence[Sequence[float]]


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Write the page that a template makes of the values, whole or not at all; `title` is always among them."""
    page = _environment().get_template(f"{template}.html").render(values)
    write_whole(Path(path), page.encode(errors="replace").decode())  # half a character cannot be written
    return Path(path)


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("vpp_plugins.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def image_url(
    image: Image.Image,
    boxes: Sequence[Box] = (),
    colours: Sequence[str] = COLOURS,
    *,
    size_wh: tuple[int, int] | None = None,
    side: int = 480,
) -> str:
    """Return the image for a page, its longer side at most `side` pixels, with xyxy boxes on it, as a `data:` address.

    The boxes are in pixels of the image, or of one of `size_wh`. Corners are put in order, and an edge that lies
    outside stands at the image's edge, where it can be seen.
    """
    width, height = image.size if size_wh is None else size_wh
    shown = image.convert("RGB")
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    across, down = shown.width / width, shown.height / height
    placed = []
    for box in boxes:
        x1, x2 = sorted(min(max(x * across, 0.0), shown.width - 1.0) for x in box[0::2])
        y1, y2 = sorted(min(max(y * down, 0.0), shown.height - 1.0) for y in box[1::2])
        placed.append((x1, y1, x2, y2))
    buffer = io.BytesIO()
    draw_boxes(shown, placed, colours=colours).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def curve(
    lines: Mapping[str, Points],
    *,
    x: str,
    y: str = "",
    x_ticks: Sequence[float] = (),
    y_ticks: Sequence[float] = (),
) -> dict[str, Any]:
    """Return what the templates' `curve` draws: lines, each a name and its points, with the axes' titles and ticks.

    Ticks default to the first and the last x, and to five from 0, or the lowest y, up. A name may be several, joined
    by commas; an empty one is not shown.
    """
    across = [point[0] for line in lines.values() for point in line]
    up = [point[1] for line in lines.values() for point in line]
    low, high = min(0.0, *up), max(up)
    x_ticks = x_ticks or (min(across), max(across))
    y_ticks = y_ticks or [low + share * (high - low) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    x_of = _place(x_ticks, _MARGIN, _WIDTH - _MARGIN)
    y_of = _place(y_ticks, _HEIGHT - _MARGIN, _MARGIN / 2)
    drawn = [
        {
            "name": name,
            "shown": few(name.split(", "), most=1),
            "colour": f"c{number % len(COLOURS)}",
            "points": " ".join(f"{x_of(point[0]):.1f},{y_of(point[1]):.1f}" for point in line),
        }
        for number, (name, line) in enumerate(lines.items())
    ]
    ticks = {
        "x_ticks": [(round(x_of(tick)), f"{tick:g}") for tick in x_ticks],
        "y_ticks": [(round(y_of(tick)), f"{tick:.3g}") for tick in y_ticks],
    }
    return {"x": x, "y": y, "width": _WIDTH, "height": _HEIGHT, "margin": _MARGIN, "lines": drawn, **ticks}


def _place(ticks: Sequence[float], first: float, last: float) -> Callable[[float], float]:
    """Return the map from values to pixels that lays the first and the last tick where they are to lie."""
    return lambda value: first + (value - ticks[0]) / ((ticks[-1] - ticks[0]) or 1.0) * (last - first)
