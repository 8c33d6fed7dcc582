"""The learning rate's course, shared by all stages."""

import math


def rate(step: int, steps: int, warmup: int) -> float:
    """Warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
