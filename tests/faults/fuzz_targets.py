"""What is fuzzed: whatever reads bytes that others wrote. Each takes some, and says in a few words what came of them.

A VPPError is an answer; any other exception is a finding, as is a result that cannot be right.
"""

import io
import json
import math
import pickle
import shutil
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from tests.data.formats import layouts, test_benchmarks
from vpp_plugins.attach import load_vpp, save_vpp
from vpp_plugins.boxes import BOX_CODECS, ImageMeta, answer_of, codec
from vpp_plugins.config import VPPConfig
from vpp_plugins.data.formats import FORMATS, Reading, read_samples
from vpp_plugins.data.formats.refer import load_plain_pickle
from vpp_plugins.data.json_stream import stream_array, stream_lines, stream_records
from vpp_plugins.data.record import ImageSizes, upright_size
from vpp_plugins.data.sample import Sample
from vpp_plugins.data.scenes import Shapes, load_scenes, write_scenes
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import rescore, rows_of_scenes
from vpp_plugins.evaluate.answers import Ledger
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.readers import READERS
from vpp_plugins.evaluate.rows import rows_of_folder
from vpp_plugins.evaluate.run import evaluate
from vpp_plugins.files import check_manifest, read_weights, unique_keys, write_manifest
from vpp_plugins.images import load_image
from vpp_plugins.train.checkpoints import check_files
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.rewards import rewards

Target: TypeAlias = Callable[[bytes], object]
Made: TypeAlias = tuple[Target, list[bytes]]
"""A target, and bytes to begin with."""
META = ImageMeta((480, 640), (476, 644))


def right(sample: Sample) -> None:
    for numbers in (numbers for turn in sample.turns for numbers in turn.boxes):
        x1, y1, x2, y2 = numbers
        assert all(map(math.isfinite, numbers)), numbers
        assert -0.5 <= x1 < x2 <= sample.width + 0.5, (numbers, sample.width)
        assert -0.5 <= y1 < y2 <= sample.height + 0.5, (numbers, sample.height)


def as_json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def as_lines(*values: Any) -> bytes:
    return b"\n".join(as_json(*values))


NEUTRAL = as_lines(
    {"image": "a.jpg", "width": 640, "height": 480, "turns": [{"locate": "cup", "boxes": [[1, 2, 30, 40]]}]},
    {"id": "7", "image": "a.jpg", "turns": [{"describe": [[1.5, 2, 30, 40]], "text": "a cup"}]},
    {"turns": [{"ask": "What?", "answer": "That.", "boxes": []}]},
)
SEEDS: Mapping[str, list[bytes]] = {
    "neutral": [NEUTRAL],
    "vpp-sft": as_json(layouts.LLAVA_665K),
    "llava-665k": as_json(layouts.LLAVA_665K),
    "cb-grd": as_json(layouts.CB_GRD),
    "cb-grd-like-reference": as_json(layouts.CB_GRD),
    "cb-ref": as_json(layouts.CB_REF),
    "genixer": as_json(layouts.GENIXER),
    "eval-jsonl": as_json(layouts.EVALUATION),
    "gseval": as_json(layouts.GSEVAL),
    "ref-l4-reviewed": as_json(test_benchmarks.REVIEWED),
    "ms-swift": [as_lines(*layouts.SWIFT)],
    "coco": as_json(layouts.COCO),
    "odvg": [as_lines(*layouts.ODVG)],
}


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "grey").save(file, "PNG")
    return file.getvalue()


def read_all(path: Path, name: str, images: Path) -> object:
    reading = Reading()
    count = 0
    for sample in read_samples(path, name, images=images, reading=reading):
        right(sample)
        count += 1
    return min(count, 3), tuple(sorted(issue.name for issue in reading.tally.counts))


def data_format(name: str, folder: Path) -> Made:
    (folder / "a.jpg").write_bytes(png())
    path = folder / "data"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_all(path, name, folder)

    return read, SEEDS[name]


def one_of(paths: list[Path], read: Callable[[], object]) -> Made:
    """Bytes whose first says which of several files they are; the others stay as they were."""
    whole = {path: path.read_bytes() for path in paths}

    def replace(data: bytes) -> object:
        chosen = paths[(data or b"0")[0] % len(paths)]  # of two or three files, "0" is the first
        chosen.write_bytes(data[1:])
        try:
            return read()
        finally:
            for path, content in whole.items():
                path.write_bytes(content)

    return replace, [str(number).encode() + whole[path] for number, path in enumerate(paths)]


def refer(folder: Path) -> Made:
    made = layouts.refer_folder(folder / "refcoco")
    return one_of([made / "refs(unc).p", made / "instances.json"], lambda: read_all(made, "refer", folder))


def grefcoco(folder: Path) -> Made:
    made = test_benchmarks.grefcoco_folder(folder / "grefcoco")
    return one_of([made / "grefs(unc).json", made / "instances.json"], lambda: read_all(made, "grefcoco", folder))


def scenes(folder: Path) -> Made:
    made = write_scenes(folder / "scenes", 2, 0, "val", source=Shapes(), size=96, progress=False)

    def read() -> object:
        loaded = load_scenes(made)
        rows = rows_of_scenes(loaded)
        assert [row.id for row in rows] == [row.id for row in rows_of_folder(loaded)]
        return len(rows), read_all(made, "scenes", made)

    return one_of([made / "manifest.json", made / "scenes.jsonl"], read)


def webdataset(folder: Path) -> Made:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, line in enumerate(NEUTRAL.splitlines()):
            for suffix, data in (("json", line), ("png", png())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path = folder / "a.tar"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_all(path, "webdataset", folder)

    return read, [file.getvalue()]


ROWS = {
    "ref-l4": test_benchmarks.REF_L4,
    "ref-adv": test_benchmarks.REF_ADV,
    "groundingme": test_benchmarks.GROUNDINGME,
}


def table(name: str, suffix: str, folder: Path) -> Made:
    path = folder / f"a.{suffix}"
    if name == "lmms-parquet":
        layouts.lmms_parquet(path)
    elif name in ROWS:
        test_benchmarks.parquet(path, ROWS[name])
    else:
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        rows = Dataset.from_list(
            [{"turns": json.dumps([{"ask": "?", "answer": "!"}]), "id": str(number)} for number in range(3)]
        )
        if suffix == "parquet":
            rows.to_parquet(path)
        else:
            rows.save_to_disk(folder / "saved")
            shutil.copy(next((folder / "saved").glob("*.arrow")), path)
    whole = path.read_bytes()

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_all(path, name, folder)

    return read, [whole]


def answers(name: str, folder: Path) -> Made:
    """One family's codec: boxes in the image with a status each, the same again from the answer alone."""
    row = codec(name)

    def read(data: bytes) -> object:
        text = text_of(data)
        decoded = row.decode(text, META)
        for x1, y1, x2, y2 in decoded.boxes_xyxy_px:
            assert 0 <= x1 <= x2 <= 640, (x1, x2)
            assert 0 <= y1 <= y2 <= 480, (y1, y2)
        assert len(decoded.labels) == len(decoded.boxes_xyxy_px)
        assert len(decoded.statuses) == max(1, len(decoded.boxes_xyxy_px))
        assert row.decode(answer_of(text), META) == decoded
        return min(len(decoded.labels), 3), tuple(sorted({status.name for status in decoded.statuses}))

    return read, said_by(name)


def text_of(data: bytes) -> str:
    """Half characters included, which models do say."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def said_by(name: str) -> list[bytes]:
    row = codec(name)
    boxes = [(10.0, 20.0, 300.0, 400.0), (1.0, 2.0, 30.0, 40.0)]
    written = row.encode(boxes, META, ["cup", "tea pot"]) if row.text is not None else "[1, 2]"
    said = [written, f"<think>{written}</think> <answer>{written}</answer>", f"```json\n{written}\n```", f'"{written}"']
    return [text.encode() for text in said]


def script(name: str, folder: Path) -> Made:
    """One published script's way to read an answer."""
    families = {"codec": "qwen3-vl", "codec-all": "qwen3-vl", "lmms-eval": "llava"}
    family = families.get(name, name)

    def read(data: bytes) -> object:
        parsed = READERS[name](text_of(data), META, codec(family))
        if parsed.box is not None:
            assert all(map(math.isfinite, parsed.box)), parsed
        return parsed.status.name, parsed.box is None

    return read, said_by(family)


def rewarded(folder: Path) -> Made:
    truth = {"boxes": [[(1.0, 2.0, 30.0, 40.0)]], "size_hw": [(480, 640)]}
    family = rewards("qwen3-vl")

    def read(data: bytes) -> object:
        text = text_of(data)
        found = [reward([text], **truth)[0] for reward in (family.iou, family.giou, family.f1, family.format)]
        assert all(0 <= value <= 1 for value in found), found
        return tuple(round(value, 1) for value in found)

    return read, said_by("qwen3-vl")


def json_stream(folder: Path) -> Made:
    """Array, array under a key, lines: what Python's own parser reads is read the same."""
    path = folder / "x.json"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        found = []
        for stream in (stream_array, partial(stream_array, key="data"), stream_lines, stream_records):
            try:
                found.append(len(list(stream(path))))
            except VPPError as error:
                found.append(type(error).__name__)
        try:
            value = json.loads(data, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError):
            return "broken", *found
        if isinstance(value, list) and "NaN" not in repr(value):
            assert found[0] == len(value)
        return type(value).__name__, *found

    return read, [*as_json(layouts.CB_GRD, [1, 2.5, "a", None]), NEUTRAL]


def plain_pickle(folder: Path) -> Made:
    path = folder / "x.p"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return type(load_plain_pickle(path)).__name__

    values = [{"ref_id": 1, "sentences": [{"sent": "a"}], "box": (1.5, None, True)}] * 2
    return read, [pickle.dumps(values, protocol=protocol) for protocol in (0, 2, 4)]


def image(folder: Path) -> Made:
    path = folder / "x"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        size = upright_size(path)
        loaded = load_image(path)
        assert (loaded.size, loaded.mode) == (size, "RGB")
        return "image"

    made = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        file = io.BytesIO()
        Image.linear_gradient("L").resize((16, 12)).convert("RGB").save(file, kind)
        made.append(file.getvalue())
    return read, made


def image_sizes(folder: Path) -> Made:
    path = folder / "sizes.jsonl"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return min(ImageSizes(known=path)("a.jpg"))

    return read, as_json({"image": "a.jpg", "width": 640, "height": 480})


RECIPE = b"""model = "m"
data = "d"
output_dir = "o"
max_steps = 3
freeze = ["llm"]
losses = ["words:0.3"]
lr.vpp.local = 1e-4
mix = [{data = "x", weight = 0.5}]
global_vpp = {style = "cross"}
"""


def recipe(folder: Path) -> Made:
    path = folder / "recipe.toml"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        made = Recipe.load(path)
        assert Recipe.from_dict(made.to_dict()).to_dict() == made.to_dict()
        return tuple(sorted(made.to_dict()))

    return read, [RECIPE]


def recipe_change(folder: Path) -> Made:
    def read(data: bytes) -> object:
        made = Recipe.load(changes=["model=m", "data=d", "output_dir=o", data.decode("utf-8", "surrogateescape")])
        assert Recipe.from_dict(made.to_dict()).to_dict() == made.to_dict()
        return tuple(sorted(made.to_dict()))

    return read, [line.replace(b" = ", b"=", 1) for line in RECIPE.splitlines()]


def configuration(folder: Path) -> Made:
    path = folder / "vpp_config.json"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        config = VPPConfig.load(path)
        config.save(path)
        assert VPPConfig.load(path) == config
        return config.global_vpp is None, config.local_vpp is None

    return read, as_json(VPPConfig().to_dict(), {"global_vpp": {"image_mean": [0, 0, 1]}, "local_vpp": None})


def saved_prompts(folder: Path) -> Made:
    """Either file of saved prompts; loading them leaves numbers, the same or none."""
    from tests.tiny import ToyPlugin, attached, tiny_llava
    from vpp_plugins.plugins import manager

    manager().register(ToyPlugin(), "toy")
    model, _ = attached(tiny_llava())
    saved = folder / "saved"
    save_vpp(model, saved)
    expected = {name: value.clone() for name, value in model.vpp.state_dict().items()}

    def read() -> object:
        load_vpp(model, saved)
        assert all(value.equal(expected[name]) for name, value in model.vpp.state_dict().items())
        return "loaded"

    return one_of([saved / "vpp_config.json", saved / "vpp.safetensors"], read)


def weights(suffix: str, folder: Path) -> Made:
    import torch
    from safetensors.torch import save

    path = folder / f"model.{suffix}"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return min(len(read_weights(path)), 3)

    if suffix == "safetensors":
        return read, [save(tensors)]
    made = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
        made.append(file.getvalue())
    return read, made


def manifest(folder: Path) -> Made:
    (folder / "a.bin").write_bytes(b"abc")
    write_manifest(folder)
    path = folder / "manifest.json"
    whole = path.read_bytes()

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return check_manifest(folder)

    return read, [whole, *as_json({"files": {"a.bin": [3, "0"]}}, {"files": {"../a": [3, 4]}})]


def checkpoint(folder: Path) -> Made:
    """A checkpoint of 0.1.0, which has no hashes."""
    made = folder / "checkpoint-1"
    shutil.copytree(Path(__file__).parents[1] / "compat/training_0_1_0/checkpoint-1", made)
    return one_of([made / "trainer_state.json", made / "scheduler.pt"], lambda: check_files(made))


def evaluation(folder: Path) -> Made:
    """Either file of a finished evaluation, judged again."""
    from tests.evaluate.conftest import Stub, make_rows, truthful

    rows = make_rows(4)
    made = folder / "evaluation"
    evaluate(Stub(truthful(rows)), rows, protocol("default"), made, batch_size=2)
    expected = rescore(made, "default", folder / "expected")

    def read() -> object:
        shutil.rmtree(folder / "again", ignore_errors=True)
        assert rescore(made, "default", folder / "again") == expected
        return "judged"

    return one_of([made / "answers.jsonl", made / "run.json"], read)


def ledger(folder: Path) -> Made:
    from tests.evaluate.conftest import make_rows
    from vpp_plugins.evaluate.answers import Answer

    book = Ledger(folder, 0)
    book.append(0, [Answer.of(row, "text", None) for row in make_rows(2)])
    whole = book.file.read_bytes()

    def read(data: bytes) -> object:
        book.file.write_bytes(data)
        book.cut_torn_line()
        return tuple(sorted((number, len(held)) for number, held in book.read().items()))[:3]

    return read, [whole]


TABLES = {"lmms-parquet": ["parquet"], "datasets": ["arrow", "parquet"], **{name: ["parquet"] for name in ROWS}}
TARGETS: Mapping[str, Callable[[Path], Made]] = {
    **{f"data {name}": partial(data_format, name) for name in SEEDS},
    **{f"data {name} {suffix}": partial(table, name, suffix) for name in TABLES for suffix in TABLES[name]},
    "data refer": refer,
    "data grefcoco": grefcoco,
    "data scenes": scenes,
    "data webdataset": webdataset,
    **{f"codec {name}": partial(answers, name) for name in BOX_CODECS if BOX_CODECS[name].text is not None},
    **{f"reader {name}": partial(script, name) for name in READERS},
    "rewards": rewarded,
    "parser json": json_stream,
    "parser pickle": plain_pickle,
    "parser image": image,
    "parser sizes": image_sizes,
    "parser safetensors": partial(weights, "safetensors"),
    "parser pth": partial(weights, "pth"),
    "recipe file": recipe,
    "recipe change": recipe_change,
    "config file": configuration,
    "config prompts": saved_prompts,
    "saved manifest": manifest,
    "saved checkpoint": checkpoint,
    "saved evaluation": evaluation,
    "saved ledger": ledger,
}
assert {name.split()[1] for name in TARGETS if name.startswith("data ")} == set(FORMATS)
