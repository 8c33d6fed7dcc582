"""Pictures with referring expressions: the scene benchmark, its sources, and the committed real photographs.

Every sample is a `scenes.Scene`: a picture, its objects, and expressions with boxes in xyxy pixels of that picture.

- `assets.py` fetches the cut-outs and backgrounds (`fetch_assets`) and finds them again (`find_assets`). They are free
  but not ours to ship (GPL-2, GPL-2+, CC-BY, CC-BY-SA), so they lie in a folder that git ignores.
- `sources.py` says what a scene is made from; `cutouts.py` makes it from photographs, `shapes.py` draws it in code.
- `scenes.py` composes scenes: `SceneGenerator(find_assets("assets"), split="train", seed=0).scene(17)`.
- `expressions.py` finds texts that are true of exactly one object.
- `scene_folder.py` writes scenes to files (`write_scenes`) and reads them (`load_scenes`).
- `photos.py` loads 29 public-domain or CC0 photographs with 50 hand-drawn boxes (`load_real_photos`).

The splits: train and val show seen nouns on training backgrounds, test shows seen nouns on held-out backgrounds, and
heldout shows held-out nouns on held-out backgrounds. Most nouns have a single picture, so train, val and test reward
memory of it; heldout does not.
"""
