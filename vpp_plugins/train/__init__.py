"""Training: `train(Recipe.load("recipe.toml"))`.

`recipe` reads what a run is; `run` goes from it to trained weights: `data`, `chat` and `collate` make the batches,
`build` the model, `trainer` is transformers' Trainer, `preflight` checks that gradients arrive, `checkpoints` keeps
folders whole, and `watch` writes the page of a run.

`detector` pretrains the local prompt's DETR on boxes (`boxed_images`); `detection_loss` is its loss, and
`auxiliary_detection` the same beside the language model's, in a run by `detection_trainer`. `data` is
a recipe's. `rewards` are for TRL's GRPO, and `grpo` is its trainer for attached models.

For small models from scratch: `turns_apart` asks all questions about
an image in one sequence, `coordinates` softens the numbers of boxes and hides them, `word_alignment` aligns the
image's tokens with words, and `muon` is an optimizer for matrices.

`labels` marks the answers of a chat among the ids that a processor made of it; `groups` sorts a model's parameters into
named groups and holds the learning rates of VPP-LLaVA, and `schedules` how they change; `lora` names LoRA's targets.
"""

from vpp_plugins.errors import named_extras

with named_extras("train"):
    from vpp_plugins.data import Mixture
    from vpp_plugins.train.groups import PARTS, PRESETS, Part, choose_parts, parameter_groups
    from vpp_plugins.train.grpo import VPPGRPOTrainer
    from vpp_plugins.train.labels import Labels, NoAnswerError, RenderedChat, label_answers, render_chat
    from vpp_plugins.train.lora import lora_targets
    from vpp_plugins.train.recipe import Recipe
    from vpp_plugins.train.rewards import BoxReward, NoRewardWarning, Rewards, rewards
    from vpp_plugins.train.run import Trained, preview_sample, train


__all__ = [
    "PARTS",
    "PRESETS",
    "BoxReward",
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
    "label_answers",
    "lora_targets",
    "parameter_groups",
    "preview_sample",
    "render_chat",
    "rewards",
    "train",
]
