"""A model as VLMEvalKit calls it: what its `vlmeval/vlm/base.py` and `vlmeval/inference*.py` ask of one.

Add it to the kit's table of models:

from functools import partial
from vlmeval.config import supported_VLM
from vpp_plugins.evaluate.kits.vlmevalkit import VPPModel

supported_VLM["vpp"] = partial(VPPModel, "DIR", vpp="DIR", settings="FILE.json")
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import models
from vpp_plugins.evaluate.kits.answers import answer, keep_settings, loading
from vpp_plugins.images import load_image

OWN = ("model", "vpp", "box_format", "settings", "dtype", "device")

Part = str | Mapping[str, Any]
Message = Part | Sequence[Part]


class VPPModel:
    """A host with its prompts; the kit calls `generate` with one message at a time."""

    is_api = False
    INTERLEAVE = False
    VIDEO_LLM = False
    allowed_types = ("text", "image")

    def __init__(
        self,
        model: str,
        *,
        vpp: str | None = None,
        box_format: str | None = None,
        settings: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        use_vllm: bool = False,
        **options: Any,
    ) -> None:
        """`use_vllm` comes from the kit where a table's name holds a family's, as "Qwen2.5-VL".

        `options` are those of `answers.LOADING`; raises VPPError for any other, and for `use_vllm`.
        """
        if use_vllm:
            raise VPPError("vLLM runs no prompts, so this model runs in transformers: leave --use-vllm out.")
        known = loading("VLMEvalKit", options, OWN)
        self.grounder = models.load_grounder(model, vpp=vpp, box_format=box_format, dtype=dtype, device=device, **known)
        keep_settings(self.grounder, settings)

    def set_dump_image(self, dump_image_func: Callable[[Any], Any]) -> None:
        """Keep the dataset's way to write a row's images as files; the kit says so before the first question."""
        self.dump_image_func = dump_image_func

    def dump_image(self, line: Any, dataset: str) -> Any:
        """Return the paths of a row's images."""
        return self.dump_image_func(line)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Return False: the kit's own prompt comes, and is put into the family's words here."""
        return False

    def generate(self, message: Message, dataset: str | None = None) -> str:
        """Answer a message of one `image` part, a path, and `text` parts; as the kit says, a part may be a bare text.

        Raises VPPError where it holds anything else.
        """
        parts = [_part(part) for part in ([message] if isinstance(message, str | Mapping) else message)]
        kinds = [kind for kind, _ in parts]
        if kinds.count("image") != 1 or {*kinds} != {*self.allowed_types}:
            raise VPPError(f"one image and a text are expected, but {_counted(kinds)} came.")
        image = next(value for kind, value in parts if kind == "image")
        text = "\n".join(value for kind, value in parts if kind == "text")
        return answer(self.grounder, [load_image(image)], [text])[0]

    def chat_inner(self, message: Any, dataset: str | None = None) -> str:
        """Raise: one question per image."""
        raise VPPError("this model answers one question per image: choose a data set of single questions.")

    chat = chat_inner


def _part(part: Part) -> tuple[str, str]:
    """Return a part's kind and value; a bare text is the image's path where there is such a file."""
    if isinstance(part, Mapping):
        return part["type"], part["value"]
    try:
        return "image" if Path(part).is_file() else "text", part
    except OSError:  # too long for a path
        return "text", part


def _counted(kinds: Sequence[str]) -> str:
    return " and ".join(f"{kinds.count(kind)} {kind}s" for kind in dict.fromkeys(("image", "text", *kinds)))
