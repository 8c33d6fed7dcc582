import sys; sys.path.insert(0, __import__("os").path.join(__import__("os").path.dirname(__import__("os").path.abspath(__file__)), ".."))
from _common import *
import tiny_hosts, transformers
from vpp_plugins import VPPProcessor, attach_vpp
from vpp_plugins.boxes import box_iou, codec
from tests.tiny import image as picture, tiny_config
transformers.logging.set_verbosity_error()
f = tiny_hosts.FAMILIES["qwen2_5_vl"]; photo = picture(0, (640, 480)); truth = (160.0, 120.0, 480.0, 360.0); checks = {}
def shown(inputs, p):  # the size in which the host really gets the picture
    _, h, w = inputs["image_grid_thw"][0].tolist(); s = p.image_processor.patch_size; return h * s, w * s
def case(name, before=lambda hp: None, **call):
    hp = f.processor(); before(hp); m = f.model(); attach_vpp(m, tiny_config()); p = VPPProcessor(hp, m)
    real = shown(p(images=[photo], text=f.image + " the cup", return_tensors="pt", **call), p); meta = p.image_metas([photo])[0]; said = meta.processed_size_hw
    perfect = [truth[0] * real[1] / 640, truth[1] * real[0] / 480, truth[2] * real[1] / 640, truth[3] * real[0] / 480]  # what a perfect Qwen2.5-VL answers
    got = codec("qwen2.5-vl").decode(str([round(v) for v in perfect]), meta); iou = box_iou(got.boxes_xyxy_px[0], truth)
    print(f"  {name:44} shown at {real}, image_metas says {said}: a perfect answer gets IoU {iou:.2f} ({got.statuses[0].value})"); checks[name] = real == said
def attributes(hp): hp.image_processor.min_pixels, hp.image_processor.max_pixels = 56 * 56, 112 * 112
def size(hp): hp.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
case("as it came"); case("image_processor.size = ...", size); case("image_processor.max_pixels = ...", attributes)
case("processor(..., min_pixels=, max_pixels=)", min_pixels=56 * 56, max_pixels=112 * 112); case("processor(..., images_kwargs={'size': ...})", images_kwargs={"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}})
verdict(checks)
