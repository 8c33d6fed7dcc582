"""A model as VLMEvalKit calls it.

Add it to the kit's table of models:

from functools import partial
from vlmeval.config import supported_VLM
from vpp_plugins.evaluate.kits.vlmevalkit import VPPModel

supported_VLM["vpp"] = partial(VPPModel, "DIR", vpp="DIR", settings="FILE.json")
"""

from collections.abc import Callable, Sequence
from typing import Any

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import models
from vpp_plugins.evaluate.kits.answers import answer, keep_settings
from vpp_plugins.images import load_image


class VPPModel:
    """A host with its prompts; the kit calls `generate` with one message at a time."""

    is_api = False

    def __init__(
        self, model: str, *, vpp: str | None = None, box_format: str | None = None, settings: str | None = None
    ) -> None:
        self.grounder = models.load_grounder(model, vpp=vpp, box_format=box_format)
        keep_settings(self.grounder, settings)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Return False: the kit's own prompt comes, and is put into the family's words here."""
        return False

    def set_dump_image(self, dump_image: Callable[..., Any]) -> None:
        """Take the kit's way to write its images, which only prompts of one's own would need."""

    def generate(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """Answer a message of one `image` part, a path, and `text` parts."""
        images = [part["value"] for part in message if part["type"] == "image"]
        texts = [part["value"] for part in message if part["type"] == "text"]
        if len(images) != 1 or not texts:
            raise VPPError(f"one image and a text are expected, but {len(images)} images and {len(texts)} texts came.")
        return answer(self.grounder, [load_image(images[0])], ["\n".join(texts)])[0]
