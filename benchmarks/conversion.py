"""What converting a VPP-LLaVA checkpoint takes, as rows; `benchmarks.convert` measures it."""

from benchmarks import convert
from benchmarks.rows import Row


def measure() -> list[Row]:
    """Return memory and time at an eighth of 7B's width."""
    done = convert.measure()
    return [
        Row(name="converting VPP-LLaVA, memory in largest shards", value=done.extra_shards, note=str(done)),
        Row(name="converting VPP-LLaVA", value=done.seconds, unit="s"),
    ]
