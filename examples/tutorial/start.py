"""Write what the tutorial begins with into this folder: a data set with two faults, and a small model without VPP.

`data/boxes.json` is LLaVA's JSON about the 29 photographs that ship with the library and 61 scenes drawn in code.
`host/` is the pocket model's twin that was trained without VPP, as any model of transformers is saved.
"""

import json
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import BOX_CODECS, ImageMeta
from vpp_plugins.data.scenes import Scene, SceneGenerator, Shapes, load_real_photos
from vpp_plugins.pocket import load_pocket

SCENES = 61
DATA, HOST = Path("data"), Path("host")


def main() -> None:
    (DATA / "images").mkdir(parents=True)
    shapes = SceneGenerator(Shapes(), split="train", seed=0, size=320)
    scenes = [*load_real_photos(), *(shapes.scene(index) for index in range(SCENES))]
    rows = [dialogue(scene) for scene in scenes]
    # The two faults: boxes whose corners were swapped, and an image that somebody deleted.
    answers = [turn for turn in rows[3]["conversations"] if turn["from"] == "gpt"]
    left, top, right, bottom = json.loads(answers[0]["value"])
    answers[0]["value"] = json.dumps([right, bottom, left, top])
    (DATA / "images" / rows[40]["image"]).unlink()
    (DATA / "boxes.json").write_text(json.dumps(rows, indent=1))
    model, processor = load_pocket(vpp=False)
    model.save_pretrained(HOST)
    processor.save_pretrained(HOST)
    print(f"{len(rows)} dialogues in {DATA / 'boxes.json'}, a model in {HOST}")


def dialogue(scene: Scene) -> dict[str, Any]:
    """Save a scene's image, and return its expressions as LLaVA writes them: question, box, question, box."""
    codec, meta = BOX_CODECS["llava"], ImageMeta((scene.height, scene.width))
    name = f"{scene.key}.jpg"
    scene.image.save(DATA / "images" / name, quality=92)
    turns = []
    for number, one in enumerate(scene.expressions[:6]):
        mark = "" if number else "<image>\n"
        turns += [
            {"from": "human", "value": mark + codec.prompt(one.text)},
            {"from": "gpt", "value": codec.encode([one.box_xyxy], meta)},
        ]
    return {"id": scene.key, "image": name, "conversations": turns}


if __name__ == "__main__":
    main()
