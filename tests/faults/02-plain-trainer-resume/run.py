import sys; sys.path.insert(0, __import__("os").path.join(__import__("os").path.dirname(__import__("os").path.abspath(__file__)), ".."))
from _common import *
import torch, tiny_hosts, transformers
from transformers import Trainer, TrainingArguments
from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPProcessor, attach_vpp, load_vpp
from tests.tiny import image as picture
transformers.logging.set_verbosity_error()
GEN = dict(backbone="resnet10t", width=32, heads=4, feedforward=32, encoder_layers=1, decoder_layers=1, dropout=0.0)
CFG = VPPConfig(global_vpp=GlobalVPPConfig(size=32, border=4), local_vpp=LocalVPPConfig(num_queries=4, image_size=64, projector_size=16, generator_options=GEN))
F = tiny_hosts.FAMILIES["qwen3_vl"]  # transformers' own resume of the bare host is exact here
def build(attach=True):
    m, p = F.model(), F.processor()
    if attach: attach_vpp(m, CFG); p = VPPProcessor(p, m); m.vpp.trained = True
    p.tokenizer.padding_side = "right"; rows = []
    for i in range(8):
        d = dict(p(images=[picture(i, (64, 64))], text=F.image + " where is the red cup", return_tensors="pt"))
        d["labels"] = d["input_ids"].clone(); d["labels"][d["labels"] > 11] = -100; rows.append(d)
    return m, rows
coll = lambda rows: {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
def train(m, rows, out, resume=None, **more):
    a = TrainingArguments(output_dir=out, per_device_train_batch_size=2, max_steps=4, save_steps=2, learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=0, **more)
    t = Trainer(model=m, args=a, train_dataset=rows, eval_dataset=rows[:4], data_collator=coll); t.train(resume_from_checkpoint=resume); return t
far = lambda a, b: max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters()))
out = tempfile.mkdtemp(); bare, rows = build(False); train(bare, rows, out); again, rows = build(False); train(again, rows, out, out + "/checkpoint-2")
bare_off = far(bare, again)
out = tempfile.mkdtemp(); whole, rows = build(); train(whole, rows, out); resumed, rows = build(); train(resumed, rows, out, out + "/checkpoint-2")
print("  bare host, resumed against uninterrupted:", bare_off, "| attached: prompts", far(whole.vpp, resumed.vpp))
out = tempfile.mkdtemp(); m, rows = build(); t = train(m, rows, out, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_loss", greater_is_better=True)
best, _ = build(); load_vpp(best, t.state.best_model_checkpoint); last, _ = build(); load_vpp(last, out + "/checkpoint-4")
print("  best is", t.state.best_model_checkpoint[-12:], "| prompts: off from best", far(m.vpp, best.vpp), "off from last", far(m.vpp, last.vpp))
verdict({"bare host resumes exactly (control)": bare_off == 0, "attached model resumes to the same prompts": far(whole.vpp, resumed.vpp) == 0, "load_best_model_at_end brings the best prompts": far(m.vpp, best.vpp) == 0})
