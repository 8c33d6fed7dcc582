"""Asks the model in training what its data are for: Acc@0.5 every so many steps, and a page of its worst answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vpp_plugins.attach import unwrap
from vpp_plugins.evaluate import Protocol, Row, check_rows, load_rows, measure, protocol
from vpp_plugins.ground import Grounder
from vpp_plugins.train.data import pixel_budget
from vpp_plugins.train.recipe import Recipe


@dataclass(frozen=True)
class TrainingEvaluation:
    """Rows and rules; answers, results and pages of each time go to a folder of its step."""

    rows: list[Row]
    rules: Protocol
    data: str
    folder: Path
    box_format: str | None
    batch_size: int

    def __call__(self, model: Any, processor: Any, step: int) -> dict[str, float]:
        """Ask all rows and return `eval_acc_50` and `eval_mean_iou`, 0 to 1; random numbers are left as they were."""
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            asker = Grounder(model, processor, box_format=self.rules.family or self.box_format)
            name = f"{type(unwrap(model)).__name__} after {step} steps"
            out = self.folder / f"step-{step}"
            results = measure(asker, self.rows, self.rules, out, model=name, data=self.data, batch_size=self.batch_size)
        figures = results.get("figures")  # of the first process only
        if figures is None:
            return {}
        return {f"eval_{name}": float(figures[name]["mean"]) for name in ("acc_50", "mean_iou")}


def evaluation_of(recipe: Recipe, batch_size: int) -> TrainingEvaluation | None:
    """Return the recipe's evaluation, or None; raises VPPError for data that are not there."""
    if recipe.eval_data is None:
        return None
    rows = load_rows(
        recipe.eval_data,
        data_format=recipe.eval_format,
        images=recipe.eval_images,
        family=recipe.data_family,
        boxes=recipe.data_boxes if recipe.eval_format == recipe.data_format else "",
        pixels=pixel_budget(recipe),
    )[: recipe.eval_limit]
    check_rows(rows)
    folder = Path(recipe.output_dir) / "eval"
    rules = protocol(recipe.eval_protocol)
    return TrainingEvaluation(rows, rules, recipe.eval_data, folder, recipe.box_format, batch_size)
