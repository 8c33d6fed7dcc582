"""Convert and check a synthetic data set of VPP-SFT's size: seconds of one core, and the most memory held.

`python -m benchmarks.data` writes the set (616,471 dialogues, 300 MB) into a temporary folder, converts it from
LLaVA's boxes to InternVL's, lets `vpp doctor` look at it, and compares both with their bars.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vpp_plugins.boxes import ImageMeta, codec

SAMPLES = 616_471
IMAGES = 100_000
SECONDS, MEGABYTES = 90.0, 500.0
_CHILD = """
import resource, sys, time
from vpp_plugins.data.convert import convert
from vpp_plugins.data.doctor import examine
source, target, sizes = sys.argv[1:]
began = time.process_time()
done = convert(source, target, source_format="vpp-sft", target_format="vpp-sft", target_family="internvl",
               sizes=sizes, progress=False)
converted = time.process_time()
report = examine(source, "vpp-sft", sizes=sizes, progress=False)
checked = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(done.samples, report.samples, converted - began, checked - converted, peak)
"""


def write_synthetic(folder: Path, count: int) -> tuple[Path, Path]:
    """Write the dialogues and the file of the images' sizes; the same for every run."""
    rng = random.Random(0)
    images = 1 + count * IMAGES // SAMPLES
    sizes = [(rng.choice((640, 500, 427, 480, 1024)), rng.choice((480, 375, 640, 333, 768))) for _ in range(images)]
    known = folder / "sizes.jsonl"
    with known.open("w") as file:
        for number, (width, height) in enumerate(sizes):
            file.write(json.dumps({"image": f"vg/VG_100K/{number}.jpg", "width": width, "height": height}) + "\n")
    llava, data = codec("llava"), folder / "vpp_sft.json"
    with data.open("w") as file:
        for number in range(count):
            image = rng.randrange(images)
            width, height = sizes[image]
            least = 0.02 * max(width, height)  # two steps of the unit: a thinner box may be written without an area
            messages = []
            for turn in range(1 + number % 3):
                left, top = rng.uniform(0, 0.8 * width), rng.uniform(0, 0.8 * height)
                box = (left, top, rng.uniform(left + least, width), rng.uniform(top + least, height))
                colour = rng.choice(("white", "red", "left", "small"))
                said = llava.prompt(f"the {colour} cup number {number}-{turn} near the man")
                answer = llava.encode([box], ImageMeta((height, width)))
                messages += [
                    {"from": "human", "value": said if turn else f"<image>\n{said}"},
                    {"from": "gpt", "value": answer},
                ]
            row = {"id": str(number), "image": f"vg/VG_100K/{image}.jpg", "conversations": messages}
            file.write(("[" if number == 0 else ", ") + json.dumps(row))
        file.write("]")
    return data, known


def main() -> int:
    """Print the figures; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    count = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        data, known = write_synthetic(Path(folder), count)
        print(f"{count:,} samples, {data.stat().st_size / 1e6:.0f} MB, written in {time.perf_counter() - began:.0f} s")
        command = [sys.executable, "-c", _CHILD, str(data), str(Path(folder) / "out.json"), str(known)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    converted, checked = int(answer[0]), int(answer[1])
    converting, checking, megabytes = map(float, answer[2:])
    seconds = converting + checking
    print(f"converted {converted:,} in {converting:.1f} s, checked {checked:,} in {checking:.1f} s; {megabytes:.0f} MB")
    passed = seconds <= SECONDS * count / SAMPLES and megabytes <= MEGABYTES and converted == checked == count
    print(f"bar: {SECONDS * count / SAMPLES:.0f} s and {MEGABYTES:.0f} MB: {'pass' if passed else 'fail'}")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
