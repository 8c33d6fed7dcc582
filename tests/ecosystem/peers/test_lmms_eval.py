"""lmms-eval's own command, on its own RefCOCO task with the committed photographs in the place of RefCOCO's images."""

import json
from pathlib import Path

import pytest

from tests.ecosystem.peers.kits import run_kit
from vpp_plugins.data.scenes import load_real_photos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

METRICS = {"refcoco_IoU": "iou", "refcoco_ACC@0.5": "acc05"}
TASK = """\
task: photos
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
process_docs: !function asked.refcoco_bbox_rec_preprocess_dataset
doc_to_visual: !function asked.refcoco_bbox_rec_doc_to_visual
doc_to_text: !function asked.refcoco_bbox_rec_doc_to_text
doc_to_target: bbox
generation_kwargs: {{until: ["ASSISTANT:"]}}
process_results: !function asked.refcoco_bbox_rec_process_result
metric_list:
"""


def write_task(folder: Path) -> None:
    """The kit's task on its own functions; rows as lmms-lab's RefCOCO has, boxes left, top, width, height."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "question_id": f"{photo.key}-{number}",
            "image": photo.image,
            "answer": [one.text],
            "bbox": _xywh(one.box_xyxy),
        }
        for photo in load_real_photos()
        for number, one in enumerate(photo.expressions)
    ]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(folder / "photos.parquet")
    metrics = "".join(
        f"  - {{metric: '{name}', aggregation: !function asked.refcoco_bbox_rec_{function}, higher_is_better: true}}\n"
        for name, function in METRICS.items()
    )
    (folder / "photos.yaml").write_text(TASK.format(file=folder / "photos.parquet") + metrics)
    (folder / "asked.py").write_text("from lmms_eval.tasks.refcoco.utils_rec import *\n")


def _xywh(box: tuple[float, ...]) -> list[float]:
    return [*box[:2], box[2] - box[0], box[3] - box[1]]


def test_its_command_with_its_common_flags(tmp_path: Path) -> None:
    """`--device`, `--batch_size auto` and dtype were refused."""
    (tmp_path / "task").mkdir()
    write_task(tmp_path / "task")

    run_kit(
        "lmms_eval",
        (
            "-m lmms_eval --model vpp_plugins --model_args pretrained=pocket,settings=settings.json,dtype=float32 "
            "--tasks photos --include_path task --device cpu --batch_size auto --max_batch_size 8 "
            "--output_path results --log_samples"
        ).split(),
        tmp_path,
    )

    (written,) = (tmp_path / "results").rglob("*_results.json")
    figures = json.loads(written.read_text())["results"]["photos"]
    assert figures["refcoco_ACC@0.5,none"] == pytest.approx(0.3, abs=0.3)
    assert figures["refcoco_IoU,none"] > 0.1
    (samples,) = (tmp_path / "results").rglob("*_samples_photos.jsonl")
    assert len(samples.read_text().splitlines()) == 50
    assert json.loads((tmp_path / "settings.json").read_text())["box_format"]
