"""What an architecture's toy configuration needs beyond the rules of `shrink.py`: settings that must fit each other."""

from typing import Any

_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_MROPE_TEXT = {"text_config.rope_parameters": _MROPE}
_OMNI = _MROPE_TEXT | {"vision_start_token_id": 110, "vision_end_token_id": 111}
_VISUAL_TOKENS = {f"<|visual token {i:06d}|>": 120 + i for i in range(16)}
_TINY_VQ = {
    "vq_config.base_channels": 32,
    "vq_config.channel_multiplier": [1, 1],
    "vq_config.num_res_blocks": 1,
    "vq_config.num_embeddings": 16,
}
_GEMMA4_TEXT = {"text_config.global_head_dim": 16, "text_config.num_key_value_heads": 2}
_GEMMA4_VISION = {
    "vision_config.num_hidden_layers": 2,
    "vision_config.hidden_size": 32,
    "vision_config.intermediate_size": 64,
    "vision_config.num_attention_heads": 4,
    "vision_config.num_key_value_heads": 4,
    "vision_config.head_dim": 8,
    "vision_config.patch_size": 4,
    "vision_config.pooling_kernel_size": 2,
    "vision_config.position_embedding_size": 16,
}
_MOE = {"text_config.num_experts": 4, "text_config.top_k_experts": 2, "text_config.moe_intermediate_size": 16}
_NEXT = {"image_grid_pinpoints": [[32, 64], [64, 32]], "vision_config.image_size": 32, "vision_config.patch_size": 8}
_INTERN = {"vision_config.image_size": [32, 32], "vision_config.patch_size": [8, 8]}
_GEMMA3 = {"mm_tokens_per_image": 4}
_MUSE = {"out_hidden_size": 128, "vision_config.hidden_size": 32}
_DEEP = {"vision_config.deepstack_visual_indexes": [0, 1]}
_GRANITE = {f"text_config.{name}_multiplier": 1.0 for name in ("attention", "embedding", "residual")}
_GRANITE |= {"text_config.logits_scaling": 1.0}
_MINICPM = {"image_token_id": 100, "vision_config.patch_size": 4, "vision_config.insert_layer_id": 0}
_GOT = {"vision_config.image_size": 128, "vision_config.global_attn_indexes": [1], "vision_config.window_size": 4}
_SAM = {
    "vision_config.sam_config.image_size": 128,
    "vision_config.sam_config.global_attn_indexes": [1],
    "vision_config.sam_config.window_size": 4,
    "vision_config.sam_config.downsample_channels": [32, 32],
}


def _letters(number: int) -> str:
    """Chameleon writes the digits of a code as letters: 12 is BC."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


SETTINGS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 100, "num_query_tokens": 4},
    "chameleon": {
        "image_token_id": 100,
        "vocabulary_map": {"<image>": 100} | {f"IMGIMG{_letters(i)}Z": 120 + i for i in range(16)},
        "vq_config.resolution": 16,
        **_TINY_VQ,
    },
    "cohere_compass": _DEEP | {"text_config.rope_parameters": {"full_attention": _MROPE}},
    "cosmos3_edge": _MROPE_TEXT,
    "cosmos3_omni": _MROPE_TEXT | _DEEP,
    "deepseek_ocr2": {**_SAM, "text_config.num_experts_per_tok": 2, "text_config.mlp_layer_types": ["dense", "sparse"]},
    "deepseek_vl_hybrid": {"high_res_vision_config.image_size": 128, "high_res_vision_config.global_attn_indexes": [1]},
    "diffusion_gemma": _GEMMA4_TEXT | _GEMMA4_VISION | _MOE | {"canvas_length": 8},
    "dots3_note": {
        "text_config.num_key_value_heads": 4,
        "text_config.swa_num_attention_heads": 4,
        "text_config.swa_num_key_value_heads": 4,
        "text_config.swa_q_lora_rank": 16,
        "text_config.swa_kv_lora_rank": 16,
        "text_config.swa_head_dim": 16,
        "text_config.swa_qk_nope_head_dim": 8,
        "text_config.swa_v_head_dim": 8,
        "audio_config.adapter_input_size": 32,
        "vision_config.patch_size": 4,
    },
    "emu3": {
        "image_token_id": 100,
        "vocabulary_map": {"<image>": 100, "<|extra_200|>": 101} | _VISUAL_TOKENS,
        "vq_config.codebook_size": 16,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.num_res_blocks": 1,
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {**_MROPE, "mrope_section": [1, 1, 2]},
        "text_config.moe_intermediate_size": [16, 16],
        "vision_config.patch_size": 4,
    },
    "fast_vlm": {
        "vision_config.architecture": "test_convnext",
        "vision_config.model_args": {},
        "vision_config.hidden_size": 64,
    },
    "florence2": {
        "vision_config.depths": [1, 1],
        "vision_config.patch_size": [4, 3],
        "vision_config.patch_stride": [4, 2],
        "vision_config.patch_padding": [0, 1],
        "vision_config.patch_prenorm": [False, True],
        "vision_config.embed_dim": [16, 32],
        "vision_config.num_heads": [2, 4],
        "vision_config.num_groups": [2, 4],
        "vision_config.window_size": 4,
    },
    "gemma3": _GEMMA3,
    "gemma3n": {
        "text_config.num_kv_shared_layers": 0,
        "text_config.intermediate_size": 64,
        "vision_config.architecture": "test_convnext",
        "vision_config.hidden_size": 64,
        "vision_soft_tokens_per_image": 4,
        "vision_config.vocab_offset": 256,
        "vision_config.vocab_size": 8,
        "audio_config.vocab_offset": 264,
        "audio_config.vocab_size": 8,
    },
    "gemma4": _GEMMA4_TEXT | _GEMMA4_VISION,
    "gemma4_unified": _GEMMA4_TEXT
    | {
        "vision_config.patch_size": 4,
        "vision_config.pooling_kernel_size": 2,
        "vision_config.mm_embed_dim": 32,
        "vision_config.output_proj_dims": 32,
        "vision_config.mm_posemb_size": 16,
    },
    "glm46v": _MROPE_TEXT,
    "glm4v": _MROPE_TEXT,
    "glm4v_moe": {
        "text_config.rope_parameters": {**_MROPE, "partial_rotary_factor": 0.5},
        "text_config.head_dim": 16,
    },
    "glm5_next": {"text_config.num_key_value_heads": 4},
    "glm_ocr": _MROPE_TEXT,
    "glmga": _MROPE_TEXT,
    "got_ocr2": _GOT,
    "granite4_vision": {
        **_NEXT,
        "deepstack_layer_map": [[-2, 0]],
        "spatial_target_layers": [0, 1, 0, 1],
        "downsample_rate": "1/2",
        "vision_config.hidden_size": 128,
        "vision_feature_select_strategy": "full",
        "vision_config.model_type": "siglip_vision_model",
        "qformer_config.hidden_size": 128,
        "qformer_config.encoder_hidden_size": 128,
        "qformer_config.num_attention_heads": 2,
        **_GRANITE,
    },
    "granite_docling": _DEEP,
    "hunyuan_vl": {
        "text_config.head_dim": 8,
        "text_config.rope_parameters": _MROPE,
        "vision_config.max_image_size": 64,
    },
    "hyperclovax_vision_v2": {},
    "idefics": {"image_token_id": 100},
    "inkling2": {"vision_config.patch_size": 4},
    "inkling_mm_model": {"audio_config.n_mel_bins": 4, "audio_config.mel_vocab_size": 16},
    "instructblip": {"image_token_index": 100, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 100, "num_query_tokens": 4},
    "internvl": _INTERN,
    "janus": _TINY_VQ,
    "kimi_k25": {"text_config.num_key_value_heads": 4, "vision_config.patch_size": 4},
    "lfm2_vl": {"vision_config.num_patches": 16},
    "llama4": {"vision_config.intermediate_size": 128, "vision_config.projector_output_dim": 32},
    "llava_next": _NEXT,
    "llava_next_video": _NEXT,
    "llava_onevision": _NEXT | {"vision_aspect_ratio": "anyres_max_9"},
    "minicpm_ocr": _MINICPM,
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM | _MROPE_TEXT,
    "minimax_m3_vl": {"merged_hidden_size": 128},
    "mistral_large4": {"text_config.num_key_value_heads": 4},
    "molmo2": {
        "adapter_config.vision_feature_layer": [-1, -2],
        "vision_config.image_size": [16, 16],
        "vision_config.patch_size": 4,
        "vision_config.num_position_embeddings": 16,
        "adapter_config.text_hidden_size": 32,
        "image_patch_id": 100,
    },
    "muse_glimmer": _MUSE,
    "muse_spark": _MUSE,
    "nemotron_h_omni": {
        "image_token_id": 100,
        "vision_config.max_img_size": 64,
        "vision_config.patch_size": 4,
        "text_config.n_groups": 2,
    },
    "kosmos-2": {"latent_query_num": 4},
    "kosmos-2.5": {"latent_query_num": 4, "vision_config.patch_embed_hidden_size": 48},
    "mllama": {
        "vision_config.max_num_tiles": 2,
        "vision_config.supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.vision_output_dim": 96,
        "text_config.cross_attention_layers": [1],
    },
    "paddleocr_vl": _MROPE_TEXT,
    "perception_lm": {
        "vision_config.architecture": "vit_pe_core_large_patch14_336",
        "vision_config.model_args": {
            "embed_dim": 32,
            "img_size": [28, 28],
            "depth": 2,
            "num_heads": 4,
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
            "ref_feat_shape": [2, 2],
        },
    },
    "pp_chart2table": _GOT,
    "qianfan_ocr": _INTERN,
    "qwen2_5_omni_thinker": _OMNI,
    "qwen2_5_vl": _MROPE_TEXT,
    "qwen2_vl": _MROPE_TEXT,
    "qwen3_omni_moe_thinker": _OMNI | _DEEP,
    "qwen3_vl": _DEEP,
    "qwen3_vl_moe": _DEEP,
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 8,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    "shieldgemma2": _GEMMA3,
    "step3p7": {"text_config.sliding_window": 16},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "unlimited_ocr": _SAM,
    "vipllava": {"vision_feature_layers": [-1, -2], "vision_feature_layer": [-1, -2]},
}
