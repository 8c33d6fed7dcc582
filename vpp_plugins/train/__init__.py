"""Training: `train(Recipe.load("recipe.toml"))`.

`recipe` reads what a run is, and `run` goes from it to trained weights: `model` loads the host and its prompts; the
samples of its `data` become a chat (`chat`), ids with the answers' labels (`labels`) and a batch (`collate`, or
`packing` for all questions about an image in one sequence); `trainer` is transformers' Trainer, and `losses` are added
to the answer's own.

`groups` sorts a model's parameters into named parts and holds the learning rates of VPP-LLaVA; `optim` has Muon, the
parts' schedules and an average of the weights; `preflight` checks that gradients arrive; `checkpoints` keeps the run's
folder, `cost` what it has cost; `distributed` is for FSDP and DeepSpeed; `evaluation` asks the model while it learns,
`forgetting` whether it still answers chats (`self_distillation` writes some to mix in), `console` says how it goes, and
`report` writes the page of a run.

`machine` says what a run needs and what is not there; `trial` tries a recipe on one of the `tiny_hosts`.

`detector` pretrains the local prompt's DETR on boxes. `rewards` are for TRL's GRPO, and `grpo` is its trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vpp_plugins.errors import named_extras

if TYPE_CHECKING:
    from vpp_plugins.train.groups import PRESETS, Part, choose_parts, lora_targets, parameter_groups
    from vpp_plugins.train.grpo import VPPGRPOTrainer
    from vpp_plugins.train.labels import Labels, NoAnswerError, RenderedChat, label_answers, render_chat
    from vpp_plugins.train.run import Trained, preview_sample, train
    from vpp_plugins.train.self_distillation import plain_questions, read_questions, write_chats
    from vpp_plugins.train.trial import DryRun, dry_run

with named_extras("train"):
    from vpp_plugins.data import Mixture
    from vpp_plugins.train.recipe import PARTS, Recipe
    from vpp_plugins.train.rewards import BoxReward, NoRewardWarning, Rewards, rewards

_LATER = {
    "groups": ("PRESETS", "Part", "choose_parts", "lora_targets", "parameter_groups"),
    "grpo": ("VPPGRPOTrainer",),
    "labels": ("Labels", "NoAnswerError", "RenderedChat", "label_answers", "render_chat"),
    "run": ("Trained", "preview_sample", "train"),
    "self_distillation": ("plain_questions", "read_questions", "write_chats"),
    "trial": ("DryRun", "dry_run"),
}
"""Files whose names are imported when they are asked for: torch, transformers and TRL take seconds, and a recipe is
read, and refused, without them."""


__all__ = [
    "PARTS",
    "PRESETS",
    "BoxReward",
    "DryRun",
    "Labels",
    "Mixture",
    "NoAnswerError",
    "NoRewardWarning",
    "Part",
    "Recipe",
    "RenderedChat",
    "Rewards",
    "Trained",
    "VPPGRPOTrainer",
    "choose_parts",
    "dry_run",
    "label_answers",
    "lora_targets",
    "parameter_groups",
    "plain_questions",
    "preview_sample",
    "read_questions",
    "render_chat",
    "rewards",
    "train",
    "write_chats",
]


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _LATER.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'vpp_plugins.train' has no attribute '{name}'")
    with named_extras("train"):
        return getattr(import_module(f"{__name__}.{home}"), name)
