"""supervision's own annotator, on the Detections of a Grounding."""

from pathlib import Path

import pytest

from tests.ecosystem.peers.kits import run_kit

pytestmark = pytest.mark.slow

SCRIPT = """
import numpy as np
import supervision
from PIL import Image
from vpp_plugins import Grounding
from vpp_plugins.boxes import BoxStatus

image = Image.new("RGB", (40, 20))
boxes = ((1.0, 2.0, 11.0, 12.0), (20.0, 2.0, 39.0, 18.0))
two = Grounding(image, "cups", boxes, ("red cup", None), (BoxStatus.OK,) * 2, "")
none = Grounding(image, "tin", (), (), (BoxStatus.NONE,), "")
found = two.to_supervision()
assert isinstance(found, supervision.Detections) and found.area.tolist() == [100.0, 304.0]
assert found["class_name"].tolist() == ["red cup", "cups"]
drawn = supervision.BoxAnnotator().annotate(np.array(image), found)
assert drawn.any() and drawn.shape == (20, 40, 3)
merged = supervision.Detections.merge([found, none.to_supervision()])
assert merged.xyxy.tolist() == found.xyxy.tolist() and merged[merged.area > 200]["class_name"].tolist() == ["cups"]
"""


def test_a_grounding_is_drawn_and_merged(tmp_path: Path) -> None:
    run_kit("supervision", ["-c", SCRIPT], tmp_path)
