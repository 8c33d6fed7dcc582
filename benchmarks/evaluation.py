"""How many questions a second the pocket model answers in batches of 1, 8 and 32, under three loads.

What a batch gains depends on how many questions come about each image, since it encodes an image once.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import chain

from benchmarks.rows import Row, interleaved, median_row, ratios
from vpp_plugins import Grounder
from vpp_plugins.data.scenes import SceneGenerator, Shapes, load_real_photos
from vpp_plugins.evaluate import Row as Question
from vpp_plugins.evaluate import image_id, plan, protocol, rows_of_scenes
from vpp_plugins.pocket import load_pocket

BATCHES = (1, 8, 32)
BAR = 2.0


def loads() -> dict[str, list[Question]]:
    """Return the questions of each load: all about the photographs and three scenes, one each about 16 photographs.

    RefCOCO's testA asks 7.5 questions an image (5,657 about 750), RefCOCOg's test 3.7 (9,602 about 2,600).
    """
    photographs = rows_of_scenes(load_real_photos())
    generator = SceneGenerator(Shapes(), split="test", seed=0, size=320)
    first = {image_id(row.file, row.id): row for row in reversed(photographs)}
    return {
        "photographs": photographs,
        "scenes": rows_of_scenes(generator.scene(number) for number in range(3)),
        "single questions": list(first.values())[:16],
    }


def measure(
    rounds: int = 6, batches: tuple[int, ...] = BATCHES, questions: Mapping[str, Sequence[Question]] | None = None
) -> list[Row]:
    """Return the throughput of each load and batch size, and how much faster the larger batches are."""
    grounder = Grounder(*load_pocket())
    found = [_measure(grounder, name, rows, rounds, batches) for name, rows in (questions or loads()).items()]
    return list(chain.from_iterable(found))


def _measure(
    grounder: Grounder, load: str, rows: Sequence[Question], rounds: int, batches: tuple[int, ...]
) -> list[Row]:
    rules = protocol("default")
    read = {id(row.image): row.load_image() for row in rows}
    images = [read[id(row.image)] for row in rows]
    asked = [rules.ask(row, grounder.codec) for row in rows]
    in_order = list(chain.from_iterable(plan(rows, max(batches))))

    def ask_all(batch_size: int) -> None:
        for batch in plan(rows, batch_size) if batch_size > 1 else [[row] for row in in_order]:
            grounder.ask(
                [images[row] for row in batch],
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
    each = len(rows) / len({image_id(row.file, row.id) for row in rows})
    title = f"pocket model, {load} ({each:.1f} questions an image)"
    throughput = [
        median_row(
            f"{title}: questions a second, batch {size}",
            [len(rows) / seconds for seconds in times[str(size)]],
            unit="/s",
            better="more",
        )
        for size in batches
    ]
    faster = [
        median_row(
            f"{title}: batch {size} against one by one",
            ratios(times[str(batches[0])], times[str(size)]),
            unit="x",
            bar=BAR if each > 1 else None,
            better="more",
        )
        for size in batches[1:]
    ]
    return throughput + faster
