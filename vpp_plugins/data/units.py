"""What is stated of a file's boxes by hand: `--boxes pixels`, `resized`, `0-1`, `0-1000` and more."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

from vpp_plugins.boxes import BoxCodec, Rounded
from vpp_plugins.data.record import BoxUnit, LongSide, Order, PixelBudget, Record
from vpp_plugins.errors import VPPError

_ORDERS: tuple[Order, ...] = get_args(Order)
_UP_TO = re.compile(r"0-(\d{1,6}(?:\.\d{1,6})?)")
_LONG = re.compile(r"long-(\d{1,6})")


def stated_unit(stated: str, said: BoxUnit | BoxCodec, pixels: PixelBudget | None = None) -> BoxUnit:
    """Return the unit that words separated by commas state, such as "0-1000" or "0-1,padded,xywh".

    pixels are those of the image itself, resized those of the image as Qwen's processor resizes it (with the budget
    `pixels`, or else its own), long-640 those of the image with a long side of 640; 0-N are shares of the image, or
    with `padded` of its padded square. The order is that of `said`, unless it is stated. Raises VPPError for others.
    """
    words = [word.strip() for word in stated.split(",")]
    orders = [order for order in _ORDERS if order in words]
    units = [word for word in words if word not in (*_ORDERS, "padded")]
    unit = _unit(units[0], pixels) if len(units) == 1 and len(orders) <= 1 else None
    padded = "padded" in words
    if unit is None or (padded and unit.resized is not None):
        raise VPPError(
            f"how boxes are written is stated as pixels, resized, 0-1, 0-1000 or the like, with padded for shares of "
            f"the padded square and an order ({', '.join(_ORDERS)}) where they differ, as 0-1,padded; not '{stated}'."
        )
    return replace(unit, order=orders[0] if orders else order_of(said), frame="square" if padded else "image")


def stated_records(records: Iterable[Record], stated: str, pixels: PixelBudget | None) -> Iterator[Record]:
    """Return records whose boxes are in the unit that is stated. Raises VPPError at once for no such words."""
    stated_unit(stated, BoxUnit(), pixels)
    return _restated(records, stated, pixels)


def order_of(unit: BoxUnit | BoxCodec) -> Order:
    """Return the order of a unit's numbers; raises VPPError where boxes are not four coordinates."""
    if isinstance(unit, BoxUnit):
        return unit.order
    if unit.scale.per_box != 4:
        raise VPPError(f"the family '{unit.family}' writes cells, not coordinates: leave out how boxes are written.")
    return "yxyx" if isinstance(unit.scale, Rounded) and unit.scale.y_first else "xyxy"


def words_of(unit: BoxUnit) -> str:
    """Return the words that state a unit: `stated_unit` brings them back, with the same budget."""
    if unit.resized is not None:
        words = f"long-{unit.resized.side}" if isinstance(unit.resized, LongSide) else "resized"
    else:
        words = "pixels" if unit.full is None else f"0-{unit.full:g}"
    padded = ",padded" if unit.frame == "square" else ""
    return f"{words}{padded}{'' if unit.order == 'xyxy' else f',{unit.order}'}"


def _restated(records: Iterable[Record], stated: str, pixels: PixelBudget | None) -> Iterator[Record]:
    units: dict[int, tuple[BoxUnit | BoxCodec, BoxUnit]] = {}  # with the file's own, or another could get its id
    for record in records:
        key = id(record.unit)  # a codec is slow to hash
        if key not in units:
            units[key] = record.unit, stated_unit(stated, record.unit, pixels)
        yield replace(record, unit=units[key][1])


def _unit(word: str, pixels: PixelBudget | None) -> BoxUnit | None:
    if word == "pixels":
        return BoxUnit()
    if word == "resized":
        return BoxUnit(resized=pixels or PixelBudget())
    if found := _LONG.fullmatch(word):
        return BoxUnit(resized=LongSide(int(found[1]))) if int(found[1]) else None
    found = _UP_TO.fullmatch(word)
    full = float(found[1]) if found else 0.0
    return BoxUnit(full=full) if full > 0 and math.isfinite(full) else None
