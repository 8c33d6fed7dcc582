"""Measuring grounding: models asked under named protocols, what their answers are worth, and how sure that is.

- `rows.py`: what is asked, and what together; `run.py`: asking it, by one command at a time, killable at any point;
  `answers.py`: what was said; `protocol.py` and `protocols/`: how it is asked and counted, frozen in files;
  `readers.py`: how each published script reads an answer.
- `results.py`: answers judged, their figures and page; `metrics.py`: scores, and how sure they are; `compare.py`: why
  two evaluations differ; `captions.py`: words for a given box.
- `app.py`: an own image in the browser, what `vpp app` serves.
- `benchmark.py`: from names to pages, what `vpp eval` calls; `benchmarks.py`: the table of benchmarks; `models.py`: the
  model; `demo.py`: what `vpp demo` shows, `attention.py`: what of an image is attended to as it is answered.
- `controls.py`: what is reached without reading the expression, or without looking; `kits/`: bridges to other kits.
"""

from vpp_plugins.evaluate.app import build_app, export_app, load_side_by_side, serve_app
from vpp_plugins.evaluate.benchmark import load_rows, measure, rescore, rows_at_hand
from vpp_plugins.evaluate.benchmarks import BENCHMARKS, find_benchmark, full_split, named_benchmark
from vpp_plugins.evaluate.compare import compare, write_comparison
from vpp_plugins.evaluate.controls import full_image, mean_box, random_object, shuffled, shuffled_rows
from vpp_plugins.evaluate.demo import (
    answer_heading,
    answer_line,
    assets_or_none,
    demo_sentences,
    demo_summary,
    run_demo,
    write_demo_page,
)
from vpp_plugins.evaluate.metrics import Scores, drawn_means, score
from vpp_plugins.evaluate.models import ADAPTER, BASE, check_there, load_grounder, load_pretrained, not_loaded
from vpp_plugins.evaluate.protocol import Protocol, protocol, protocols
from vpp_plugins.evaluate.results import FIGURES, answer_card, interval_text, load_evaluation
from vpp_plugins.evaluate.rows import Row, check_rows, image_id, plan, rows_of_scenes

__all__ = [
    "ADAPTER",
    "BASE",
    "BENCHMARKS",
    "FIGURES",
    "Protocol",
    "Row",
    "Scores",
    "answer_card",
    "answer_heading",
    "answer_line",
    "assets_or_none",
    "build_app",
    "check_rows",
    "check_there",
    "compare",
    "demo_sentences",
    "demo_summary",
    "drawn_means",
    "export_app",
    "find_benchmark",
    "full_image",
    "full_split",
    "image_id",
    "interval_text",
    "load_evaluation",
    "load_grounder",
    "load_pretrained",
    "load_rows",
    "load_side_by_side",
    "mean_box",
    "measure",
    "named_benchmark",
    "not_loaded",
    "plan",
    "protocol",
    "protocols",
    "random_object",
    "rescore",
    "rows_at_hand",
    "rows_of_scenes",
    "run_demo",
    "score",
    "serve_app",
    "shuffled",
    "shuffled_rows",
    "write_comparison",
    "write_demo_page",
]
