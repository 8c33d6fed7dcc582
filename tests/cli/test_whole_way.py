"""From somebody's data to weights that others load, by commands alone: every output where a user would look."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.cli.conftest import Run, is_one_sentence
from vpp_plugins.train.tiny_hosts import tiny_host

NOUNS, COLOURS = ["cup", "ball", "box", "hat"], ["red", "green", "blue", "orange"]
ASKED = "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: "
LOCAL = 'local_vpp.generator = "nanodet"\nlocal_vpp.num_queries = 16\nlocal_vpp.image_size = 64\nlora_scope = "llm"\n'
RECIPE = """
data = "parts/train.json"
output_dir = "out/vpp"
images = "images"
eval_data = "parts/val.json"
eval_images = "images"
eval_steps = 2
max_steps = 2
save_steps = 2
logging_steps = 1
per_device_train_batch_size = 2
learning_rate = 1e-3
use_cpu = true
report_to = "none"
"""


def write_images() -> list[tuple[int, int, list[int], str]]:
    """Forty images of one coloured thing each; returns width, height, box and what the box shows."""
    drawn, numbers = [], np.random.default_rng(0)
    Path("images").mkdir()
    for number in range(40):
        width, height = (96, 64) if number % 2 else (64, 96)
        left, top, wide, high = (int(numbers.integers(8, width // 2 - 4)) for _ in range(4))
        top, high = min(top, 28), min(high, 28)
        image = Image.fromarray(numbers.integers(120, 200, (height, width, 3), dtype=np.uint8))
        box = [left, top, left + wide, top + high]
        ImageDraw.Draw(image).rectangle(tuple(box), fill=COLOURS[number // 4 % 4])
        image.save(f"images/{number:03}.jpg")
        drawn.append((width, height, box, f"the {COLOURS[number // 4 % 4]} {NOUNS[number % 4]}"))
    return drawn


def write_coco() -> None:
    """Two of the forty are faulty: a box wholly beside its image, and an image that is not there."""
    drawn = write_images()
    images = [
        {"id": n, "file_name": f"{n:03}.jpg", "width": width, "height": height}
        for n, (width, height, *_) in enumerate(drawn)
    ]
    boxes = [[left, top, right - left, bottom - top] for *_, (left, top, right, bottom), _ in drawn]
    boxes[7] = [200, 200, 20, 20]
    images[3]["file_name"] = "lost.jpg"
    notes = [{"id": n, "image_id": n, "category_id": n % 4 + 1, "bbox": box} for n, box in enumerate(boxes)]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(NOUNS)]
    Path("set.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))


def write_llava() -> None:
    """Two of the forty are faulty: an inverted box, and an image that is not there."""
    rows: list[dict[str, Any]] = []
    for n, (width, height, box, name) in enumerate(write_images()):
        side = max(width, height)
        beside = [(side - width) / 2, (side - height) / 2] * 2
        shares = ", ".join(f"{(value + more) / side:.2f}" for value, more in zip(box, beside, strict=True))
        said = [{"from": "human", "value": f"{ASKED}{name}."}, {"from": "gpt", "value": f"[{shares}]"}]
        rows.append({"id": str(n), "image": f"{n:03}.jpg", "conversations": said})
    rows[3]["image"] = "lost.jpg"
    rows[7]["conversations"][1]["value"] = "[0.60, 0.60, 0.20, 0.20]"
    Path("set.json").write_text(json.dumps(rows))


DATA = {
    "vpp-sft": (write_llava, "inverted boxes: 1 of 40"),
    "coco": (write_coco, "boxes out of range: 1 of 40"),
}


def write_recipe(model: str, data_format: str) -> None:
    if model == "host":
        host, processor = tiny_host("qwen2_5_vl")
        host.save_pretrained("host")
        processor.save_pretrained("host")
    own = f'model = "{model}"\n'
    if model == "host":
        own = f'family = "qwen2_5_vl"\nmodel = "{Path("host").absolute()}"\n{LOCAL}'
    kinds = f'data_format = "{data_format}"\neval_format = "{data_format}"\n'
    Path("recipe.toml").write_text(own + kinds + RECIPE)


def ran(vpp: Run, *words: str | Path, code: int = 0) -> str:
    """Run a command that ends as expected; return what it printed."""
    ended, out, err = vpp(*words)
    assert ended == code, (words, out, err)
    return out


def prepare(vpp: Run, kind: str) -> None:
    """Look at the data, fix them, look again, and split them."""
    write, fault = DATA[kind]
    write()
    read = ("--format", kind, "--images", "images")
    told = ran(vpp, "doctor", "set.json", *read, "--out", "doctor.html", code=1)
    assert f"- {fault}" in told
    assert "- unreadable images: 1 of 40" in told
    assert f"Fix: vpp doctor set.json --format {kind} --images images --fix set-fixed.json" in told
    assert "lost.jpg" in Path("doctor.html").read_text()
    told = ran(vpp, "doctor", "set.json", *read, "--fix", "set-fixed.json")
    assert "38 samples, 38 turns, 38 boxes in set-fixed.json" in told
    assert "Nothing was found." in ran(vpp, "doctor", "set-fixed.json", *read)
    told = ran(vpp, "data", "split", "set-fixed.json", "parts", "--from", *read[1:], "--val", "0.2")
    assert "parts/train.json: 30 samples of 30 images\nparts/val.json: 8 samples of 8 images" in told
    assert "No image is on two sides: the bytes of all were compared." in told


@pytest.mark.parametrize("kind", list(DATA))
def test_faults_are_found_and_fixed_and_the_rest_is_split(vpp: Run, kind: str) -> None:
    prepare(vpp, kind)
    write_recipe("host", kind)

    assert "⟦" in ran(vpp, "data", "preview", "recipe.toml", "--index", "2")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", list(DATA))
@pytest.mark.parametrize("model", ["host", "pocket"])
def test_from_my_data_to_a_shared_adapter(vpp: Run, model: str, kind: str, tmp_path: Path) -> None:
    prepare(vpp, kind)
    write_recipe(model, kind)
    read = ("--images", "images")

    assert "⟦" in ran(vpp, "data", "preview", "recipe.toml")
    told = ran(vpp, "train", "recipe.toml", "--dry-run")
    assert "from 30 samples, 0 of those tried left out; an evaluation ran." in told
    assert f"Weights: {'pocket' if model == 'pocket' else Path('host').absolute()}." in told
    assert "numbers that learn, and the activations of 2 samples." in told
    assert "Time: less than a minute " in told
    assert not Path("out/vpp/final").exists()
    for arm, change in (("vpp", []), ("none", ["--set", "vpp=none"])):
        told = ran(vpp, "train", "recipe.toml", "--set", f"output_dir=out/{arm}", *change)
        assert "step 2/2  loss " in told
        assert f"2 steps; the weights: out/{arm}/final; the report: out/{arm}/report.html" in told
        asked = ("--data", "parts/val.json", "--format", kind, *read, "--out", f"ev/{arm}")
        told = ran(vpp, "eval", "run", "--model", f"out/{arm}/final", *asked)
        assert "Acc@0.5" in told
        assert "8 answers: " in told
        assert json.loads(Path(f"ev/{arm}/results.json").read_text())["figures"]["rows"] == 8
    told = ran(vpp, "eval", "run", "--disable-vpp", "--model", "out/vpp/final", *asked[:-1], "ev/off")
    assert json.loads(Path("ev/off/results.json").read_text())["prompts"]["disabled"] is True
    told = ran(vpp, "compare", "ev/none", "ev/vpp", "--out", "compare.html", "--card", "out/vpp/final")
    assert "B minus A: " in told
    assert "- A has no prompts: it is a control, or a bare host." in told
    assert "The page: compare.html\nThe card: out/vpp/final/README.md" in told
    check_shared(Path("out/vpp/final"), str(tmp_path))
    check_elsewhere(Path("out/vpp/final"), model)


def check_shared(final: Path, here: str) -> None:
    """What is shared shows both arms, and names no folder of this machine."""
    card = (final / "README.md").read_text()
    assert card.count("| val.json | 8 |") == 2
    assert "The second minus the first, on the same rows: " in card
    assert "2 steps over 4 samples." in card
    assert not [path for path in final.iterdir() if here.encode() in path.read_bytes()]


def check_elsewhere(final: Path, model: str) -> None:
    """Moved, as a stranger gets it, it grounds in a process of its own."""
    shared = final.rename("shared")
    own = ["--model", "host", "--vpp", "shared"] if model == "host" else ["--model", "shared"]
    Path("some").mkdir()
    for n in range(3):
        Path(f"images/{n:03}.jpg").rename(f"some/{n:03}.jpg")
    words = ["ground", *own, "--image", "some", "--expr", "the red cup", "--out", "boxes.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "vpp_plugins.cli", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "3 lines: boxes.jsonl\n"), done.stderr
    lines = [json.loads(line) for line in Path("boxes.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"some/{n:03}.jpg" for n in range(3)]
    assert all({"boxes", "status", "text"} <= line.keys() for line in lines)
    assert shared.is_dir()


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and data that are sound, and others of which nothing can be made."""
    folder = tmp_path_factory.mktemp("bad")
    with contextlib.chdir(folder):
        write_coco()
        write_recipe("host", "coco")
        whole = json.loads(Path("set.json").read_text())
        Path("one.json").write_text(json.dumps({**whole, "images": whole["images"][:1]}))
        Path("words.json").write_text(json.dumps([{"id": "a", "conversations": TALK}]))
        Path("nothing.jsonl").write_text('{"image": 3, "sent": "a", "bbox": [1, 2]}\n')
    return folder


TALK = [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A cup."}]
TRAIN = ("train", "recipe.toml", "--set", "data=set.json", "--set", "eval_data=none")
NOT_THERE = "'owner/nothing' is not here and could not be fetched from the hub"
LOOK = "What is wrong: vpp doctor nothing.jsonl --format eval-jsonl"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ground", "--image", "gone.jpg", "--expr", "cup"), "'gone.jpg' does not exist: give the path of an image."),
        (
            (*TRAIN, "--set", "data=words.json", "--set", "data_format=vpp-sft"),
            "`vpp data head words.json --from vpp-sft` shows what is read",
        ),
        ((*TRAIN, "--set", "images=gone"), "there is no folder of images 'gone': --set images=FOLDER"),
        (("ground", "--model", "owner/nothing", "--image", "images/000.jpg", "--expr", "cup"), NOT_THERE),
        (("eval", "run", "--model", "owner/nothing", "--limit", "1"), NOT_THERE),
        (("data", "preview", "recipe.toml", "--set", "data=set.json", "--set", "model=owner/nothing"), NOT_THERE),
        ((*TRAIN, "--set", "model=owner/nothing"), "or try the recipe without: `vpp train RECIPE --dry-run`"),
        (("data", "split", "one.json", "parts", "--from", "coco", "--images", "images"), "(--val 0 leaves that out"),
        (("data", "head", "nothing.jsonl", "--from", "eval-jsonl"), LOOK),
        (("eval", "run", "--data", "nothing.jsonl", "--format", "eval-jsonl"), LOOK),
        ((*TRAIN, "--set", "data=nothing.jsonl", "--set", "data_format=eval-jsonl"), LOOK),
        ((*TRAIN, "--set", "push_to_hub=true"), "at the end by hf upload OWNER/NAME "),
        ((*TRAIN, "--set", "train_sampling_strategy=group_by_length"), 'take "random" or "sequential"'),
        ((*TRAIN, "--set", "family=llava"), "take another recipe, or --set family=qwen2_5_vl"),
    ],
)
def test_bad_input_ends_in_one_sentence_with_what_helps(
    vpp: Run, bad: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(bad)
    code, _, err = vpp(*words, *(("--set", f"output_dir={tmp_path}") if words[0] == "train" else ()))

    assert code == 1
    assert is_one_sentence(err)
    assert said in err
