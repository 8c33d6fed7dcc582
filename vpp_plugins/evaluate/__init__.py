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
  looking at the image.
"""

from vpp_plugins.evaluate.batches import plan
from vpp_plugins.evaluate.benchmark import load_rows, measure, rescore, rows_at_hand
from vpp_plugins.evaluate.compare import compare, load_evaluation
from vpp_plugins.evaluate.controls import full_image, mean_box, random_object, shuffled
from vpp_plugins.evaluate.demo import answer_line, assets_or_none, demo_summary, run_demo
from vpp_plugins.evaluate.demo_page import write_page
from vpp_plugins.evaluate.metrics import Scores, score
from vpp_plugins.evaluate.mistakes import Truth, ceiling, mistakes
from vpp_plugins.evaluate.models import load_grounder
from vpp_plugins.evaluate.page import STYLE
from vpp_plugins.evaluate.protocol import Protocol, protocol, protocols
from vpp_plugins.evaluate.report import write_comparison
from vpp_plugins.evaluate.rows import Row, check_rows, image_id, rows_of_scenes
from vpp_plugins.evaluate.tables import FIGURES, interval_text

__all__ = [
    "FIGURES",
    "STYLE",
    "Protocol",
    "Row",
    "Scores",
    "Truth",
    "answer_line",
    "assets_or_none",
    "ceiling",
    "check_rows",
    "compare",
    "demo_summary",
    "full_image",
    "image_id",
    "interval_text",
    "load_evaluation",
    "load_grounder",
    "load_rows",
    "mean_box",
    "measure",
    "mistakes",
    "plan",
    "protocol",
    "protocols",
    "random_object",
    "rescore",
    "rows_at_hand",
    "rows_of_scenes",
    "run_demo",
    "score",
    "shuffled",
    "write_comparison",
    "write_page",
]
