import sys; sys.path.insert(0, __import__("os").path.join(__import__("os").path.dirname(__import__("os").path.abspath(__file__)), ".."))
from _common import *
import torch, tiny_hosts, transformers
from vpp_plugins import VPPError, VPPProcessor, attach_vpp
from tests.tiny import image as picture, tiny_config
transformers.logging.set_verbosity_error()
bad = {}
for name in ("llava", "qwen2_5_vl", "internvl"):
    f = tiny_hosts.FAMILIES[name]; m = f.model(); attach_vpp(m, tiny_config()); p = VPPProcessor(f.processor(), m); m.vpp.trained = True
    i = dict(p(images=[picture(0, (64, 40))], text=f.image + " where is the cup", return_tensors="pt")); kw = dict(max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True)
    embeds = m.get_input_embeddings()(i["input_ids"])
    base = m.generate(**i, **kw).logits[0]
    try:
        same = m.generate(**i, inputs_embeds=embeds, **kw).logits[0]
        other = m.generate(**{**i, "vpp_pixel_values": torch.randn_like(i["vpp_pixel_values"])}, inputs_embeds=embeds, **kw).logits[0]
        print(f"  {name:12} off from the ids' own answer: {(same - base).abs().max():.3f}; another picture for the detector changes {(same - other).abs().max():.3f}")
        bad[f"{name}: equal, or refused"] = (same - base).abs().max().item() < 1e-4
    except VPPError as e: print(" ", name, "refused:", e); bad[f"{name}: equal, or refused"] = True
verdict(bad)
