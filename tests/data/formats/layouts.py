"""Small files in the exact public layouts: each row is what the publishers' files hold, shortened."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 640, 480
BOX = (64.0, 96.0, 320.0, 384.0)
"""xyxy pixels; [0.1, 0.28, 0.5, 0.72] on the padded square, xywh (64, 96, 256, 288)."""


def image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)
    return path


def human(value: str) -> dict[str, str]:
    return {"from": "human", "value": value}


def gpt(value: str) -> dict[str, str]:
    return {"from": "gpt", "value": value}


ASK = "Please provide the bounding box coordinate of the region this sentence describes: "
DESCRIBE = "Please provide a short description for this region: "

LLAVA_665K = [
    {  # a region among other questions
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            human("<image>\nWhat are the colors of the bus?\nAnswer the question using a single word or phrase."),
            gpt("White and red"),
            human(f"{ASK}white cup on left."),
            gpt("[0.1, 0.28, 0.5, 0.72]"),
            human(f"{DESCRIBE}[0.1, 0.28, 0.5, 0.72]."),
            gpt("White cup on left"),
        ],
    },
    {  # no region: not selected
        "id": "000000052846",
        "image": "coco/train2017/000000052846.jpg",
        "conversations": [human("Where is the cat positioned in the image?\n<image>"), gpt("On top of the couch.")],
    },
    {  # a list of decimals that is no box, and no image: selected by the reference's rule
        "id": "wgByO4Y_0",
        "conversations": [human("Sum these: [0.1, 0.2, 0.3]"), gpt("0.6")],
    },
]  # fmt: skip

CB_GRD = {
    "data": [
        {
            "id": "2368107",
            "image": "VG_100K/2368107.jpg",
            "conversation": [
                human("Where is the white cup on the left?"),
                gpt("I have provided the box of the white cup on the left. <white cup:[64, 96, 320, 384]>"),
                human("And the sign of St. Mary?"),
                gpt("I have provided the box of the sign of St. Mary. <sign:[64, 96, 320, 384]>"),
            ],
        },
        {
            "id": "1",
            "image": "coco/1.jpg",
            "conversation": [human("Where is it?"), gpt("I have provided the box of it. <it:[1, 2, 3, 4]>")],
        },
        {
            "id": "2",
            "image": "VG_100K/2.jpg",
            "conversation": [
                human("Where are they?"),
                gpt("Here. <a:[1, 2, 3, 4], b:[5, 6, 7, 8]>"),
                human("x"),
                gpt("y"),
            ],
        },
    ]
}  # fmt: skip

CB_REF = {
    "data": [
        {
            "id": "2368107",
            "image": "VG_100K/2368107.jpg",
            "conversation": [
                human("What is in the region <region:[64, 96, 320, 384]>?"),
                gpt("A white cup of coffee."),
                human("And here <region:[0, 0, 640]>?"),
                gpt("A table."),
            ],
        }
    ]
}

GENIXER = {
    "img_path": "00453/004539375.jpg",
    "bbox": [64, 96, 320, 384],
    "expression": "the white cup",
    "height": HEIGHT,
    "width": WIDTH,
    "clip_score": 61.2,
}
EVALUATION = {
    "image": "data/coco/train2014/COCO_train2014_000000581857.jpg",
    "sent": "white cup",
    "bbox": [64.0, 96.0, 320.0, 384.0],
    "height": HEIGHT,
    "width": WIDTH,
}
GSEVAL = {
    "idx": 12,
    "image_path": "unlabeled2017/000000000008.jpg",
    "class_id": 3,
    "label": "cup",
    "caption": "The white cup on the left.",
    "box": [64.0, 96.0, 320.0, 384.0],
    "segmentation": {"size": [HEIGHT, WIDTH], "counts": "abc"},
}
SWIFT = [
    {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"<image>{ASK}<ref-object>."},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "images": ["/data/cup.jpg"],
        "objects": {"ref": ["the white cup"], "bbox": [[64, 96, 320, 384]], "bbox_type": "real", "image_id": [0]},
    },
    {
        "messages": [
            {"role": "user", "content": "<image>Is <ref-object> at <bbox>?"},
            {"role": "assistant", "content": "Yes, <bbox>."},
        ],
        "images": ["/data/cup.jpg"],
        "objects": {"ref": ["it"], "bbox": [[0.1, 0.2, 0.5, 0.8], [0, 0, 1, 1]], "bbox_type": "norm1"},
    },
]
COCO: dict[str, Any] = {
    "info": {"description": "COCO 2014 Dataset", "year": 2014},
    "images": [{"license": 5, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH, "id": 57870}],
    "licenses": [{"id": 1, "name": "x"}],
    "annotations": [
        {"area": 3, "iscrowd": 0, "image_id": 57870, "bbox": [64, 96, 256, 288], "category_id": 47, "id": 7},
        {"segmentation": {"counts": []}, "iscrowd": 1, "image_id": 57870, "bbox": [0, 0], "category_id": 47, "id": 8},
        {"segmentation": [], "iscrowd": 0, "image_id": 1, "bbox": [0, 0, 5, 5], "category_id": 47, "id": 9},
    ],
    "categories": [{"supercategory": "kitchen", "id": 47, "name": "cup"}],
}  # fmt: skip
ODVG = [
    {
        "filename": "a.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "grounding": {
            "caption": "a white cup . two spoons .",
            "regions": [
                {"bbox": [64, 96, 320, 384], "phrase": "a white cup", "tokens_positive": [[0, 11]]},
                {"bbox": [[1, 2, 30, 40], [5, 6, 70, 80]], "phrase": "two spoons"},
            ],
        },
    },
    {
        "filename": "b.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "detection": {"instances": [{"bbox": [64, 96, 320, 384], "label": 0, "category": "cup"}]},
    },
]


def refer_folder(folder: Path) -> Path:
    """RefCOCO's layout: a Python 2 pickle (protocol 2) beside instances.json."""
    folder.mkdir(parents=True)
    refs = [
        {
            "sent_ids": [0, 1],
            "file_name": "COCO_train2014_000000057870_7.jpg",
            "ann_id": 7,
            "ref_id": 49,
            "image_id": 57870,
            "split": split,
            "category_id": 47,
            "sentences": [
                {"tokens": ["white", "cup"], "raw": "White cup!", "sent_id": 0, "sent": "white cup"},
                {"tokens": ["cup"], "raw": "cup", "sent_id": 1, "sent": "cup"},
            ],
        }
        for split in ("train", "testA")
    ]
    refs[0]["ann_id"] = 12345  # of an annotation that is not there
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(COCO))
    return folder


def lmms_parquet(path: Path) -> Path:
    """lmms-lab/RefCOCO's columns."""
    import pyarrow as pa
    from pyarrow import parquet

    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(data, "JPEG")
    row = {
        "question_id": "469306",
        "image": {"bytes": data.getvalue(), "path": "COCO_train2014_000000057870_7.jpg"},
        "question": "Please carefully observe the area circled in the image and come up with a caption for the area.",
        "answer": ["white cup", "cup"],
        "segmentation": [1.0, 2.0],
        "bbox": [64.0, 96.0, 256.0, 288.0],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000057870_7.jpg",
    }
    parquet.write_table(pa.Table.from_pylist([row]), path)
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def whole(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path
