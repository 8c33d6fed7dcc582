import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.families import FAMILIES, attached_family
from tests.tiny import attached, image, tiny_config, tiny_llava, tiny_processor
from tests.zoo.hosts import inputs_of, tiny_host
from vpp_plugins import Grounder, ground, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.deduplicate import distinct_rows, encoded_once, prepared_once
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.plugins.registry import describe
from vpp_plugins.pocket import load_pocket
from vpp_plugins.prompts.vpp import VPP
from vpp_plugins.testing.coverage import recorded_coverage

pytestmark = [
    pytest.mark.usefixtures("toy"),
    # hosts' own: they make arrays of tensors in the old way
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

PLACES = (0, 1, 0, 0, 2, 1)
"""Which of three images each question is about."""
QUESTIONS = ["the red cup", "cup", "is the cup red .", "red", "where is the cup", "cup is the cup"]


class Watch:
    """Counts the images that a module computes."""

    def __init__(self, module: Any) -> None:
        self.rows: list[int] = []
        module.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows.append(len(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))))


def share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("encoded_once", "prepared_once"):
        monkeypatch.setattr(ground, name, lambda *_: contextlib.nullcontext())


def shown(size: tuple[int, int] = (40, 24)) -> list[Image.Image]:
    images = [image(seed, size) for seed in range(3)]
    return [images[place] for place in PLACES]


def answers_and_logits(model: Any, processor: Any, images: list[Image.Image]) -> tuple[list[str], list[Tensor]]:
    """Return what a Grounder answers, and the logits of every step."""
    logits: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, args, output: logits.append(output))
    told = Grounder(model, processor, max_new_tokens=4).ask(images, QUESTIONS)
    handle.remove()
    return [text for text, _ in told], logits


def hosts() -> dict[str, Any]:
    return {
        "tiny, attached": lambda: attached(config=tiny_config()),
        "tiny, bare": lambda: (tiny_llava(), tiny_processor()),
        "pocket, attached": load_pocket,
        "pocket, bare": lambda: load_pocket(vpp=False),
    }


@pytest.mark.parametrize("name", hosts())
def test_answers_are_those_of_images_encoded_one_by_one_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = hosts()[name]()

    texts, logits = answers_and_logits(model, processor, shown())
    share_nothing(monkeypatch)
    expected, their_logits = answers_and_logits(model, processor, shown())

    assert texts == expected
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, their_logits, strict=True))


def test_each_image_passes_the_encoder_and_the_detector_once() -> None:
    model, processor = attached(config=tiny_config())
    encoder, detector = Watch(model.model.vision_tower.embeddings), Watch(model.vpp.local_vpp.generator)

    Grounder(model, processor, max_new_tokens=1).ask(shown(), QUESTIONS)

    assert (encoder.rows, detector.rows) == ([3], [3])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_before_and_detects_in_each_image_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = attached_family(name)
    detector = Watch(model.vpp.local_vpp.generator)

    texts, logits = answers_and_logits(model, processor, shown((80, 48)))
    assert detector.rows == [3]
    share_nothing(monkeypatch)
    expected, their_logits = answers_and_logits(model, processor, shown((80, 48)))

    assert detector.rows == [3, 6]
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)
    assert texts == expected


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_model_and_processor(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = attached()
    asking = Grounder(model, processor, max_new_tokens=1)
    classes, own = [type(module) for module in model.modules()], type(processor.image_processor)
    if fails:
        monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)

    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        asking.ask(shown(), QUESTIONS)

    assert [type(module) for module in model.modules()] == classes
    assert type(processor.image_processor) is own


def test_a_block_within_a_block_changes_nothing_and_leaves_nothing() -> None:
    model, _ = attached()
    backbone = host_state(model).backbone
    with encoded_once(model, backbone):
        outer = model.vpp.forward
        with encoded_once(model, backbone):
            assert model.vpp.forward == outer
        assert model.vpp.forward == outer
    assert type(model.vpp) is VPP


def test_hosts_that_look_at_the_encoder_s_signature_see_its_own() -> None:
    model, _ = attached()
    tower = model.model.vision_tower
    own = inspect.signature(tower.forward)
    with encoded_once(model, host_state(model).backbone):
        assert inspect.signature(tower.forward) == own


def test_gradients_reach_every_image() -> None:
    """With gradients on, nothing is shared: they would be the same in number, but training counts on what it is."""
    model, _ = attached()
    pixels = torch.randn(1, 3, 32, 32).expand(4, 3, 32, 32).clone().requires_grad_()
    with vpp_disabled(model), encoded_once(model, host_state(model).backbone):
        model.model.vision_tower(pixels).last_hidden_state.square().sum().backward()

    assert pixels.grad is not None
    assert pixels.grad.flatten(1).any(1).all()


class Encoder(nn.Module):
    """An encoder that returns what a test says, and counts its images."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self.say = say
        self.rows: list[int] = []

    def forward(self, pixels: Tensor, *others: Any) -> Any:
        self.rows.append(len(pixels))
        return self.say(pixels)


@contextlib.contextmanager
def sharing(encoder: Encoder) -> Iterator[None]:
    backbone = Backbone(adapter="test", hidden_size=1, vision_encoders=("encoder",), box_format="llava", frame="square")
    with torch.no_grad(), encoded_once(nn.ModuleDict({"encoder": encoder}), backbone):
        yield


REPEATED = torch.arange(2.0).repeat_interleave(2)[:, None, None, None].expand(4, 3, 2, 2)


@pytest.mark.parametrize(
    "say",
    [
        lambda pixels: pixels.flatten(0, 1),
        lambda pixels: pixels.sum(),
        lambda pixels: [row[None] for row in pixels],
        lambda pixels: (pixels, len(pixels)),
    ],
)
def test_outputs_without_a_row_for_each_image_are_computed_whole(say: Any) -> None:
    encoder = Encoder(say)
    with sharing(encoder):
        output = encoder(REPEATED)

    assert encoder.rows == [2, 4]
    torch.testing.assert_close(output, say(REPEATED), atol=0, rtol=0)


def test_a_compiled_host_is_compiled_once_for_all_blocks() -> None:
    """Each block put a new function on the encoder, so every batch compiled anew, and after eight none was compiled."""
    backbone = Backbone(adapter="test", hidden_size=1, vision_encoders=("0",), box_format="llava", frame="square")
    host, compiled = nn.Sequential(nn.Conv2d(3, 4, 2)), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    run: Any = torch.compile(host, backend=backend)
    with torch.no_grad():
        expected = host(REPEATED)
        for _ in range(3):
            with encoded_once(host, backbone):
                assert torch.equal(run(REPEATED), expected)

    assert len(compiled) == 1


def test_every_layer_s_output_is_repeated() -> None:
    encoder = Encoder(lambda pixels: (pixels, None, (pixels + 1, pixels + 2)))
    with sharing(encoder):
        first, none, layers = encoder(REPEATED)

    assert encoder.rows == [2]
    assert none is None
    assert all(torch.equal(layer, REPEATED + step) for step, layer in enumerate((first, *layers)))


@pytest.mark.parametrize("others", [(torch.ones(4, 2),), ([1, 2, 3, 4],)])
def test_encoders_that_are_told_more_of_each_image_run_as_always(others: tuple[Any, ...]) -> None:
    encoder = Encoder(lambda pixels: pixels)
    with sharing(encoder):
        encoder(REPEATED, *others)

    assert encoder.rows == [4]


def test_distinct_rows_tell_rows_apart_by_every_number() -> None:
    rows = torch.zeros(6, 3, 50, 50)
    rows[2, 1, 7, 3] = 1e-6
    rows[3, 1, 7, 3] = 1e-6
    rows[5] = torch.nan

    first, index = distinct_rows(rows)

    assert first == [0, 2, 5]
    assert index == [0, 0, 1, 1, 0, 2]
    assert distinct_rows(rows[:0]) == ([], [])


def test_a_image_that_is_asked_about_twice_is_prepared_once() -> None:
    processor = tiny_processor()
    backbone = describe(tiny_llava())
    counted: list[int] = []
    own = type(processor.image_processor)._preprocess

    class Counting(type(processor.image_processor)):  # type: ignore[misc]
        def _preprocess(self, images: list[Any], *args: Any, **kwargs: Any) -> Any:
            counted.append(len(images))
            return own(self, images, *args, **kwargs)

    processor.image_processor.__class__ = Counting
    nested = [[one] for one in shown()]
    expected = processor.image_processor(nested, return_tensors="pt")
    with prepared_once(processor.image_processor, backbone):
        prepared = processor.image_processor(nested, return_tensors="pt")
        single = processor.image_processor(nested[0][0], return_tensors="pt")

    assert counted == [6, 3, 1]
    assert prepared.keys() == expected.keys()
    assert torch.equal(prepared["pixel_values"], expected["pixel_values"])
    assert torch.equal(single["pixel_values"], expected["pixel_values"][:1])


PLANES = [name for name, row in recorded_coverage().items() if row.layout == "planes"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", PLANES)
@pytest.mark.parametrize("places", [(0, 0), (0, 0, -1, 0)])
@torch.no_grad()
def test_encoders_of_every_architecture_that_takes_planes(model_type: str, places: tuple[int, ...]) -> None:
    """Equal up to what rounding differs by in batches of another size."""
    model = tiny_host(model_type)
    backbone = describe(model)
    seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    encoders = [model.get_submodule(path) for path in backbone.vision_encoders]
    hooks = [
        encoder.register_forward_pre_hook(lambda *call: seen.append(call), with_kwargs=True) for encoder in encoders
    ]
    model(**{name: value for name, value in inputs_of(model_type, model).items() if not name.startswith("vpp_")})
    for hook in hooks:
        hook.remove()
    for encoder, args, kwargs in seen:
        repeated = [
            value[list(places)] if isinstance(value, Tensor) and value.ndim == 4 else value
            for value in (*args, *kwargs.values())
        ]
        positional, named = repeated[: len(args)], dict(zip(kwargs, repeated[len(args) :], strict=True))
        expected = encoder(*positional, **named)
        with encoded_once(model, backbone):
            output = encoder(*positional, **named)
        torch.testing.assert_close(pytree.tree_leaves(output), pytree.tree_leaves(expected), atol=1e-5, rtol=1e-5)
