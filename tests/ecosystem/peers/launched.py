"""What `accelerate launch` starts: a loop in accelerate's own words, which leaves each process its prompts."""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from tests.ecosystem.hosts import labels_of
from tests.tiny import ToyPlugin, attached, inputs_for
from vpp_plugins import vpp_of
from vpp_plugins.plugins.registry import manager

manager().register(ToyPlugin(), "toy")
accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
host, processor = attached()
model, optimizer = accelerator.prepare(host.train(), torch.optim.SGD(host.vpp.parameters(), lr=0.1))
inputs = inputs_for(processor, [[2, 1], [1, 1]][accelerator.process_index])
for _ in range(2):
    loss = model(**inputs, labels=labels_of(host, inputs)).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
torch.save(vpp_of(model).state_dict(), f"{sys.argv[1]}/{accelerator.process_index}.pt")
accelerator.wait_for_everyone()
accelerator.end_training()
