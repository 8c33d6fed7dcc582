"""The image of accuracy over the overlap that is asked for, as SVG for a page."""

from collections.abc import Sequence

COLOURS = ("#4363d8", "#f58231")
"""Of the first and the second evaluation, in curves and on images."""

_WIDTH, _HEIGHT, _MARGIN = 560, 320, 50


def draw_curves(lines: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """Draw one or two lines, each a name and its points (IoU asked for, accuracy), both 0 to 1.

    A name stands in its line's colour at the top; an empty one is left out.
    """
    parts = [_tick(tenths / 10) for tenths in range(0, 11, 2)]
    for place, ((name, curve), colour) in enumerate(zip(lines, COLOURS, strict=False)):
        path = " ".join(f"{_across(iou):.1f},{_up(share):.1f}" for iou, share in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5" opacity="0.85"/>')
        at = _WIDTH - _MARGIN - 30 * (len(lines) - 1 - place)
        parts.append(f'<text x="{at}" y="28" text-anchor="end" style="fill:{colour};font-weight:700">{name}</text>')
    parts.append('<text x="12" y="28">Accuracy, %</text>')
    parts.append(f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">IoU asked for</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">{"".join(parts)}</svg>'


def _tick(value: float) -> str:
    x, y = _across(value), _up(value)
    return (
        f'<text x="{x:.0f}" y="{_up(0) + 18:.0f}" text-anchor="middle">{value:.1f}</text>'
        f'<text x="{_MARGIN - 8}" y="{y + 4:.0f}" text-anchor="end">{100 * value:.0f}</text>'
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e3e6ea"/>'
    )


def _across(share: float) -> float:
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)


def _up(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
