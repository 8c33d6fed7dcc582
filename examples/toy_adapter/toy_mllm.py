"""ToyMLLM, the host of this example: a multimodal LLM as small as can be, in the manner of transformers."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BatchFeature,
    CLIPImageProcessor,
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.modeling_outputs import CausalLMOutputWithPast


class ToyConfig(PreTrainedConfig):
    """A Llama's configuration and the token that stands for a patch of a picture."""

    model_type = "toy_mllm"
    sub_configs = {"text_config": LlamaConfig}
    text_config: LlamaConfig | dict[str, Any] | None = None
    image_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, LlamaConfig):
            self.text_config = LlamaConfig(**(self.text_config or {}))
        super().__post_init__(**kwargs)


class Eye(nn.Module):
    """Pictures to four features each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map [images, 3, height, width] to [images, 4, 16]."""
        return nn.functional.adaptive_avg_pool2d(self.patches(pictures).tanh(), 2).flatten(2).mT


class ToyMLLM(PreTrainedModel, GenerationMixin):
    """An eye, a bridge and a Llama."""

    config_class = ToyConfig
    input_modalities = ("image", "text")

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.eye, self.bridge = Eye(), nn.Linear(16, hidden)
        self.language_model = LlamaModel(config.text_config)
        self.head = nn.Linear(hidden, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of the tokens."""
        return self.language_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Put the pictures' features where their tokens stand, and run the Llama, which gets its cache by `kwargs`."""
        embedded = self.get_input_embeddings()(input_ids)
        seen = input_ids == self.config.image_token_id
        if pixel_values is not None and seen.any():  # not in later steps of generate
            embedded = embedded.masked_scatter(seen[..., None], self.bridge(self.eye(pixel_values)).to(embedded))
        outputs = dict(self.language_model(inputs_embeds=embedded, attention_mask=attention_mask, **kwargs))
        logits = self.head(outputs.pop("last_hidden_state"))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **outputs)


class ToyProcessor(ProcessorMixin):
    """Texts in which `<image>` stands for a picture, and the pictures."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token = "<image>"
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Return `input_ids` with a token for each of a picture's features, and `pixel_values`."""
        texts = [text] if isinstance(text, str) else list(text)
        inputs = dict(self.tokenizer([one.replace("<image>", "<image>" * 4) for one in texts], **kwargs))
        if images is not None:
            nested = images if isinstance(images, list) else [images]
            flat = [picture for part in nested for picture in (part if isinstance(part, list) else [part])]
            inputs["pixel_values"] = self.image_processor(flat, return_tensors="pt")["pixel_values"]
        return BatchFeature(inputs)


def tiny_toy_mllm() -> tuple[ToyMLLM, ToyProcessor]:
    """Return a random ToyMLLM of two layers and its processor, for tests."""
    words = {word: i for i, word in enumerate("<pad> <s> </s> <image> what is left of this where are they ?".split())}
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = ToyMLLM(ToyConfig(text_config={**text, **heads, "pad_token_id": 0}, image_token_id=words["<image>"])).eval()

    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["<image>"], special_tokens=True)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False, **half)
    return model, ToyProcessor(images, fast)
