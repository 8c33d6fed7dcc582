"""The model `vpp_plugins` of lmms-eval, which finds it through its entry-point group `lmms_eval.models`.

lmms-eval --model vpp_plugins --model_args pretrained=DIR,vpp=DIR,settings=FILE.json --tasks refcoco_bbox_rec
"""

from collections.abc import Mapping
from typing import Any

import torch
from lmms_eval.api.model import lmms
from PIL import Image

from vpp_plugins.attach import unwrap
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import models
from vpp_plugins.evaluate.kits.answers import MOST_TOKENS, answer, keep_settings, loading
from vpp_plugins.evaluate.run import processes

OWN = tuple("pretrained vpp box_format settings batch_size device dtype torch_dtype use_cache max_new_tokens".split())
LARGEST_BATCH = 32
"""What --batch_size auto begins with, unless --max_batch_size says otherwise."""


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
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        use_cache: bool = True,
        max_new_tokens: int = MOST_TOKENS,
        **options: Any,
    ) -> None:
        """What the kit's flags and its --model_args say, in the words of the kit's own models.

        `batch_size` "auto" begins with `max_batch_size` and halves it whenever a batch does not fit into memory.
        `max_new_tokens` holds where a task names no length. `options` are those of `answers.LOADING`; any other raises
        VPPError.
        """
        super().__init__()
        self.automatic = str(batch_size).startswith("auto")
        self.batch_size = (max_batch_size or LARGEST_BATCH) if self.automatic else _whole(batch_size)
        self.max_new_tokens = max_new_tokens
        self.grounder = models.load_grounder(
            pretrained,
            vpp=vpp,
            box_format=box_format,
            dtype=str(options.pop("torch_dtype", dtype)).removeprefix("torch."),
            device=device if processes().num_processes == 1 else None,  # each process has its own
            **loading("lmms-eval", options, OWN),
        )
        unwrap(self.grounder.model).generation_config.use_cache = use_cache
        keep_settings(self.grounder, settings, max_new_tokens=max_new_tokens)

    @property
    def device(self) -> torch.device:
        """Where the kit may put what its processes tell one another."""
        return unwrap(self.grounder.model).device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer the kit's requests, in their order."""
        from rich.progress import Progress

        answers: list[str] = []
        with Progress() as progress:
            bar = progress.add_task("Answering", total=len(requests))
            while len(answers) < len(requests):
                try:
                    answers += self._answer(requests[len(answers) : len(answers) + self.batch_size])
                except torch.OutOfMemoryError:
                    if not self.automatic or self.batch_size == 1:
                        raise
                    self.batch_size //= 2
                progress.update(bar, completed=len(answers))
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Raise: grounding is generated, not ranked."""
        raise VPPError("the model 'vpp_plugins' generates answers and ranks none: choose a task of generate_until.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Raise: one question per image."""
        raise VPPError("the model 'vpp_plugins' answers one question per image: choose a single-round task.")

    def _answer(self, requests: list[Any]) -> list[str]:
        batch = [request.args for request in requests]
        longest = max(_tokens(arguments[1], self.max_new_tokens) for arguments in batch)
        images = [self._image(arguments) for arguments in batch]
        return answer(self.grounder, images, [arguments[0] for arguments in batch], max_new_tokens=longest)

    def _image(self, arguments: tuple[Any, ...]) -> Image.Image:
        _, _, to_visual, number, task, split = arguments
        found = to_visual(self.task_dict[task][split][number])
        if len(found) != 1 or not isinstance(found[0], Image.Image):
            raise VPPError(f"one image per question is expected, but '{task}' gives {len(found)}: choose another task.")
        return found[0]


def _tokens(asked: Mapping[str, Any], most: int) -> int:
    """Return how long an answer may be; raises VPPError where the kit asks for answers that are not greedy."""
    if asked.get("do_sample") or asked.get("num_beams") not in (None, 1):
        raise VPPError(
            "the model 'vpp_plugins' answers greedily, but the task's generation_kwargs ask for samples or beams: give "
            "--gen_kwargs do_sample=False,num_beams=1."
        )
    return int(asked.get("max_new_tokens", most))


def manifest() -> Any:
    """Return what lmms-eval's registry asks of an entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vpp_plugins", simple_class_path=f"{__name__}.LmmsEvalModel")


def _whole(batch_size: int | str) -> int:
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise VPPError(f"--batch_size must be 'auto' or a whole number from 1, but is '{batch_size}'.")
    return int(batch_size)
