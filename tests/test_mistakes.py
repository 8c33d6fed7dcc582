import pytest

from benchmarks.mistakes import Truth, ceiling, mistakes
from vpp_plugins.boxes import BOX_CODECS, ImageMeta

TRUTHS: list[Truth] = [
    ((100.0, 120.0, 300.0, 300.0), ImageMeta((400, 800), (392, 812))),
    ((10.0, 20.0, 200.0, 390.0), ImageMeta((400, 800), (392, 812))),
    ((30.0, 500.0, 180.0, 700.0), ImageMeta((800, 300), (812, 308))),
]


@pytest.mark.parametrize("family", sorted(name for name, codec in BOX_CODECS.items() if codec.text is not None))
def test_read_as_written_nothing_is_lost(family: str) -> None:
    assert ceiling(family, TRUTHS).acc_75 == 1


def test_what_each_mistake_costs() -> None:
    cost = {name: misread(TRUTHS) for name, misread in mistakes().items()}

    assert cost["padded output scored in the original frame"].acc_75 == 0
    assert cost["pixels of the resized image read as 0-1000"].acc_50 < 1
    assert cost["pixels of the resized image, resize ignored"].mean_iou < ceiling("qwen2.5-vl", TRUTHS).mean_iou
    assert cost["xywh read as xyxy"].mean_iou < 0.5
    assert cost["order y first ignored"].acc_50 == 0
    assert 0.99 < cost["0-999 read as 0-1000"].mean_iou < 1
