"""What a mistake in the frame, the unit or the order costs a perfect predictor: `python -m benchmarks.mistakes`.

On the 50 hand-drawn boxes of the committed photographs. Qwen's families see the image resized to multiples of 28.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vpp_plugins.boxes import BOX_CODECS, Box, BoxCodec, ImageMeta, Rounded, codec
from vpp_plugins.data.scenes import load_real_photos
from vpp_plugins.evaluate import Scores, score

Truth = tuple[Box, ImageMeta]
"""A box in pixels of its original image, and the sizes of that image."""


def run() -> None:
    truths = photo_boxes()
    print(f"A perfect predictor on {len(truths)} boxes, read as it wrote them (Acc@0.5, @0.75, @0.9, mean IoU):")
    for family in sorted(name for name, one in BOX_CODECS.items() if one.text is not None):
        _row(family, ceiling(family, truths))
    print("\nThe same predictor, misread:")
    for mistake, misread in mistakes().items():
        _row(mistake, misread(truths))


def photo_boxes() -> list[Truth]:
    return [
        (
            tuple(map(float, expression.box_xyxy)),
            ImageMeta((scene.height, scene.width), resized(scene.height, scene.width)),
        )
        for scene in load_real_photos()
        for expression in scene.expressions
    ]


def resized(height: int, width: int) -> tuple[int, int]:
    """The size that Qwen2.5-VL's processor makes of an image, of at most 1280 x 28 x 28 pixels."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    new_height, new_width = smart_resize(height, width, factor=28, max_pixels=1280 * 28 * 28)
    return new_height, new_width


def ceiling(family: str, truths: Sequence[Truth]) -> Scores:
    """Return the scores of a perfect predictor that writes and reads as the family does; rounding costs the rest."""
    return _misread(codec(family), codec(family), truths)


def mistakes() -> dict[str, Callable[[Sequence[Truth]], Scores]]:
    """Return, by name, how each mistake is made; each maps true boxes to the scores of a perfect predictor."""
    llava, pixels, paligemma, qwen = codec("llava"), codec("qwen2.5-vl"), codec("paligemma"), codec("qwen-vl")
    thousand = replace(pixels, frame="image", scale=Rounded(1000))
    x_first = replace(paligemma, scale=Rounded(1023))
    return {
        "padded output scored in the original frame": lambda t: _misread(llava, replace(llava, frame="image"), t),
        "pixels of the resized image read as 0-1000": lambda t: _misread(pixels, thousand, t),
        "pixels of the resized image, resize ignored": lambda t: _misread(pixels, pixels, t, resized=False),
        "xywh read as xyxy": _as_corners,
        "order y first ignored": lambda t: _misread(paligemma, x_first, t),
        "0-999 read as 0-1000": lambda t: _misread(qwen, replace(qwen, scale=Rounded(1000)), t),
    }


def _misread(writer: BoxCodec, reader: BoxCodec, truths: Sequence[Truth], *, resized: bool = True) -> Scores:
    found: list[Box | None] = []
    for box, meta in truths:
        seen = meta if resized else replace(meta, processed_size_hw=meta.size_hw)
        boxes = reader.decode(writer.encode([box], meta), seen).boxes_xyxy_px
        found.append(boxes[0] if boxes else None)
    return score(found, [box for box, _ in truths])


def _as_corners(truths: Sequence[Truth]) -> Scores:
    """Width and height taken for the far corner; corners in the wrong order are exchanged, as codecs do."""
    found: list[Box | None] = []
    for (x1, y1, x2, y2), _ in truths:
        right, bottom = x2 - x1, y2 - y1
        found.append((min(x1, right), min(y1, bottom), max(x1, right), max(y1, bottom)))
    return score(found, [box for box, _ in truths])


def _row(name: str, scores: Scores) -> None:
    at = " ".join(f"{100 * accuracy:5.1f}" for accuracy in (scores.acc_50, scores.acc_75, scores.acc_90))
    print(f"  {name:48} {at}  IoU {scores.mean_iou:.3f}")


if __name__ == "__main__":
    run()
