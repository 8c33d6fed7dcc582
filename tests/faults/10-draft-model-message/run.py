import sys; sys.path.insert(0, __import__("os").path.join(__import__("os").path.dirname(__import__("os").path.abspath(__file__)), ".."))
from _common import *
import torch, tiny_hosts, transformers
from vpp_plugins import VPPError, VPPProcessor, attach_vpp
from tests.tiny import image as picture, tiny_config
transformers.logging.set_verbosity_error()
f = tiny_hosts.FAMILIES["llava"]; checks = {}
def made(seed, attach):
    m, p = f.model(seed), f.processor()
    if attach: attach_vpp(m, tiny_config()); p = VPPProcessor(p, m); m.vpp.trained = True
    return m, p
kw = dict(max_new_tokens=4, do_sample=False)
for main_on, draft_on in ((True, False), (True, True), (False, True)):
    m, p = made(0, main_on); d, _ = made(1, draft_on); i = p(images=[picture(0, (64, 40))], text=f.image + " where is the cup", return_tensors="pt")
    try: said = "same as without a draft: " + str(torch.equal(m.generate(**i, **kw), m.generate(**i, **kw, assistant_model=d)))
    except VPPError as e: said = "VPPError: " + str(e)
    print(f"  main {'attached' if main_on else 'bare'}, draft {'attached' if draft_on else 'bare'}: {said}")
    checks[f"main {main_on}, draft {draft_on}: works, or the sentence speaks of the draft"] = said.endswith("True") or any(w in said for w in ("assistant", "draft"))
verdict(checks)
