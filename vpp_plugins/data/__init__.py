"""Data for grounding: other people's, in all their formats, and our own scene benchmark and photographs.

Other people's data:

- `sample.py` is the neutral sample that stands between all formats, and what can be wrong with one; `formats/` reads
  and writes them by name (`read_samples("refcoco/", "refer", split="val")`), and `convert.py` turns one into another as
  a stream.
- `record.py` makes samples of what files say: sizes are found, units and codecs bring boxes to pixels, what is faulty
  is counted; `dialogue.py` reads and writes boxes in text.
- `json_stream.py` reads JSON of any size, and `vpp_sft.py` assembles VPP-SFT.
- `dataset.py` converts the samples of a run once, leaves them on disk, gives each with its image, and mixes sets.
- `split.py` divides a set by its images (`same_images.py` knows which are the same), and `units.py` takes what is
  stated of a file's boxes.
- `doctor/` examines a set, judges frame and unit of its boxes, and shows them.

Our own, in `scenes/`: every sample is a `Scene`, an image, its objects, and expressions, boxes in xyxy pixels.

- `assets.py` fetches the cut-outs and backgrounds (`fetch_assets`) and finds them again (`find_assets`). They are free
  but not ours to ship (GPL-2, GPL-2+, CC-BY, CC-BY-SA), so they lie in a folder that git ignores.
- `source.py` says what a scene is made from; `cutouts.py` makes it from photographs, `shapes.py` draws it in code.
- `generator.py` composes scenes: `SceneGenerator(find_assets(), split="train", seed=0).scene(17)`, with texts of
  `expressions.py` that are true of exactly one object.
- `folder.py` writes scenes to files (`write_scenes`) and reads them (`load_scenes`), and 29 public-domain or CC0
  photographs with 50 hand-drawn boxes (`load_real_photos`); `drawn.py` draws scenes in training.

The splits: train and val show seen nouns on training backgrounds, test shows seen nouns on held-out backgrounds, and
heldout shows held-out nouns on held-out backgrounds; sets is as test, but asks for several objects and absent ones too.
Most nouns have a single image, so train, val and test reward memory of it; heldout does not.
"""

from vpp_plugins.data.convert import check_target, convert
from vpp_plugins.data.dataset import (
    LoadedSample,
    MixedData,
    Mixture,
    StoredData,
    TrainingData,
    mixture_order,
    open_data,
)
from vpp_plugins.data.dialogue import Phrases
from vpp_plugins.data.json_stream import progress_bar
from vpp_plugins.data.record import ImageError, PixelBudget, image_path
from vpp_plugins.data.sample import CHOSEN, KEPT, Describe, Issue, Locate, Numbers, Sample, Talk, Tally, Turn
from vpp_plugins.data.split import Split, head, split_data
from vpp_plugins.data.vpp_sft import PUBLISHED, build_vpp_sft

__all__ = [
    "CHOSEN",
    "KEPT",
    "PUBLISHED",
    "Describe",
    "ImageError",
    "Issue",
    "LoadedSample",
    "Locate",
    "MixedData",
    "Mixture",
    "Numbers",
    "Phrases",
    "PixelBudget",
    "Sample",
    "Split",
    "StoredData",
    "Talk",
    "Tally",
    "TrainingData",
    "Turn",
    "build_vpp_sft",
    "check_target",
    "convert",
    "head",
    "image_path",
    "mixture_order",
    "open_data",
    "progress_bar",
    "split_data",
]
