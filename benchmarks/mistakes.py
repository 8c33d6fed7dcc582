"""What a mistake in the frame, the unit or the order costs a perfect predictor: `python -m benchmarks.mistakes`.

On the 50 hand-drawn boxes of the committed photographs. Qwen's families see the image resized to multiples of 28.
"""

from vpp_plugins.boxes import BOX_CODECS, ImageMeta
from vpp_plugins.data.scenes import load_real_photos
from vpp_plugins.evaluate import Scores, Truth, ceiling, mistakes


def run() -> None:
    truths = photo_boxes()
    print(f"A perfect predictor on {len(truths)} boxes, read as it wrote them (Acc@0.5, @0.75, @0.9, mean IoU):")
    for family in sorted(name for name, codec in BOX_CODECS.items() if codec.text is not None):
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


def _row(name: str, scores: Scores) -> None:
    at = " ".join(f"{100 * accuracy:5.1f}" for accuracy in (scores.acc_50, scores.acc_75, scores.acc_90))
    print(f"  {name:48} {at}  IoU {scores.mean_iou:.3f}")


if __name__ == "__main__":
    run()
