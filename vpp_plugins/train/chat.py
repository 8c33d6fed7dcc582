"""A neutral sample as the chat that a family of models is trained on: its words, its boxes, its image first."""

from typing import Any

from vpp_plugins import plugins
from vpp_plugins.boxes import AXIS_SENTENCE, ImageMeta, codec
from vpp_plugins.data import Phrases, Sample
from vpp_plugins.errors import VPPError

Chat = list[dict[str, Any]]


class ChatWriter:
    """Writes samples in one box format.

    "vpp-llava" writes LLaVA's words and boxes and sets the axis sentence behind the first question, as the reference
    does in training; as a box format for evaluation it has that sentence in every question.
    """

    def __init__(self, box_format: str) -> None:
        self.codec = plugins.box_codec(box_format)
        axes = self.codec.family == "vpp-llava"
        self._phrases = Phrases(codec("llava") if axes else self.codec)
        self._appended = AXIS_SENTENCE if axes else ""

    def __call__(self, sample: Sample, meta: ImageMeta | None) -> Chat:
        """Return the chat, `meta` being of the image, or None without one.

        Raises VPPError for a box that lies outside the image, and for an image of another size than the sample says.
        """
        if meta is not None and sample.width and meta.size_hw != (sample.height, sample.width):
            height, width = meta.size_hw
            raise VPPError(
                f"the image of '{sample.id}' is {width} x {height}, but its boxes are for {sample.width} x "
                f"{sample.height}: it is another image, or a resized one."
            )
        chat: Chat = []
        for turn in sample.turns:
            question, answer = self._phrases.write(turn, meta)
            chat += [_said("user", question), _said("assistant", answer)]
        first = chat[0]["content"]
        first[0]["text"] += self._appended
        if meta is not None:
            first.insert(0, {"type": "image"})
        return chat


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
