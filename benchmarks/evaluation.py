"""How many questions a second the pocket model answers, in batches of 1, 8 and 32, about the committed photographs."""

import time

from benchmarks.rows import Row, interleaved, median_row, ratios
from vpp_plugins import Grounder
from vpp_plugins.data.photos import load_real_photos
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.rows import rows_of_scenes
from vpp_plugins.evaluate.run import plan
from vpp_plugins.pocket import load_pocket

BATCHES = (1, 8, 32)
QUESTIONS = 32


def measure(rounds: int = 8, batches: tuple[int, ...] = BATCHES, questions: int = QUESTIONS) -> list[Row]:
    """Return the throughput of each batch size, and how much faster the larger ones are."""
    grounder = Grounder(*load_pocket())
    rows, rules = rows_of_scenes(load_real_photos())[:questions], protocol("default")
    pictures = [row.picture() for row in rows]
    asked = [rules.ask(row, grounder.codec) for row in rows]

    def ask_all(batch_size: int) -> None:
        for batch in plan(rows, batch_size):
            grounder.ask(
                [pictures[row] for row in batch],
                [asked[row] for row in batch],
                max_new_tokens=rules.max_new_tokens,
                num_beams=rules.num_beams,
            )

    times = interleaved(
        {str(size): lambda size=size: ask_all(size) for size in batches},  # type: ignore[misc]
        rounds=rounds,
        warm_up=1,
        clock=time.process_time,
    )
    throughput = [
        median_row(
            f"pocket model, questions a second, batch {size}",
            [questions / seconds for seconds in times[str(size)]],
            unit="/s",
            better="more",
        )
        for size in batches
    ]
    faster = [
        median_row(
            f"pocket model, batch {size} against one by one",
            ratios(times[str(batches[0])], times[str(size)]),
            unit="x",
            bar=2.0,
            better="more",
        )
        for size in batches[1:]
    ]
    return throughput + faster
