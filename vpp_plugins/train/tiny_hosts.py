"""Tiny random hosts of every named family, with the family's real processor and a toy tokenizer. Nothing is downloaded.

`FAMILIES[name].model()` takes milliseconds to build and to run. Their answers mean nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", "where", "is", "the", "cup", "red", "."]
ROWS = 60
"""Rows of every vocabulary: more than the words and markers of any family, so that spare ones are there."""
VISION = {"<|vision_start|>": "vision_bos_token", "<|vision_end|>": "vision_eos_token"}
QWEN = VISION | {"<|image_pad|>": "image_token", "<|video_pad|>": "video_token"}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CHATML = ["<|im_start|>", "<|im_end|>"]
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@dataclass(frozen=True)
class TinyFamily:
    """How to build a tiny host and its processor."""

    host: str
    """transformers' class of the host."""
    build: Callable[[], Any]
    processor: Callable[[], Any]
    image: str
    """How one image stands in the text."""

    def model(self, seed: int = 0) -> Any:
        """Build the random host; its generate does not stop before its limit."""
        torch.manual_seed(seed)
        model = self.build().eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model


def tokenizer(named: dict[str, str], others: Sequence[str] = ()) -> Any:
    """Return a tokenizer of whole words; `named` are special tokens that the family's processor asks for by name."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={name: token for token, name in named.items()},
    )
    fast.add_tokens([*named, *others], special_tokens=True)
    return fast


def chat(image: str, user: str, end: str, assistant: str) -> str:
    """Return a chat template: what stands for an image, before a user's turn, after it, and before the answer."""
    parts = "{% for p in m.content %}{{ " + repr(image) + " if p.type == 'image' else p.text }}{% endfor %}"
    turn = f"{{% if m.role == 'user' %}}{user}{parts}{end}{{% else %}}{assistant}{parts}{end}{{% endif %}}"
    answer = f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    return f"{{% for m in messages %}}{turn}{{% endfor %}}{answer}"


def chatml(image: str) -> str:
    """Return the template that Qwen and InternVL share."""
    return chat(image, "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")


def ids(named: dict[str, str], *tokens: str) -> list[int]:
    """Return the ids that tokens have in a family's toy tokenizer."""
    return [int(tokenizer(named, CHATML).convert_tokens_to_ids(token)) for token in tokens]


TEXT: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # the usual 0.02 would leave so small a host almost deaf to its images
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CLIP: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]


def llava() -> Any:
    """Build LLaVA 1.5's class."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=12,
    )
    return transformers.LlavaForConditionalGeneration(config)


def llava_processor() -> Any:
    """Build its processor."""
    return transformers.LlavaProcessor(
        transformers.LlavaImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer({"<image>": "image_token"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat("<image>\n", "USER: ", " ", "ASSISTANT: "),
    )


def llava_next() -> Any:
    """Build LLaVA-NeXT's class, which cuts images into tiles."""
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        text_config=transformers.LlamaConfig(**TEXT),
        image_grid_pinpoints=PINPOINTS,
        image_token_index=12,
    )
    return transformers.LlavaNextForConditionalGeneration(config)


def llava_next_processor() -> Any:
    """Build its processor."""
    return transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer({"<image>": "image_token"}, ["[INST]", "[/INST]"]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat("<image>\n", "[INST] ", " [/INST]", " "),
    )


def llava_onevision() -> Any:
    """Build LLaVA-OneVision's class."""
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**CLIP, vision_use_head=False),
        text_config=transformers.Qwen2Config(**TEXT),
        image_grid_pinpoints=PINPOINTS,
        image_token_index=12,
        video_token_index=13,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def llava_onevision_processor() -> Any:
    """Build its processor."""
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(
            size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS, **HALF
        ),
        tokenizer({"<image>": "image_token", "<video>": "video_token"}, CHATML),
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chatml("<image>\n"),
    )


def qwen(kind: str, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """Build the host of a Qwen-VL generation by the beginning of its class's name."""
    start, end, image, video = ids(QWEN, *QWEN)
    config = getattr(transformers, f"{kind}Config")(
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 4, "initializer_range": 0.1, **vision},
        text_config={**TEXT, "rope_parameters": rope([1, 1, 2]), **text},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def rope(sections: list[int], **more: Any) -> dict[str, Any]:
    """Return rotary positions of three axes (M-RoPE)."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **more}


def qwen_processor(kind: str, video: str, **images: Any) -> Any:
    """Build the processor of a Qwen-VL generation; `video` is its video processor's class."""
    return getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(
            patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}, **images
        ),
        tokenizer(QWEN, CHATML),
        getattr(transformers, video)(),
        chat_template=chatml(QWEN_IMAGE),
    )


QWEN3_VISION = {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 64}
WINDOWED_VISION = {  # windows of two by two merged patches in the first block, all of the image in the second
    "hidden_size": 16,
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "rope_parameters": rope([1, 1, 2], partial_rotary_factor=0.5),
}


def internvl() -> Any:
    """Build InternVL's class, which cuts images into tiles."""
    (image,) = ids(INTERNVL, "<IMG_CONTEXT>")
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            **vision, image_size=(32, 32), patch_size=(8, 8), initializer_range=0.1, use_mean_pooling=False
        ),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=image,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return transformers.InternVLForConditionalGeneration(config)


INTERNVL = {
    "<img>": "start_image_token",
    "</img>": "end_image_token",
    "<IMG_CONTEXT>": "context_image_token",
    "<video>": "video_token",
}


def internvl_processor() -> Any:
    """Build its processor."""
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, max_patches=4, **IMAGENET),
        tokenizer(INTERNVL, CHATML),
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )


ALL = {
    "llava": TinyFamily("LlavaForConditionalGeneration", llava, llava_processor, "<image>"),
    "llava_next": TinyFamily("LlavaNextForConditionalGeneration", llava_next, llava_next_processor, "<image>"),
    "llava_onevision": TinyFamily(
        "LlavaOnevisionForConditionalGeneration", llava_onevision, llava_onevision_processor, "<image>"
    ),
    "qwen2_vl": TinyFamily(
        "Qwen2VLForConditionalGeneration",
        lambda: qwen("Qwen2VL", {"embed_dim": 16, "hidden_size": 32}, {}),
        lambda: qwen_processor("Qwen2VL", "Qwen2VLVideoProcessor"),
        QWEN_IMAGE,
    ),
    "qwen2_5_vl": TinyFamily(
        "Qwen2_5_VLForConditionalGeneration",
        lambda: qwen("Qwen2_5_VL", WINDOWED_VISION, {}),
        lambda: qwen_processor("Qwen2_5_VL", "Qwen2VLVideoProcessor"),
        QWEN_IMAGE,
    ),
    "qwen3_vl": TinyFamily(
        "Qwen3VLForConditionalGeneration",
        lambda: qwen("Qwen3VL", {**QWEN3_VISION, "deepstack_visual_indexes": [0]}, {"head_dim": 8}),
        lambda: qwen_processor("Qwen3VL", "Qwen3VLVideoProcessor", **HALF),
        QWEN_IMAGE,
    ),
    "qwen3_vl_moe": TinyFamily(
        "Qwen3VLMoeForConditionalGeneration",
        lambda: qwen("Qwen3VLMoe", {**QWEN3_VISION, "deepstack_visual_indexes": [0]}, {"head_dim": 8, **EXPERTS}),
        lambda: qwen_processor("Qwen3VL", "Qwen3VLVideoProcessor", **HALF),
        QWEN_IMAGE,
    ),
    "qwen3_5": TinyFamily(
        "Qwen3_5ForConditionalGeneration",
        lambda: qwen("Qwen3_5", QWEN3_VISION, LINEAR),
        lambda: qwen_processor("Qwen3VL", "Qwen3VLVideoProcessor", **HALF),
        QWEN_IMAGE,
    ),
    "qwen3_5_moe": TinyFamily(
        "Qwen3_5MoeForConditionalGeneration",
        lambda: qwen("Qwen3_5Moe", QWEN3_VISION, {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16}),
        lambda: qwen_processor("Qwen3VL", "Qwen3VLVideoProcessor", **HALF),
        QWEN_IMAGE,
    ),
    "internvl": TinyFamily("InternVLForConditionalGeneration", internvl, internvl_processor, "<IMG_CONTEXT>"),
}
FAMILIES = {name: family for name, family in ALL.items() if family.host in dir(transformers)}
"""The families that the installed transformers has."""


def tiny_host(name: str) -> tuple[Any, Any]:
    """Return a random host of a family and its processor."""
    return FAMILIES[name].model(), FAMILIES[name].processor()
