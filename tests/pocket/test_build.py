import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins import Grounder, VPPProcessor, attach_vpp, detach_vpp
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket.build import build_pocket, load_imagenet_backbone
from vpp_plugins.pocket.tokenizer import COORDINATES
from vpp_plugins.pocket.vision import BACKBONE, PocketVisionModel, create_backbone

Pocket = tuple[LlavaForConditionalGeneration, LlavaProcessor]


def test_one_seed_gives_one_model_and_leaves_the_random_state_alone() -> None:
    sizes = {"image_size": 64, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 48}
    before = torch.random.get_rng_state()
    first, second, third = (build_pocket(seed=seed, **sizes)[0] for seed in (0, 0, 1))

    assert torch.equal(torch.random.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)]
    assert all(same)
    assert not torch.equal(first.lm_head.weight, third.lm_head.weight)


def test_near_coordinates_look_alike_and_far_ones_do_not(pocket: Pocket) -> None:
    model, processor = pocket
    rows = model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids(list(COORDINATES))]
    likeness = torch.nn.functional.cosine_similarity(rows[50:51], rows)

    assert likeness[51] > 0.9
    assert likeness[:25].max() < likeness[48]


def test_the_head_is_tied_and_spare_rows_are_there(pocket: Pocket) -> None:
    model, processor = pocket

    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().num_embeddings >= len(processor.tokenizer) + 32


def test_transformers_saves_and_loads_it(pocket: Pocket, tmp_path: str) -> None:
    model, processor = pocket
    inputs = processor(
        images=Image.new("RGB", (90, 50), "red"), text="USER: <image>\nHi ASSISTANT:", return_tensors="pt"
    )
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)

    assert isinstance(loaded.model.vision_tower, PocketVisionModel)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert isinstance(AutoModel.from_config(loaded.config.vision_config), PocketVisionModel)


def test_a_image_gets_one_token_per_32_pixels_and_the_answer_is_read(pocket: Pocket) -> None:
    model, processor = pocket

    inputs = processor(images=Image.new("RGB", (90, 50)), text="<image>", return_tensors="pt")

    assert inputs["input_ids"].tolist() == [[model.config.image_token_id] * 4]
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)


def test_vpp_is_put_on_and_taken_off(pocket: Pocket) -> None:
    model, processor = pocket
    rows = model.get_input_embeddings().num_embeddings
    detector = {
        "backbone": "efficientnet_lite0",
        "width": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feedforward": 32,
    }
    local = LocalVPPConfig(
        num_queries=5, generator_options=detector, image_size=64, projector_size=32, mask_padding=False
    )
    attach_vpp(
        model,
        VPPConfig(
            global_vpp=GlobalVPPConfig(size=64, border=6, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
            local_vpp=local,
        ),
    )
    model.vpp.trained = True
    try:
        answer = Grounder(model, VPPProcessor(processor, model), max_new_tokens=4)(
            Image.new("RGB", (90, 50)), "the cup"
        )
    finally:
        detach_vpp(model)

    assert answer.expression == "the cup"
    assert model.get_input_embeddings().num_embeddings == rows  # a spare row was used


class TestImageNetBackbone:
    def test_a_file_in_the_packages_order_is_matched_by_order(self, tmp_path: str) -> None:
        network = timm.create_model(BACKBONE, pretrained=False, features_only=True, out_indices=(3, 4))
        wanted = network.state_dict()  # a published file has each layer's weight before its statistics
        theirs = {f"_layer{i}.{name.rsplit('.', 1)[1]}": value + 1 for i, (name, value) in enumerate(wanted.items())}
        torch.save(theirs | {"_fc.weight": torch.zeros(2)}, f"{tmp_path}/their.pth")

        found = load_imagenet_backbone(f"{tmp_path}/their.pth")

        assert all(torch.equal(found[name], value + 1) for name, value in wanted.items())

    def test_another_network_is_refused(self, tmp_path: str) -> None:
        theirs = {f"{i}.weight": torch.zeros(1) for i in range(len(create_backbone().state_dict()))}
        torch.save(theirs, f"{tmp_path}/their.pth")

        with pytest.raises(VPPError, match=r"does not fit 'conv_stem\.weight'"):
            load_imagenet_backbone(f"{tmp_path}/their.pth")
