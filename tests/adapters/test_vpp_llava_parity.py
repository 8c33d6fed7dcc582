"""VPP-LLaVA on this library equals its own code, stage by stage, on a tiny checkpoint recorded there.

`pytest tests/adapters/test_vpp_llava_parity.py -s` prints the largest error of each stage.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.reference import FOLDER, reference
from vpp_adapters.vpp_llava import load_vpp_llava
from vpp_adapters.vpp_llava.config import new_name
from vpp_plugins.images import letterbox
from vpp_plugins.prompts.generators.backbone import TimmBackbone
from vpp_plugins.prompts.generators.detr_transformer import full_sine_encoding
from vpp_plugins.prompts.global_vpp import CLIP_MEAN, CLIP_STD

IMAGE, QUERIES, PATCHES = -200, 100, 576
COLUMNS = 512
"""The reference's vocabulary; ours has two rows more, whose logits are 0 and never answered."""
STAGE, LOGITS, LOSS, GRADIENT, NOISY_GRADIENT = 5e-5, 1e-4, 1e-5, 1e-3, 2e-2
"""Largest error allowed, as a share of the recorded tensor's absolute maximum. Where a ReLU switches, the gradients of
the prompt and of the first convolution move in single pixels; the recording repeated in float64 shows the same."""


@dataclass(frozen=True)
class Row:
    """How far one stage is from the recording."""

    error: float
    allowed: float


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def loaded(converted: Path) -> tuple[Any, Any]:
    return load_vpp_llava(converted, dtype=torch.float32)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(FOLDER / f"image{i}.png").convert("RGB") for i in range(2)]


@pytest.fixture(scope="module")
def ours(loaded: tuple[Any, Any], images: list[Image.Image], recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every stage of a forward and backward on the recorded batch, in evaluation mode, by the recording's names."""
    model, processor = loaded
    ids, labels, mask = merged(recorded, model.config.image_token_id, model.vpp.token_id)
    found: dict[str, Tensor] = {}
    core, local = model.model, model.vpp.local_vpp
    detr = local.generator

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.detach().clone()

    hooks = [
        core.vision_tower.register_forward_pre_hook(
            lambda module, args, kwargs: keep("overlay336", kwargs.get("pixel_values", *args[:1])), with_kwargs=True
        ),
        core.vision_tower.register_forward_hook(
            lambda module, args, output: keep("clip.selected", output.hidden_states[-2][:, 1:])
        ),
        core.multi_modal_projector.register_forward_hook(lambda module, args, output: keep("mm_projector.out", output)),
        detr.backbone.register_forward_pre_hook(lambda module, args: keep("overlay640", args[0])),
        detr.backbone.register_forward_hook(lambda module, args, output: keep("detr.backbone", output)),
        detr.input_proj.register_forward_hook(lambda module, args, output: keep("detr.input_proj", output)),
        detr.encoder[-1].register_forward_hook(lambda module, args, output: keep("detr.memory", output)),
        detr.register_forward_hook(lambda module, args, output: keep("detr.queries", output)),
        local.projector.register_forward_hook(lambda module, args, output: keep("grd_projector.out", output)),
        core.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: keep("inputs_embeds", kwargs["inputs_embeds"]), with_kwargs=True
        ),
    ]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    squares = torch.stack([letterbox(image, 640) for image in images])
    model.zero_grad()
    output = model(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=pixels, vpp_pixel_values=squares)
    loss = loss_of(output.logits[..., :COLUMNS], labels)
    loss.backward()
    for hook in hooks:
        hook.remove()
    found |= {
        "clip.pixel_values": pixels,
        "detr.image": squares,
        "detr.pos": full_sine_encoding(20, 20, 256, device=pixels.device, dtype=pixels.dtype).mT.reshape(256, 20, 20),
        "logits": output.logits[..., :COLUMNS].detach(),
        "loss": loss.detach()[None],
        "own loss": output.loss.detach(),
        "labels": labels,
        "mask": mask,
    }
    found["detr.memory"] = found["detr.memory"].mT.reshape(found["detr.input_proj"].shape)
    found |= {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Row]]:
    rows: dict[str, Row] = {}
    yield rows
    print(f"\n{'stage':36} {'largest error':>14} {'allowed':>8}")  # noqa: T201
    for name, row in rows.items():
        print(f"{name:36} {row.error:14.1e} {row.allowed:8.0e}")  # noqa: T201


def merged(recorded: dict[str, Tensor], image_id: int, vpp_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """The recorded ids with one id for each visual token, right-padded, as the reference merges embeddings."""
    rows, targets = [], []
    for ids, labels, real in zip(
        recorded["batch.input_ids"].long(),
        recorded["batch.labels"].long(),
        recorded["batch.attention_mask"],
        strict=True,
    ):
        ids, labels = ids[real], labels[real]
        place = int((ids == IMAGE).nonzero())
        visual = torch.tensor([image_id] * PATCHES + [vpp_id] * QUERIES)
        rows.append(torch.cat([ids[:place], visual, ids[place + 1 :]]))
        targets.append(torch.cat([labels[:place], torch.full_like(visual, -100), labels[place + 1 :]]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, labels, torch.arange(ids.shape[1]) < lengths[:, None]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


WHOLE = slice(None)
STAGES: dict[str, tuple[str, Any, float]] = {
    # recorded as: (our name, the part that was recorded, allowed)
    "clip.pixel_values_s8": ("clip.pixel_values", (..., slice(None, None, 8), slice(None, None, 8)), STAGE),
    "detr.image_s18": ("detr.image", (..., slice(None, None, 18), slice(None, None, 18)), STAGE),
    "overlay336_s12": ("overlay336", (..., slice(None, None, 12), slice(None, None, 12)), STAGE),
    "overlay640_s18": ("overlay640", (..., slice(None, None, 18), slice(None, None, 18)), STAGE),
    "clip.selected_t6": ("clip.selected", (WHOLE, slice(None, None, 6)), STAGE),
    "mm_projector.out_t6": ("mm_projector.out", (WHOLE, slice(None, None, 6)), STAGE),
    "detr.backbone_c64": ("detr.backbone", (WHOLE, slice(None, None, 64)), STAGE),
    "detr.input_proj_c32": ("detr.input_proj", (WHOLE, slice(None, None, 32)), STAGE),
    "detr.pos_c20": ("detr.pos", slice(None, None, 20), STAGE),
    "detr.memory_c32": ("detr.memory", (WHOLE, slice(None, None, 32)), STAGE),
    "detr.queries_q5": ("detr.queries", (WHOLE, slice(None, None, 5)), STAGE),
    "grd_projector.out": ("grd_projector.out", WHOLE, STAGE),
    "loss": ("loss", WHOLE, LOSS),
    "grad.mm_projector.0.weight": ("model.multi_modal_projector.linear_1.weight", WHOLE, GRADIENT),
    "grad.grd_projector.0.weight_s16_s4": (
        "vpp.local_prompt.projector.0.weight",
        (slice(None, None, 16), slice(None, None, 4)),
        GRADIENT,
    ),
    "grad.grd_projector.2.weight_c_every4": (
        "vpp.local_prompt.projector.2.weight",
        (WHOLE, slice(None, None, 4)),
        GRADIENT,
    ),
    "grad.detr.query_embed_q4": ("vpp.local_prompt.generator.query_embed.weight", slice(None, None, 4), GRADIENT),
    "grad.detr.conv1": ("vpp.local_prompt.generator.backbone.body.conv1.weight", WHOLE, NOISY_GRADIENT),
    "grad.clip.patch_embedding_o4": (
        "model.vision_tower.embeddings.patch_embedding.weight",
        slice(None, None, 4),
        GRADIENT,
    ),
}


def check(table: dict[str, Row], name: str, found: Tensor, expected: Tensor, allowed: float) -> None:
    table[name] = Row(relative_error(found, expected), allowed)
    assert table[name].error <= allowed


@pytest.mark.parametrize("name", STAGES)
def test_stage(name: str, ours: dict[str, Tensor], recorded: dict[str, Tensor], table: dict[str, Row]) -> None:
    key, part, allowed = STAGES[name]
    check(table, name, ours[key][part], recorded[name], allowed)


def test_resized_images_are_equal_bit_for_bit(ours: dict[str, Tensor]) -> None:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (CLIP_MEAN, CLIP_STD))
    resized = ((ours["clip.pixel_values"] * std + mean) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    with safe_open(FOLDER / "io.safetensors", framework="pt") as file:
        expected = file.metadata()["clip.resized_u8.sha256"]

    assert hashlib.sha256(resized.numpy().tobytes()).hexdigest() == expected


def test_rows_and_columns_along_the_edges(
    ours: dict[str, Tensor], recorded: dict[str, Tensor], table: dict[str, Row]
) -> None:
    """Where the axes lie; the reference's 640-pixel mask is 58 wide on one side and 57 on the other."""
    edges, rows336 = recorded["edge_index"].long(), recorded["overlay336_row_index"].long()

    check(table, "detr.image_rows", ours["detr.image"][0][:, edges], recorded["detr.image_rows"], STAGE)
    check(table, "overlay336_rows", ours["overlay336"][0][:, rows336], recorded["overlay336_rows"], STAGE)
    check(table, "overlay640_rows", ours["overlay640"][0][:, edges], recorded["overlay640_rows"], STAGE)
    check(table, "overlay640_cols", ours["overlay640"][1][:, :, edges], recorded["overlay640_cols"], STAGE)


def test_the_prompt_reaches_the_detector_by_the_nearest_index_of_float32(
    loaded: tuple[Any, Any], recorded: dict[str, Tensor]
) -> None:
    prompt = loaded[0].vpp.global_vpp
    index = recorded["nearest_index_336_to_640"].long()
    assert not torch.equal(index, torch.arange(640) * 336 // 640)  # what exact arithmetic would give

    masked, mask, _ = prompt.overlay().render((640, 640)).split([3, 1, 1])

    assert torch.equal(mask[0], prompt.mask[index][:, index])
    assert torch.equal(masked, (prompt.prompt * prompt.mask)[:, index][:, :, index])


def test_letterboxes_have_the_recorded_places() -> None:
    for row in reference("letterbox"):
        square = letterbox(Image.new("RGB", (row["w"], row["h"]), "white"), 640)
        rows, columns = (square[0] != 0).any(1).nonzero(), (square[0] != 0).any(0).nonzero()
        place = (int(rows[0]), int(columns[0]), len(rows), len(columns))
        assert place == (row["detr_top"], row["detr_left"], row["detr_h"], row["detr_w"])


def test_merged_embeddings(ours: dict[str, Tensor], recorded: dict[str, Tensor], table: dict[str, Row]) -> None:
    """The reference pads with zero embeddings, we with the padding token's; nobody attends to either."""
    mask = recorded["merged_attention_mask"]
    assert torch.equal(ours["mask"], mask)
    embeddings = (ours["inputs_embeds"] * mask[..., None])[:, ::6]

    check(table, "inputs_embeds_t6", embeddings, recorded["inputs_embeds_t6"], STAGE)


def test_labels(ours: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    assert torch.equal(ours["labels"], recorded["merged_labels"].long())


def test_logits(ours: dict[str, Tensor], recorded: dict[str, Tensor], table: dict[str, Row]) -> None:
    mask, places = recorded["merged_attention_mask"], recorded["logits_p11_index"].long()
    real = mask[:, places]
    logits = ours["logits"]

    check(table, "logits_p11", logits[:, places][real], recorded["logits_p11"][real], LOGITS)
    check(table, "logits_lse", logits.logsumexp(-1)[mask], recorded["logits_lse"][mask], LOGITS)
    assert torch.equal(logits.argmax(-1)[mask], recorded["logits_argmax"].long()[mask])


def test_the_models_own_loss_counts_two_more_columns(ours: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    """Their logits are 0: with 512 columns they add 6e-5, with 32,000 that are trained nothing that float32 shows."""
    assert 0 < ours["own loss"] / recorded["loss"] - 1 < 1e-4


def test_gradient_of_the_prompt(ours: dict[str, Tensor], recorded: dict[str, Tensor], table: dict[str, Row]) -> None:
    gradient = ours["vpp.global_prompt.prompt"]
    border = torch.ones(336, 336, dtype=torch.bool)
    border[30:-30, 30:-30] = False
    assert not gradient[:, ~border].any()

    found = gradient[:, border][:, ::12]
    check(table, "grad.visual_prompt.border_b12", found, recorded["grad.visual_prompt.border_b12"], NOISY_GRADIENT)


def test_every_parameter_has_the_recorded_gradient_norm(
    loaded: tuple[Any, Any], ours: dict[str, Tensor], table: dict[str, Row]
) -> None:
    """Also of those whose gradients were not recorded themselves; some, as CLIP's last layer, get none."""
    norms = {new_name(key): norm or 0.0 for key, norm in reference("grad_norms").items() if not key.startswith("__")}
    parameters = dict(loaded[0].named_parameters())
    assert norms.keys() == parameters.keys()

    found = {name: float(ours[name].double().norm()) if name in ours else 0.0 for name in norms}

    # zero but for rounding: the bias of a key shifts all scores alike; the decoder's first queries are zeros
    real = [name for name, norm in norms.items() if norm > 1e-6]
    errors = {name: abs(found[name] / norms[name] - 1) for name in real}
    assert all(found[name] < 1e-6 for name in norms if name not in real)
    noisy = ("vpp.global_prompt.prompt", "vpp.local_prompt.generator.backbone.body.conv1.weight")
    table["gradient norm, prompt and conv1"] = Row(max(errors.pop(name) for name in noisy), NOISY_GRADIENT)
    worst = max(errors, key=lambda name: errors[name])
    table["gradient norm, worst of all others"] = Row(errors[worst], GRADIENT)
    assert errors[worst] <= GRADIENT, worst


@pytest.mark.parametrize("number", [0, 1])
def test_greedy_answers(
    number: int,
    loaded: tuple[Any, Any],
    images: list[Image.Image],
    recorded: dict[str, Tensor],
    table: dict[str, Row],
) -> None:
    """From a question's text to the answer's tokens, with the reference's ids between them."""
    model, processor = loaded
    prompt = reference("text")["eval"][number]["prompt"]
    inputs = processor(images=images[number], text=prompt, return_tensors="pt")
    expected = recorded[f"gen{number}.input_ids"].long()[0]
    kept = inputs["input_ids"][0]
    visual = (kept == model.config.image_token_id) | (kept == model.vpp.token_id)
    first = int(visual.nonzero()[0])
    assert int(visual.sum()) == PATCHES + QUERIES
    assert visual[first : first + PATCHES + QUERIES].all()
    assert torch.equal(kept[~visual], expected[expected != IMAGE])
    assert first == int((expected == IMAGE).nonzero())

    answer = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
    )

    assert torch.equal(answer.sequences[0, len(kept) :], recorded[f"gen{number}.sequences"].long()[0, 1:])
    logits = answer.logits[0][:, :COLUMNS]
    check(table, f"gen{number}.first_logits", logits, recorded[f"gen{number}.first_logits"], LOGITS)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_timms_resnet_computes_what_torchvisions_does(name: str) -> None:
    """The recorded checkpoint has a ResNet of torchvision's blocks; published ones, loaded here into timm's, have 101
    layers."""
    theirs: Any = torchvision.models.get_model(name).eval()
    for norm in (module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.5, 1.0)
        norm.bias.data.normal_(std=0.1)
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2.0)
    ours = TimmBackbone(name)
    kept = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.body.load_state_dict({key: value for key, value in kept.items() if not key.endswith("num_batches_tracked")})
    pixels = torch.randn(1, 3, 96, 64)

    with torch.no_grad():
        features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            features = stage(features)
        assert relative_error(ours(pixels), features) < STAGE
