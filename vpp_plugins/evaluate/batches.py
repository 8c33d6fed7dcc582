"""Which rows are asked together."""

from collections import deque
from collections.abc import Sequence

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.rows import Row, image_id

LOOK_AHEAD = 64
"""How many images with too many questions are passed by to fill a batch: those near one another are alike."""


def plan(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Return the batches, as numbers of rows: all about one image together, beside images and sentences alike.

    A model then encodes each image once, and pads little. A batch may stay a little short, where the questions about
    the next images do not fit.
    """
    if batch_size < 1:
        raise VPPError(f"batch_size must be at least 1, but is {batch_size}.")
    about: dict[str, list[int]] = {}
    for number in sorted(range(len(rows)), key=lambda i: (-len(rows[i].expression), i)):
        about.setdefault(image_id(rows[number].file, rows[number].id), []).append(number)
    groups = sorted(
        about.values(), key=lambda group: (rows[group[0]].size_hw, len(rows[group[0]].expression), group), reverse=True
    )
    pieces = deque(group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size))
    batches = []
    while pieces:
        batch: list[int] = []
        passed: list[list[int]] = []
        while pieces and len(batch) < batch_size and len(passed) < LOOK_AHEAD:
            piece = pieces.popleft()
            if len(batch) + len(piece) <= batch_size:
                batch += piece
            else:
                passed.append(piece)
        pieces.extendleft(reversed(passed))
        batches.append(batch)
    return batches
