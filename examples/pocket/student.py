"""One arm of the experiment while its backbones' features are cached: everything that learns, and nothing else."""

from pathlib import Path

import torch
from questions import VPP_TOKEN, Questions
from torch import Tensor, nn

from vpp_plugins.pocket import build_pocket, pocket_config
from vpp_plugins.prompts import LocalVPP
from vpp_plugins.prompts.generators import DetectionHeads, build_detr
from vpp_plugins.train.packing import Packed, forward_packed


class Student(nn.Module):
    """A LLaVA and, with VPP, the local prompt and its detection heads."""

    def __init__(
        self,
        llava: nn.Module,
        local_vpp: LocalVPP | None = None,
        heads: DetectionHeads | None = None,
        prompt_id: int = -1,
    ) -> None:
        super().__init__()
        self.llava, self.local_vpp, self.heads, self.prompt_id = llava, local_vpp, heads, prompt_id
        width = llava.config.text_config.hidden_size
        # only for the alignment loss: how a corner is read off a projected query
        self.corners = (
            None if local_vpp is None else nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        )

    def image_tokens(self, features: Tensor) -> Tensor:
        """The projected features of cached backbone features."""
        tokens: Tensor = self.llava.model.multi_modal_projector(self.llava.model.vision_tower.embed(features))
        return tokens

    def prompt_tokens(self, coarse: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The detector's queries and their projection; None twice without VPP."""
        if self.local_vpp is None:
            return None, None
        queries = self.local_vpp.generator.queries(coarse)
        return queries, self.local_vpp.projector(queries)

    def forward(self, packed: Packed, image_tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """Hidden states of packed sequences."""
        return forward_packed(self.llava, packed, image_tokens, prompts, prompt_id=self.prompt_id)

    @property
    def table(self) -> Tensor:
        """The word embeddings, which are the output head's weights too."""
        weight: Tensor = self.llava.lm_head.weight
        return weight

    def weights(self) -> dict[str, Tensor]:
        """All weights but the frozen backbones'."""
        return {name: value for name, value in self.state_dict().items() if ".backbone." not in name}


def build_student(arm: str, size: dict[str, int], seed: int, detector: Path | None) -> tuple[Student, Questions]:
    """Build one arm; both arms start from the same language model. `detector` is what pretrain_detector.py wrote."""
    llava, processor = build_pocket(seed=seed, **size)
    tokenizer, tokens = processor.tokenizer, llava.config.image_seq_length
    if arm == "plain":
        return Student(llava), Questions(tokenizer, tokens, 0)
    tokenizer.add_tokens([VPP_TOKEN], special_tokens=True)
    local = pocket_config().local_vpp
    pretrained = torch.load(detector, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        generator = build_detr(num_queries=local.num_queries, **local.generator_options)
        prompts = LocalVPP(
            generator,
            num_queries=local.num_queries,
            query_width=generator.width,
            hidden_size=llava.config.text_config.hidden_size,
            projector_size=local.projector_size,
        )
        heads = DetectionHeads(generator.width, len(pretrained["classes"]))
        student = Student(llava, prompts, heads, tokenizer.convert_tokens_to_ids(VPP_TOKEN))
    missing, foreign = generator.load_state_dict(pretrained["detector"], strict=False)
    if foreign or not all(name.startswith("backbone.") for name in missing):
        raise SystemExit(f"{detector} holds another detector than pocket_config describes: pretrain it again.")
    heads.load_state_dict(pretrained["heads"])
    return student, Questions(tokenizer, tokens, local.num_queries)
