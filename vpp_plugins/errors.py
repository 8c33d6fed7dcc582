"""The one error type that this library raises for a mistake its user can mend."""

import difflib
from collections.abc import Iterable, Sequence


class VPPError(ValueError):
    """Says what was expected, what came, and what to do."""


class UntrainedVPPWarning(UserWarning):
    """The attached prompts hold no trained weights yet, so answers are not better for them."""


class HalfPrecisionVPPWarning(UserWarning):
    """The attached prompts are trained in bfloat16 or float16, in which most of their steps are rounded away."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the option most like `name`, or "" when none is close."""
    match = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names for a sentence, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
