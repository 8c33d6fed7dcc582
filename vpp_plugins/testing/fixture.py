"""What the promises are tried on: a bare host, the same host attached, and batches of inputs for both."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from vpp_plugins import plugins
from vpp_plugins.attach import attach_vpp, host_state, is_attached, rows_of
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.images import letterbox
from vpp_plugins.plugins import Backbone, hookimpl, manager
from vpp_plugins.processor import VPPProcessor, image_marker
from vpp_plugins.prompts import Prompts
from vpp_plugins.testing.reference_host import ReferenceHost, give_row, spare_ids

NAME = "toy for tests"
TINY_DETR: Mapping[str, Any] = {
    "backbone": "resnet10t",
    "width": 32,
    "heads": 4,
    "feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
}
"""Options of the generator "detr" for one so small that it costs next to nothing."""


class ToyGenerator(nn.Module):
    """Queries that attend once to an image's patches: every parameter and every pixel counts, in a millisecond."""

    def __init__(self, num_queries: int, width: int = 8) -> None:
        super().__init__()
        self.num_queries, self.width = num_queries, width
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.queries = nn.Parameter(torch.randn(num_queries, width))

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        pixel_mask: Bool[Tensor, "images height width"] | None = None,
    ) -> Float[Tensor, "images queries features"]:
        """Return the queries; the mask is of no use to it."""
        patches = self.patches(pixel_values).flatten(2).mT
        # one matrix per image: torch multiplies a shared one in another order where it needs no gradient
        queries = self.queries.expand(len(patches), -1, -1)
        return (queries @ patches.mT).softmax(-1) @ patches + queries


class _ToyPlugin:
    @hookimpl
    def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
        return ToyGenerator(num_queries, **options) if name == NAME else None


@contextmanager
def toy_generator() -> Iterator[str]:
    """Have the toy generator installed within the block; gives the name under which configurations find it."""
    if manager().has_plugin(NAME):
        yield NAME
        return
    manager().register(_ToyPlugin(), NAME)
    try:
        yield NAME
    finally:
        manager().unregister(name=NAME)


IMAGE_SIDE = 64
SIZES = ((64, 48), (48, 72), (56, 56))
"""Width and height of the generated images."""
QUERIES = 2

Inputs = dict[str, Any]


@dataclass
class Fixture:
    """A host bare and attached. Promises take copies of what they change."""

    bare: Any
    """Never run itself: some hosts keep what their first forward computed, or hooks that do not pickle."""
    attached: Any
    processor: Any
    """The host's own, or None where inputs were given."""
    adapter: str | Backbone | None
    batches: dict[str, Inputs]
    """Inputs for the attached host, by how they were made."""
    spare: Tensor
    """Ids of the vocabulary that mean nothing to the host; as many as there are placeholders."""

    @property
    def backbone(self) -> Backbone:
        """What the adapter says of the host."""
        return host_state(self.attached).backbone

    @property
    def token_id(self) -> int:
        """The placeholder's id; -1 without a local prompt."""
        return -1 if self.attached.vpp.token_id is None else self.attached.vpp.token_id

    def first(self) -> Inputs:
        """Return one batch, for promises that need no more."""
        return next(iter(self.batches.values()))

    def host_inputs(self, inputs: Inputs) -> Inputs:
        """Return what the bare host takes: the placeholders are spare ids, nothing is ours."""
        placeholders = inputs["input_ids"] == self.token_id
        ids = inputs["input_ids"].masked_scatter(placeholders, self.spare.to(inputs["input_ids"].device))
        return {name: value for name, value in inputs.items() if not name.startswith("vpp_")} | {"input_ids": ids}

    @torch.no_grad()
    def reference(self, inputs: Inputs) -> ReferenceHost:
        """Return the unpatched host that does with `host_inputs(inputs)` what the attached one does with `inputs`."""
        prompts: Prompts = self.attached.vpp(inputs.get("vpp_pixel_values"))
        return ReferenceHost(
            copy.deepcopy(self.bare), prompts, self.backbone, inputs, self.spare, rows_of(self.attached)
        )

    def fresh(self) -> Any:
        """Return a host attached like `attached`, that nothing has run on yet."""
        model = self.attach(copy.deepcopy(self.bare), self.attached.vpp.config)
        model.vpp.load_state_dict(self.attached.vpp.state_dict())
        return model

    def attach(self, model: Any, config: VPPConfig | str) -> Any:
        """Put VPP on a copy of the bare host and bind the placeholder's id."""
        attach_vpp(model, config, adapter=self.adapter)
        if self.processor is not None:
            VPPProcessor(self.processor, model)
        elif self.token_id >= 0:
            model.vpp.bind_token(self.token_id)
        model.vpp.trained = True
        return model

    def seeded(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call from the same random state every time: some hosts sample even in their forward."""
        device = self.bare.get_input_embeddings().weight.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return call(*args, **kwargs)


def build(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any] | None,
    token_id: int | None,
    adapter: str | Backbone | None,
    config: VPPConfig | None,
) -> Fixture:
    """Attach a copy of the model and make its inputs. The copy's prompts are moved away from their start."""
    if is_attached(model):
        raise VPPError("check_adapter attaches by itself: give it the bare host.")
    if (processor is None) == (inputs is None):
        raise VPPError("check_adapter needs either the host's processor or ready inputs, and not both.")
    bare = copy.deepcopy(model).eval()
    if config is None:
        placeholders = QUERIES if inputs is None else int((inputs["input_ids"] == token_id).sum())
        images = 1 if inputs is None else len(inputs["vpp_pixel_values"])
        config = _small(plugins.describe(bare, adapter), placeholders // images)
    attached = attach_vpp(copy.deepcopy(bare), config, adapter=adapter)
    if inputs is None:
        wrapped, backbone = VPPProcessor(processor, attached), host_state(attached).backbone
        batches = {f"padded on the {side}": sample_inputs(wrapped, backbone, side) for side in ("left", "right")}
    else:
        batches = {"as given": dict(inputs)}
        if token_id is not None:
            attached.vpp.bind_token(token_id)
    attached.vpp.trained = True
    _move(attached.vpp)
    fixture = Fixture(bare, attached, processor, adapter, batches, torch.empty(0, dtype=torch.long))
    used = [batch["input_ids"] for batch in batches.values()] + [torch.tensor([fixture.token_id])]
    fixture.spare = spare_ids(bare, used, int((fixture.first()["input_ids"] == fixture.token_id).sum()))
    if len(fixture.spare):
        for host in (bare, attached):
            give_row(host, fixture.token_id, fixture.spare)
    return fixture


def sample_pixels(images: int) -> Float[Tensor, "images 3 height width"]:
    """Return so many `vpp_pixel_values`, all different, as VPPProcessor would make them at the check's small size."""
    return torch.stack([letterbox(_image(seed), IMAGE_SIDE) for seed in range(images)])


def sample_inputs(processor: VPPProcessor, backbone: Backbone, side: str) -> Inputs:
    """Return a text with two images and one with one, as a batch padded on that side."""
    processor.tokenizer.padding_side = side
    images = [[_image(0), _image(1)], [_image(2)]]
    texts = [_text(processor, backbone, 2), _text(processor, backbone, 1)]
    return dict(processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side=side))


def _small(backbone: Backbone, queries: int) -> VPPConfig:
    """Return the family's configuration at the size of a test, with the toy generator."""
    family = backbone.defaults
    axes = replace(family.global_vpp or GlobalVPPConfig(), size=32, border=4)
    local = family.local_vpp or LocalVPPConfig()
    return VPPConfig(
        global_vpp=axes if backbone.vision_encoders else None,
        local_vpp=replace(
            local,
            num_queries=queries,
            generator=NAME,
            generator_options={},
            weights=None,
            image_size=IMAGE_SIDE,
            projector_size=16,
        ),
    )


@torch.no_grad()
def _move(vpp: torch.nn.Module) -> None:
    """Disturb the prompts, so that nothing can pass for them that only starts alike."""
    generator = torch.Generator().manual_seed(7)
    for parameter in vpp.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)


def _text(processor: VPPProcessor, backbone: Backbone, images: int) -> str:
    words = "what is left of this ?" if images == 1 else "where are they ?"
    if processor.processor.chat_template is None:
        return image_marker(processor.processor, backbone.image_token) * images + words
    content: list[Any] = [{"type": "image"}] * images + [{"type": "text", "text": words}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _image(seed: int) -> Image.Image:
    width, height = SIZES[seed % len(SIZES)]
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)
