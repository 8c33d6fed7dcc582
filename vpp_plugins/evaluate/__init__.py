"""Measuring grounding: scores of predicted boxes, and the controls that belong beside them.

- `score.py`: Acc@0.5 / 0.75 / 0.9, mean IoU and counts of answers that were no box.
- `blind.py`: what is reached without reading the expression, or without looking at the picture.
"""

from vpp_plugins.evaluate.blind import full_image, mean_box, random_object, shuffled
from vpp_plugins.evaluate.score import Scores, score

__all__ = ["Scores", "full_image", "mean_box", "random_object", "score", "shuffled"]
