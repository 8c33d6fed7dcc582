"""What the processor's call decided is not reckoned anew without its arguments: in which size an image is shown."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tests.evaluate.conftest import make_rows
from tests.families import FAMILIES, attached_family
from tests.tiny import attached, image, toy_config
from tests.train.runs import samples, write_data
from vpp_plugins import Grounder, VPPError, VPPProcessor, vpp_disabled
from vpp_plugins.attach import host_state
from vpp_plugins.boxes import ImageMeta
from vpp_plugins.data import open_data
from vpp_plugins.evaluate.captions import regions
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.run import evaluate
from vpp_plugins.train.collate import ChatWriter, Collator

pytestmark = [
    pytest.mark.usefixtures("toy"),
    pytest.mark.filterwarnings("ignore:Passing `min_pixels`:FutureWarning"),  # transformers', of its second name
]
QWEN = "qwen2_5_vl"
EDGES = [8 * 8, 16 * 16, 24 * 32, 48 * 48, 64 * 64, 80 * 112]
SIDES = st.integers(8, 120)


def size_of(pair: tuple[int, int]) -> dict[str, int]:
    return {"shortest_edge": min(pair), "longest_edge": max(pair)}


PAIR = st.tuples(st.sampled_from(EDGES), st.sampled_from(EDGES))
SIZES = PAIR.map(lambda pair: {"size": size_of(pair)})
PIXELS = PAIR.map(lambda pair: {"min_pixels": min(pair), "max_pixels": max(pair)})
ONE = st.sampled_from(EDGES[3:]).map(lambda bound: {"max_pixels": bound})
BUDGET = st.one_of(st.just({}), SIZES, PIXELS, ONE)
CALL = st.one_of(BUDGET, BUDGET.map(lambda budget: {"images_kwargs": budget} if budget else {}))


def seen(inputs: Any, processor: Any) -> list[tuple[int, int]]:
    """In which sizes the tensors show the images."""
    side = processor.image_processor.patch_size
    return [(rows * side, columns * side) for _, rows, columns in inputs["image_grid_thw"].tolist()]


def processed(metas: list[ImageMeta]) -> list[tuple[int, int] | None]:
    return [meta.processed_size_hw for meta in metas]


def call(processor: Any, images: list[Image.Image], **options: Any) -> Any:
    text = " ".join([FAMILIES[QWEN].image] * len(images)) + " the cup"
    return processor(images=images, text=text, return_tensors="pt", **options)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Any, VPPProcessor]]:
    return {}


@pytest.mark.parametrize("family", list(FAMILIES))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes=BUDGET, options=CALL, sides=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))
def test_metas_are_what_the_tensors_show(
    pairs: dict[str, tuple[Any, VPPProcessor]],
    family: str,
    attributes: dict[str, Any],
    options: dict[str, Any],
    sides: list[tuple[int, int]],
) -> None:
    """Any settings, as attributes and per call; before the call with the same arguments, and after it from memory."""
    if family not in pairs:
        pairs[family] = attached_family(family)
    _, used = pairs[family]
    if not family.startswith("qwen"):  # their budgets are Qwen's; the others' sizes do not count in their boxes
        attributes = options = {}
    processor = used  # its settings change from example to example, as users change them
    before = dict(vars(processor.image_processor))
    try:
        for name, value in attributes.items():
            setattr(processor.image_processor, name, value)
        images = [image(seed, side) for seed, side in enumerate(sides)]
        text = " ".join([FAMILIES[family].image] * len(images)) + " the cup"
        expected = processor.image_metas(images, **options)
        inputs = processor(images=images, text=text, return_tensors="pt", **options)
        shown = seen(inputs, processor) if family == QWEN else [None] * len(images)

        assert processed(expected) == shown
        assert processed(processor.image_metas(images)) == shown
        assert processed(processor.image_metas(images, inputs)) == shown
    finally:
        vars(processor.image_processor).clear()
        vars(processor.image_processor).update(before)


class TestMemory:
    """Metas are asked for after the call, and without its arguments."""

    def test_each_image_has_the_size_of_its_latest_call(self) -> None:
        _, processor = attached_family(QWEN)
        first, second = image(0, (64, 48)), image(1, (64, 48))
        large = seen(call(processor, [first], max_pixels=64 * 64), processor)
        small = seen(call(processor, [second], max_pixels=24 * 32), processor)

        assert large != small
        assert processed(processor.image_metas([second, first])) == small + large
        call(processor, [first], max_pixels=24 * 32)
        assert processed(processor.image_metas([first])) == small
        usual = seen(call(processor, [first]), processor)
        assert processed(processor.image_metas([first])) == usual

    def test_an_equal_image_read_anew_is_told_by_its_size(self, tmp_path: Path) -> None:
        _, processor = attached_family(QWEN)
        image(0, (64, 48)).save(tmp_path / "a.png")
        shown = seen(call(processor, [Image.open(tmp_path / "a.png")], max_pixels=24 * 32), processor)

        assert processed(processor.image_metas([Image.open(tmp_path / "a.png")])) == shown
        assert processed(processor.image_metas([tmp_path / "a.png"])) == shown
        assert processed(processor.image_metas([(tmp_path / "a.png").read_bytes()])) == shown
        assert processed(processor.image_metas([np.asarray(image(0, (64, 48)))])) == shown

    def test_it_is_refused_where_calls_differ_and_the_image_is_new(self) -> None:
        _, processor = attached_family(QWEN)
        call(processor, [image(0, (64, 48))], max_pixels=64 * 64)
        inputs = call(processor, [image(0, (64, 48))], max_pixels=24 * 32)

        with pytest.raises(VPPError, match=r"have shown images of \(48, 64\) .* image_metas\(images, inputs\)"):
            processor.image_metas([image(0, (64, 48))])
        assert processed(processor.image_metas([image(0, (64, 48))], inputs)) == seen(inputs, processor)

    def test_paths_that_come_again(self, tmp_path: Path) -> None:
        _, processor = attached_family(QWEN)
        for name in "ab":
            image(0, (64, 48)).save(tmp_path / f"{name}.png")
        large = seen(call(processor, [tmp_path / "a.png"], max_pixels=64 * 64), processor)
        small = seen(call(processor, [tmp_path / "b.png"], max_pixels=24 * 32), processor)

        assert processed(processor.image_metas([tmp_path / "a.png", tmp_path / "b.png"])) == large + small

    def test_the_bare_hosts_call_counts_too(self) -> None:
        model, processor = attached_family(QWEN)
        with vpp_disabled(model):
            inputs = call(processor, shown := [image(0, (64, 48))], max_pixels=24 * 32)

        assert processed(processor.image_metas(shown)) == seen(inputs, processor)

    def test_inputs_of_other_images_are_refused(self) -> None:
        _, processor = attached_family(QWEN)
        inputs = call(processor, [image(0, (64, 48))])

        with pytest.raises(VPPError, match="show 1 images in image_grid_thw, but 2 came"):
            processor.image_metas([image(0), image(1)], inputs)

    def test_settings_that_resize_nothing_are_a_sentence(self) -> None:
        _, processor = attached_family(QWEN)

        with pytest.raises(VPPError, match="size needs shortest_edge and longest_edge"):
            processor.image_metas([image(0)], size={"longest_edge": 4096})
        with pytest.raises(VPPError, match="at most 200 times the shorter"):
            processor.image_metas([image(0, (2000, 8))])

    def test_a_copy_in_another_process_remembers_nothing(self) -> None:
        import pickle

        _, processor = attached_family(QWEN)
        usual = processed(processor.image_metas([image(0, (64, 48))]))
        call(processor, [image(0, (64, 48))], max_pixels=24 * 32)

        assert processed(pickle.loads(pickle.dumps(processor)).image_metas([image(0, (64, 48))])) == usual


def set_max_pixels(processor: Any) -> None:
    processor.image_processor.min_pixels, processor.image_processor.max_pixels = 64, 16 * 16


class TestDoors:
    """Everything that reads or writes boxes reckons with what the call did."""

    def test_the_grounder(self) -> None:
        model, processor = attached_family(QWEN)
        usual = Grounder(model, processor).metas([image(0, (64, 48))])
        set_max_pixels(processor)
        grounder = Grounder(model, processor, max_new_tokens=1)
        ((_, meta),) = grounder.ask([image(0, (64, 48))], ["where"])

        assert meta.processed_size_hw != usual[0].processed_size_hw
        assert processed([meta]) == seen(call(processor, [image(0, (64, 48))]), processor)
        assert grounder.metas([image(0, (64, 48))]) == [meta]

    def test_the_grounder_on_a_bare_host(self) -> None:
        model, processor = FAMILIES[QWEN].model(), FAMILIES[QWEN].processor()
        set_max_pixels(processor)
        ((_, meta),) = Grounder(model, processor, max_new_tokens=1).ask([image(0, (64, 48))], ["where"])

        assert processed([meta]) == seen(call(processor, [image(0, (64, 48))]), processor)

    def test_the_grounder_turns_images_upright_first(self, tmp_path: Path) -> None:
        """Its answers were read in the frame of the image as it lies in the file; and a path was an AttributeError."""
        model, processor = attached_family(QWEN)
        turned = Image.Exif()
        turned[0x0112] = 6
        image(0, (64, 48)).save(tmp_path / "a.jpg", exif=turned)
        grounder = Grounder(model, processor, max_new_tokens=1)
        for source in (Image.open(tmp_path / "a.jpg"), tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
            ((_, meta),) = grounder.ask([source], ["where"])

            assert meta == ImageMeta((64, 48), processed_size_hw=(64, 48))
            assert grounder.metas([source]) == [meta]

    def test_a_users_own_call_does_not_change_the_grounders(self) -> None:
        model, processor = attached_family(QWEN)
        grounder = Grounder(model, processor, max_new_tokens=1)
        usual = grounder.metas([image(0, (64, 48))])
        call(processor, [image(0, (64, 48))], max_pixels=24 * 32)

        assert grounder.metas([image(0, (64, 48))]) == usual
        assert grounder.ask([image(0, (64, 48))], ["where"])[0][1] == usual[0]

    def test_boxes_in_questions(self, tmp_path: Path) -> None:
        model, processor = attached_family(QWEN)
        set_max_pixels(processor)
        grounder = Grounder(model, processor, max_new_tokens=1)
        rows = regions([replace(make_rows(1)[0], boxes=((0.0, 0.0, 40.0, 20.0),))])
        answers = evaluate(grounder, rows, protocol("region-caption"), tmp_path)

        assert [answers[0].processed_size_hw] == seen(call(processor, [rows[0].load_image()]), processor)

    def test_boxes_in_questions_of_another_size_are_refused(self, tmp_path: Path) -> None:
        class Changing(Grounder):
            def ask(self, *args: Any, **kwargs: Any) -> Any:
                set_max_pixels(self.processor)
                return super().ask(*args, **kwargs)

        model, processor = attached_family(QWEN)
        rows = regions([replace(make_rows(1)[0], boxes=((0.0, 0.0, 40.0, 20.0),))])
        with pytest.raises(VPPError, match="boxes were written for an image resized to"):
            evaluate(Changing(model, processor, max_new_tokens=1), rows, protocol("region-caption"), tmp_path)

    def collator(self, folder: Path) -> Collator:
        data = open_data(write_data(folder, samples(4)), "neutral", cache=folder)
        model, processor = attached_family(QWEN)
        backbone = host_state(model).backbone
        return Collator(data, processor, ChatWriter(backbone.box_format), image_token=backbone.image_token)

    def test_training_targets(self, tmp_path: Path) -> None:
        collate = self.collator(tmp_path)
        set_max_pixels(collate.processor)
        loaded = collate.data[0]
        batch = collate([loaded])

        meta = collate.meta(loaded)
        assert processed([meta]) == seen(batch, collate.processor)
        assert str(ChatWriter("qwen2.5-vl")(loaded.sample, meta)) in str(collate.write(loaded.sample, meta))

    def test_training_targets_of_another_size_are_refused(self, tmp_path: Path) -> None:
        collate = self.collator(tmp_path)
        row = collate.row(collate.data[0])
        set_max_pixels(collate.processor)

        with pytest.raises(VPPError, match="boxes were written for an image resized to"):
            collate.batch([row])


class TestRewards:
    @pytest.fixture
    def trainer(self, tmp_path: Path) -> Any:
        trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
        from vpp_plugins.train.grpo import VPPGRPOTrainer

        model, processor = attached_family(QWEN)
        rows = datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": "where"}]], "image": [image()]})
        settings = trl.GRPOConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=2, num_generations=2,
        )  # fmt: skip
        return VPPGRPOTrainer(
            model=model, processing_class=processor, reward_funcs=lambda **_: [], args=settings, train_dataset=rows
        )

    @pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
    def test_samples_are_given_their_size_and_another_is_refused(self, trainer: Any) -> None:
        set_max_pixels(trainer.processing_class)
        shown = seen(call(trainer.processing_class, [image(0, (64, 48))]), trainer.processing_class)
        example = {"prompt": [], "image": image(0, (64, 48))}

        assert trainer._sized(example)["processed_size_hw"] == shown[0]
        assert trainer._sized({**example, "processed_size_hw": list(shown[0])})["processed_size_hw"] == shown[0]
        with pytest.raises(VPPError, match=r"processed_size_hw is \[48, 64\], but the processor shows its image at"):
            trainer._sized({**example, "processed_size_hw": [48, 64]})


def crop_by_attribute(**values: Any) -> tuple[Callable[[Any], None], dict[str, Any]]:
    def change(image_processor: Any) -> None:
        for name, value in values.items():
            setattr(image_processor, name, value)

    return change, {}


def crop_by_call(**values: Any) -> tuple[Callable[[Any], None], dict[str, Any]]:
    return lambda image_processor: None, values


class TestSquares:
    """LLaVA measures boxes on the padded square: a setting that crops it, by whatever name, moves every box."""

    @pytest.mark.parametrize(
        "change",
        [
            crop_by_attribute(do_pad=False),
            crop_by_attribute(size={"shortest_edge": 48}),
            crop_by_call(do_pad=False),
            crop_by_call(images_kwargs={"do_pad": False}),
            crop_by_call(size={"shortest_edge": 64}),
            crop_by_call(do_resize=False),
        ],
    )
    def test_crops_are_refused(self, change: tuple[Callable[[Any], None], dict[str, Any]]) -> None:
        _, processor = attached()
        prepare, options = change
        prepare(processor.image_processor)

        with pytest.raises(VPPError, match="boxes would be measured in another frame"):
            processor(images=[image(0, (100, 40))], text="<image> cup", return_tensors="pt", **options)

    def test_what_keeps_the_square_is_served(self) -> None:
        _, processor = attached()
        for size, options in (((40, 40), {"do_pad": False}), ((100, 40), {"size": {"height": 32, "width": 32}})):
            processor(images=[image(0, size)], text="<image> cup", return_tensors="pt", **options)


UNITS = {
    "do_normalize": st.booleans(),
    "image_mean": st.sampled_from([[0.5] * 3, list(OPENAI_CLIP_MEAN)]),
    "image_std": st.sampled_from([[0.5] * 3, list(OPENAI_CLIP_STD)]),
    "do_rescale": st.booleans(),
    "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5]),
}


@pytest.mark.parametrize("family", ["llava", QWEN, "llava_next"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({}, optional=UNITS), way=st.sampled_from(["call", "images_kwargs", "attributes"]))
def test_pixels_in_other_units_than_the_prompt_s_are_refused(
    pairs: dict[str, tuple[Any, VPPProcessor]], family: str, values: dict[str, Any], way: str
) -> None:
    """The global prompt was laid over pixels of another mean and scale without a word; the host's own tell which."""
    if family not in pairs:
        pairs[family] = attached_family(family)
    processor = pairs[family][1]
    inputs = {"images": [image(0, (64, 48))], "text": FAMILIES[family].image, "return_tensors": "pt"}
    options = {"call": values, "images_kwargs": {"images_kwargs": values}, "attributes": {}}[way]
    usual = processor.processor(**inputs)["pixel_values"]
    before = dict(vars(processor.image_processor))
    try:
        for name, value in values.items() if way == "attributes" else ():
            setattr(processor.image_processor, name, value)
        if torch.allclose(processor.processor(**inputs, **options)["pixel_values"].float(), usual, atol=1e-5):
            assert torch.allclose(processor(**inputs, **options)["pixel_values"], usual, atol=1e-5)
        else:
            with pytest.raises(VPPError, match=r"the global prompt counts in mean .* as the processor had them"):
                processor(**inputs, **options)
    finally:
        vars(processor.image_processor).clear()
        vars(processor.image_processor).update(before)


def test_without_a_global_prompt_pixels_are_the_user_s() -> None:
    model, processor = attached(config=toy_config(global_vpp=None))
    model(**processor(images=[image()], text="<image> cup", return_tensors="pt", do_normalize=False))


def test_images_kwargs_are_asked_what_tiles_show() -> None:
    """They were said to fail on an image of floats: twice the same argument."""
    _, processor = attached_family("internvl")
    whole = call_of("internvl", processor, crop_to_patches=False, do_normalize=True)
    again = call_of("internvl", processor, images_kwargs={"crop_to_patches": False, "do_normalize": True})

    assert len(whole["vpp_tile_boxes"]) == len(whole["pixel_values"]) == 1
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def call_of(family: str, processor: Any, **options: Any) -> Any:
    return processor(images=[image(0, (64, 48))], text=FAMILIES[family].image, return_tensors="pt", **options)
