"""Tokens that generate must never answer: the placeholder, and those that an adapter names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpp_plugins.attach.session import HostState
from vpp_plugins.prompts import VPP


class NeverTokens:
    """A logits processor that makes tokens impossible; separate from `suppress_tokens`, which stays the user's."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., [i for i in self.token_ids if i < scores.shape[-1]]] = -torch.inf  # some hosts embed more than that
        return scores


def with_never(given: Any, state: HostState, vpp: VPP) -> Any:
    """Return the given logits processors, None is none, with NeverTokens among them where there is need."""
    token_ids = {*state.backbone.never_ids, *([] if vpp.token_id is None else [vpp.token_id])}
    covered = any(isinstance(one, NeverTokens) and token_ids <= {*one.token_ids} for one in given or ())
    if state.disabled or covered or not token_ids:
        return given
    from transformers import LogitsProcessorList

    return LogitsProcessorList([*(given or []), NeverTokens(sorted(token_ids))])
