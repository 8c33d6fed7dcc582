"""Measuring grounding: scores of predicted boxes, and the controls that belong beside them.

- `protocol.py` and `protocols/`: how an accuracy is measured, frozen in files; `readers.py` and `overlaps.py` are the
  ways that they choose among.
- `rows.py`: what is asked; `batches.py`: what together; `run.py`: asking it, killable at any point; `lock.py`: by one
  command at a time; `answers.py`: what was said.
- `results.py`, `statistics.py`: the figures and how sure they are; `compare.py`: why two evaluations differ.
- `report.py`: pages, made of `page.py`, `tables.py`, `cards.py` and `curve.py`; `benchmark.py`: from names to pages,
  what `vpp eval` calls; `models.py`: the model.
- `captions.py`: words for a given box; `mistakes.py`: what reading boxes wrongly costs; `kits/`: bridges to other kits.
- `score.py`: the bare scores of predicted boxes; `blind.py`: what is reached without reading the expression, or without
  looking at the picture.
"""

from vpp_plugins.evaluate.blind import full_image, mean_box, random_object, shuffled
from vpp_plugins.evaluate.score import Scores, score

__all__ = ["Scores", "full_image", "mean_box", "random_object", "score", "shuffled"]
