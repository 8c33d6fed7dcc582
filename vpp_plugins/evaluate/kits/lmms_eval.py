"""The model `vpp_plugins` of lmms-eval, which finds it through its entry-point group `lmms_eval.models`.

lmms-eval --model vpp_plugins --model_args pretrained=DIR,vpp=DIR,settings=FILE.json --tasks refcoco_bbox_rec
"""

from collections.abc import Mapping
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import models
from vpp_plugins.evaluate.kits.answers import MOST_TOKENS, answer, keep_settings


class LmmsEvalModel(lmms):  # type: ignore[misc]
    """A host with its prompts, asked one image at a time."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        vpp: str | None = None,
        box_format: str | None = None,
        settings: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal():
            raise VPPError(f"the batch size must be a whole number, but is '{batch_size}': give --batch_size 8.")
        self.grounder = models.load_grounder(pretrained, vpp=vpp, box_format=box_format, device=device)
        self.batch_size = int(batch_size)
        keep_settings(self.grounder, settings)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer the kit's requests, in their order."""
        from rich.progress import track

        answers: list[str] = []
        for start in track(range(0, len(requests), self.batch_size), description="Answering"):
            batch = [request.args for request in requests[start : start + self.batch_size]]
            longest = max(_tokens(arguments[1]) for arguments in batch)
            images = [self._image(arguments) for arguments in batch]
            answers += answer(self.grounder, images, [arguments[0] for arguments in batch], max_new_tokens=longest)
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Raise: grounding is generated, not ranked."""
        raise VPPError("the model 'vpp_plugins' generates answers and ranks none: choose a task of generate_until.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Raise: one question per image."""
        raise VPPError("the model 'vpp_plugins' answers one question per image: choose a single-round task.")

    def _image(self, arguments: tuple[Any, ...]) -> Image.Image:
        _, _, to_visual, number, task, split = arguments
        found = to_visual(self.task_dict[task][split][number])
        if len(found) != 1 or not isinstance(found[0], Image.Image):
            raise VPPError(f"one image per question is expected, but '{task}' gives {len(found)}: choose another task.")
        return found[0]


def _tokens(asked: Mapping[str, Any]) -> int:
    """Return how long an answer may be; raises VPPError where the kit asks for answers that are not greedy."""
    if asked.get("do_sample") or asked.get("num_beams") not in (None, 1):
        raise VPPError(
            "the model 'vpp_plugins' answers greedily, but the task's generation_kwargs ask for samples or beams: give "
            "--gen_kwargs do_sample=False,num_beams=1."
        )
    return int(asked.get("max_new_tokens", MOST_TOKENS))


def manifest() -> Any:
    """Return what lmms-eval's registry asks of an entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vpp_plugins", simple_class_path=f"{__name__}.LmmsEvalModel")
