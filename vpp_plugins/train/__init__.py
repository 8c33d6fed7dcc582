"""Training: which tokens of a chat are learned, which parameters learn at which rate, and where LoRA may go.

`labels` marks the answers of a chat among the ids that a processor made of it; `groups` sorts a model's parameters into
named groups and holds the learning rates of VPP-LLaVA; `lora` names LoRA's targets.
"""

from vpp_plugins.train.groups import PARTS, PRESETS, Part, choose_parts, parameter_groups
from vpp_plugins.train.labels import Labels, NoAnswerError, RenderedChat, label_answers, render_chat
from vpp_plugins.train.lora import lora_targets

__all__ = [
    "PARTS",
    "PRESETS",
    "Labels",
    "NoAnswerError",
    "Part",
    "RenderedChat",
    "choose_parts",
    "label_answers",
    "lora_targets",
    "parameter_groups",
    "render_chat",
]
