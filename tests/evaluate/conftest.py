import socket
from collections.abc import Callable, Sequence

import pytest
from PIL import Image

from vpp_plugins.boxes import Box, ImageMeta, codec
from vpp_plugins.evaluate.rows import Row


class Stub:
    """Answers without a model: `say` gets the question and the image."""

    def __init__(self, say: Callable[[str, Image.Image], str], family: str = "llava") -> None:
        self.codec, self.say = codec(family), say
        self.batches: list[int] = []
        self.generation: dict[str, int] = {}

    def ask(
        self, images: Sequence[Image.Image], questions: Sequence[str], **generation: int
    ) -> list[tuple[str, ImageMeta]]:
        self.batches.append(len(questions))
        self.generation = generation
        said = [self.say(question, image) for image, question in zip(images, questions, strict=True)]
        return list(zip(said, self.metas(images), strict=True))

    def metas(self, images: Sequence[Image.Image]) -> list[ImageMeta]:
        return [ImageMeta((image.height, image.width)) for image in images]


def make_rows(count: int = 10) -> list[Row]:
    """Rows on small images of several shapes, two to an image, with boxes that the LLaVA codec can write."""
    rows = []
    for number in range(count):
        width, height = [(40, 20), (20, 40), (30, 30)][number // 2 % 3]
        box: Box = (2.0, 4.0, 12.0 + number % 5, 16.0)
        rows.append(
            Row(
                id=f"image{number // 2}/{number % 2}",
                image=Image.new("RGB", (width, height), (number, 0, 0)),
                size_hw=(height, width),
                expression=f"thing {number}",
                boxes=(box,),
                category="cup" if number % 2 else "tin",
                kind="side" if number < count // 2 else "colour",
            )
        )
    return rows


def truthful(rows: Sequence[Row], family: str = "llava") -> Callable[[str, Image.Image], str]:
    """What a perfect predictor says: the true box of the expression that the question holds."""

    def say(question: str, image: Image.Image) -> str:
        row = next(row for row in rows if f"{row.expression}." in question or question.endswith(row.expression))
        return codec(family).encode([row.box], ImageMeta(row.size_hw))

    return say


@pytest.fixture
def rows() -> list[Row]:
    return make_rows()


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return int(one.getsockname()[1])

    return find
