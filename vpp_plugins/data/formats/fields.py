"""Fields of rows that others wrote: of the right type, or not there."""

from typing import Any

from vpp_plugins.data.sample import Numbers


def text_of(value: Any) -> str:
    """Return a string, or a whole number as one; "" for all else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def names_of(message: Any) -> tuple[str, str]:
    """Return (who, what) of a message of a dialogue, in LLaVA's names or OpenAI's; "" for what is missing."""
    if not isinstance(message, dict):
        return "", ""
    who, said = message.get("from", message.get("role")), message.get("value", message.get("content"))
    return (who, said) if isinstance(who, str) and isinstance(said, str) else ("", "")


def numbers_of(value: Any) -> Numbers | None:
    """Return a list of numbers as floats, of any length, or None. What does not fit a float is infinite."""
    if not isinstance(value, list | tuple):
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return None
    return tuple(_float(number) for number in value)


def positive_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Return (width, height) where both are whole numbers of at least 1 and a million at most, else None."""
    whole = [side for side in (width, height) if isinstance(side, int | float) and not isinstance(side, bool)]
    if len(whole) == 2 and all(1 <= side <= 1e6 and side == int(side) for side in whole):
        return int(width), int(height)
    return None


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")
