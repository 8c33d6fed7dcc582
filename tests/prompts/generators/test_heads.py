import torch

from vpp_plugins.prompts.generators import DetectionHeads


def test_each_query_gets_logits_with_no_object_last_and_a_box_in_fractions() -> None:
    heads = DetectionHeads(16, num_classes=3)

    detections = heads(100 * torch.randn(2, 5, 16))

    assert detections.logits.shape == (2, 5, 4)
    assert detections.boxes_cxcywh.shape == (2, 5, 4)
    assert ((detections.boxes_cxcywh >= 0) & (detections.boxes_cxcywh <= 1)).all()
    assert detections.boxes_cxcywh.std() > 0.1


def test_all_decoder_layers_at_once_equal_one_by_one() -> None:
    heads, layers = DetectionHeads(16, num_classes=3), torch.randn(6, 2, 5, 16)

    together = heads(layers)

    torch.testing.assert_close(together.logits[4], heads(layers[4]).logits)
    torch.testing.assert_close(together.boxes_cxcywh[4], heads(layers[4]).boxes_cxcywh)


def test_names_and_shapes_are_those_of_detrs_checkpoints() -> None:
    """For 91 COCO classes and width 256, as in the published detr-r101 files."""
    shapes = {name: tuple(tensor.shape) for name, tensor in DetectionHeads(256, num_classes=91).state_dict().items()}

    assert shapes == {
        "class_embed.weight": (92, 256),
        "class_embed.bias": (92,),
        "bbox_embed.layers.0.weight": (256, 256),
        "bbox_embed.layers.0.bias": (256,),
        "bbox_embed.layers.1.weight": (256, 256),
        "bbox_embed.layers.1.bias": (256,),
        "bbox_embed.layers.2.weight": (4, 256),
        "bbox_embed.layers.2.bias": (4,),
    }
