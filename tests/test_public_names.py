"""What users, their adapters and our pages import: every name stays where it is, until a release says otherwise."""

import importlib

import pytest

NAMES = {
    "vpp_plugins": (
        "GlobalVPP GlobalVPPConfig Grounder Grounding HalfPrecisionVPPWarning LocalVPP LocalVPPConfig "
        "UntrainedVPPWarning VPPConfig VPPError VPPProcessor attach_vpp detach_vpp hookimpl is_attached "
        "load_vpp save_vpp vpp_disabled vpp_of "
    ),
    "vpp_plugins.attach": (
        "CONFIG_FILE WEIGHTS_FILE attach_vpp detach_vpp host_state is_attached load_vpp save_vpp unwrap vpp_disabled "
        "vpp_of "
    ),
    "vpp_plugins.backbone": "Backbone PixelLayout keep_processor",
    "vpp_plugins.boxes": (
        "AXIS_SENTENCE BOX_CODECS Binned Box BoxCodec BoxLike BoxStatus BoxText Decoded Frame ImageMeta "
        "Rounded Scale box_iou codec frame_rectangle generalized_box_iou padded_square "
    ),
    "vpp_plugins.boxes.frames": "padded_square",
    "vpp_plugins.checkpoint": "CONFIG_FILE WEIGHTS_FILE resolve",
    "vpp_plugins.data.assets": "Assets find_assets",
    "vpp_plugins.data.formats": "FORMATS Format Reading Writing data_format read_samples",
    "vpp_plugins.data.photos": "FOLDER load_real_photos",
    "vpp_plugins.data.scenes": "Scene SceneGenerator",
    "vpp_plugins.errors": "few",
    "vpp_plugins.evaluate": "Scores full_image mean_box random_object score shuffled",
    "vpp_plugins.evaluate.models": "load_grounder",
    "vpp_plugins.hookspecs": "Converter",
    "vpp_plugins.images": (
        "IMAGENET_MEAN IMAGENET_STD LARGEST_SIDE SMALLEST_SIDE flatten_images letterbox letterboxes "
        "load_image load_images normalise "
    ),
    "vpp_plugins.layouts": "Padded PaddedPatches Patches blocks patch_strip planes tiles",
    "vpp_plugins.plugins": (
        "BOX_CODECS BrokenPluginWarning GENERATORS PROJECT adapters box_codec broken build_generator "
        "converter describe manager "
    ),
    "vpp_plugins.pocket": (
        "build_pocket build_tokenizer load_pocket pocket_config register_pocket save_pocket untrained_pocket "
    ),
    "vpp_plugins.pocket.build": "build_pocket load_imagenet_backbone",
    "vpp_plugins.pocket.packing": "IGNORE Packed Segment forward_packed pack",
    "vpp_plugins.pocket.tokenizer": "AXES_SENTENCE COORDINATES GROUNDING_QUESTION IMAGE_TOKEN REGION_QUESTION",
    "vpp_plugins.pocket.vision": "COARSE_CHANNELS TOKEN_WIDTH create_backbone merge_maps",
    "vpp_plugins.pocket.weights": "FOLDER",
    "vpp_plugins.prompts": "GlobalVPP LocalVPP Overlay Prompts VPP draw_axes",
    "vpp_plugins.prompts.generators.detection_heads": "DetectionHeads Detections",
    "vpp_plugins.prompts.generators.detr": "build_detr",
    "vpp_plugins.prompts.generators.detr_weights": "VPP_LLAVA_PREFIX our_name",
    "vpp_plugins.prompts.generators.weight_files": "read_pickled",
    "vpp_plugins.prompts.global_vpp": "CLIP_MEAN CLIP_STD GlobalVPP Overlay RGB",
    "vpp_plugins.prompts.local_vpp": "LocalVPP",
    "vpp_plugins.prompts.resample": "Window",
    "vpp_plugins.prompts.vpp": "TOKEN VPP",
    "vpp_plugins.testing": (
        "BrokenPromises Report ToyGenerator assert_same check_adapter fingerprint sample_pixels toy_generator "
    ),
    "vpp_plugins.train": (
        "Labels NoAnswerError PARTS PRESETS Part Recipe RenderedChat Trained choose_parts label_answers "
        "lora_targets parameter_groups render_chat train "
    ),
    "vpp_plugins.train.auxiliary_detection": "AuxiliaryDetection named_objects",
    "vpp_plugins.train.grpo": "VPPGRPOTrainer",
    "vpp_plugins.train.mixing": "Mixture",
    "vpp_plugins.train.rewards": "BoxReward NoRewardWarning Rewards rewards",
    "vpp_adapters.vpp_llava": "load_vpp_llava",
}
"""By the path of 0.1.0. Where a module has moved, the old path leads to the new one, with a warning, until 0.2."""


@pytest.mark.parametrize("path", NAMES)
@pytest.mark.filterwarnings("ignore:vpp_plugins.* has moved:DeprecationWarning")
def test_every_public_name_is_where_it_was(path: str) -> None:
    module = importlib.import_module(path)
    assert [name for name in NAMES[path].split() if not hasattr(module, name)] == []


def test_the_door_offers_what_it_says() -> None:
    door = importlib.import_module("vpp_plugins")
    assert {*NAMES["vpp_plugins"].split()} <= {*door.__all__}
    assert [name for name in door.__all__ if not hasattr(door, name)] == []
