"""What losses on attention heads share: head k of the last layer, k = 0 to 3, stands for coordinate k of a box.

Fused attention returns no weights, so a loss computes what it needs from the layer's own inputs and matrices.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.train.losses.coordinates import coordinate_ids
from vpp_plugins.train.losses.evidence import EvidenceLoss
from vpp_plugins.train.losses.pointing import decoder_layers

COORDINATES = 4
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}


class HeadLoss(EvidenceLoss):
    """A loss on the attention of the last layer; refused where it is not Llama's kind."""

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model, processor)
        self.register_buffer("coordinates", coordinate_ids(processor.tokenizer), persistent=False)
        attention = dict(decoder_layers(self.host, self.name)[-1].named_children()).get("self_attn", nn.Identity())
        text = self.host.config.get_text_config()
        parts = dict(attention.named_children())
        several = "mrope_section" in (text.to_dict().get("rope_parameters") or {})
        if not parts.keys() >= PROJECTIONS or "q_norm" in parts or several or text.num_attention_heads < COORDINATES:
            raise VPPError(
                f"the loss '{self.name}' needs a last layer of at least {COORDINATES} heads with q_proj, k_proj, "
                "v_proj and o_proj, no norms in between and positions along one axis, as Llama has them, which this "
                f"'{text.model_type}' does not: leave it out; 'pointing' works on any host."
            )
        self._attention = (attention,)
        self.heads, self.key_heads = text.num_attention_heads, text.num_key_value_heads
        self.catch_inputs("attention", attention)

    def projected(self, name: str, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch heads dim"]:
        """Return queries, keys or values by head; where several heads share keys, for each of them."""
        heads = self.heads if name == "q_proj" else self.key_heads
        made = self._attention[0].get_submodule(name)(hidden).float().unflatten(-1, (heads, -1))
        shared: Tensor = made.repeat_interleave(self.heads // heads, dim=-2)
        return shared
