import json
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.families import FAMILIES, attached_family
from tests.processor.test_families import CASES
from tests.tiny import attached, image, tiny_llava, tiny_processor, toy_config
from tests.zoo.hosts import tiny_host
from vpp_plugins import Grounder, Grounding, VPPError, VPPProcessor, attach_vpp, vpp_disabled
from vpp_plugins.attach.vocabulary import rows_of
from vpp_plugins.boxes import BoxStatus
from vpp_plugins.plugins.backbone import Backbone

pytestmark = [
    pytest.mark.usefixtures("toy"),
    # hosts' own: they make arrays of tensors in the old way
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SIZES = [(40, 24), (16, 40), (32, 32), (100, 20), (24, 24)]
EXPRESSIONS = ["the red cup", "cup", "the cup is red . where is the red cup", "red", "is the cup the cup"]


def saying(processor: Any, *answers: str) -> Any:
    """The same processor, which reads these answers in turn, whatever the model wrote."""
    left = list(answers)
    processor.batch_decode = lambda ids, **_: [left.pop(0) for _ in ids]
    return processor


def showing_ids(processor: Any) -> Any:
    """The same processor, whose answers are the token ids as text."""
    processor.batch_decode = lambda ids, **_: [" ".join(map(str, row.tolist())) for row in ids]
    return processor


def grounder(*answers: str, **options: Any) -> Grounder:
    model, processor = attached()
    return Grounder(model, saying(processor, *answers), max_new_tokens=2, **options)


def test_one_pair_gives_one_grounding_in_pixels_of_the_image() -> None:
    """The box is of the square to which LLaVA pads: 40 x 24 pixels begin 8 pixels below its top."""
    asked = image(0, (40, 24))

    grounding = grounder(" [0.1, 0.2, 0.3, 0.6]\n")(asked, "the red cup")

    assert isinstance(grounding, Grounding)
    assert grounding.boxes == (pytest.approx((4, 0, 12, 16)),)
    assert grounding.labels == (None,)
    assert grounding.status == "ok"
    assert grounding.text == "[0.1, 0.2, 0.3, 0.6]"
    assert grounding.expression == "the red cup"
    assert grounding.image.tobytes() == asked.tobytes()


def test_an_answer_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shell by one line, in a notebook by its drawing, to others as JSON and as supervision's detections."""
    boxed, empty = grounder("[0.1, 0.2, 0.3, 0.4]", "12")([image(0, (100, 100))] * 2, ["the cup", "the cap"])

    assert repr(boxed) == "<Grounding 'the cup': (10.0, 20.0, 30.0, 40.0) of 100 x 100 pixels, ok>"
    assert repr(empty) == "<Grounding 'the cap': no box of 100 x 100 pixels, unparsable>"
    size = {"width": 100, "height": 100}
    said = {"boxes": [[10, 20, 30, 40]], "labels": [None], "status": "ok", "text": "[0.1, 0.2, 0.3, 0.4]"}
    assert json.loads(json.dumps(boxed.to_dict())) == size | said | {"expression": "the cup"}
    with Image.open(BytesIO(boxed._repr_png_())) as shown:
        assert shown.tobytes() == boxed.draw().tobytes()

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(VPPError, match="pip install supervision"):
        boxed.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    found, none = boxed.to_supervision(), empty.to_supervision()
    assert (found.xyxy.shape, found.xyxy.dtype, none.xyxy.shape) == ((1, 4), np.float32, (0, 4))
    assert found.xyxy[0] == pytest.approx([10, 20, 30, 40])
    assert (found.class_id.tolist(), found.data["class_name"].tolist()) == ([0], ["the cup"])


def test_two_lists_give_one_grounding_per_pair_in_their_order() -> None:
    answers = [f"[0.{i}, 0.5, 0.9, 0.6]" for i in range(5)]

    groundings = grounder(*answers, batch_size=2)([image(i, (100, 100)) for i in range(5)], EXPRESSIONS)

    assert [grounding.boxes[0][0] for grounding in groundings] == pytest.approx([0, 10, 20, 30, 40])
    assert [grounding.expression for grounding in groundings] == EXPRESSIONS
    for seed, grounding in enumerate(groundings):
        assert grounding.image.tobytes() == image(seed, (100, 100)).tobytes()


def test_lists_may_be_tuples_and_may_be_empty() -> None:
    assert grounder()([], []) == []
    assert len(grounder("x", "y")((image(0), image(1)), ("red", "cup"))) == 2


def test_every_kind_of_image_is_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    image(3).save(path)

    groundings = grounder(*"abcd")([path, str(path), path.read_bytes(), image(3)], ["cup"] * 4)

    assert all(grounding.image.tobytes() == image(3).tobytes() for grounding in groundings)


@pytest.mark.parametrize(
    ("images", "expressions", "message"),
    [
        ([image(), image()], ["cup"], "2 images came with 1 expressions"),
        ([image(), image()], "cup", "one expression came with 2 images"),
        (image(), ["cup", "red"], "one image came with 2 expressions"),
        ("photo.jpg", ["cup"], "one image came with 1 expressions"),
        (image(), "", "the expression is empty"),
        ([image(), image()], ["cup", " \n"], "the expression is empty"),
        ("missing.jpg", "cup", "'missing.jpg' does not exist"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(images: Any, expressions: Any, message: str) -> None:
    asking = grounder(batch_size=1)
    asking.model.generate = None

    with pytest.raises(VPPError, match=message):
        asking(images, expressions)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("images", "expressions", "message"),
    [
        (np.zeros((9, 9, 3)), "cup", "an image must be a path, .* but is a ndarray"),
        (image(), None, "an expression is a text, .* but None came"),
        ([image()], [3], r"an expression is a text, .* but \[3\] came"),
    ],
)
def test_what_is_no_image_and_no_text_is_refused(images: Any, expressions: Any, message: str) -> None:
    with pytest.raises(VPPError, match=message):
        grounder()(images, expressions)


@pytest.mark.parametrize(
    ("answer", "boxes", "status", "statuses"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", 1, "ok", ["ok"]),
        ("[0.1, 0.2, 0.3, 1.4]", 1, "clipped", ["clipped"]),
        ("[0.3, 0.2, 0.1, 0.4]", 1, "inverted", ["inverted"]),
        ("[0.1, 0.2, 0.3, 0.4] and [0.3, 0.2, 0.1, 0.4]", 2, "inverted", ["ok", "inverted"]),
        ("[0.3, 0.2, 0.1, 0.4], [0.1, 0.2, 0.3, 1.4]", 2, "inverted", ["inverted", "clipped"]),
        ("on the table", 0, "unparsable", ["unparsable"]),
        ("", 0, "unparsable", ["unparsable"]),
        ("[]", 0, "none", ["none"]),
    ],
)
def test_status_is_the_worst_of_the_boxes(answer: str, boxes: int, status: str, statuses: list[str]) -> None:
    grounding = grounder(answer)(image(0, (100, 100)), "cup")

    assert (len(grounding.boxes), grounding.status, list(grounding.statuses)) == (boxes, status, statuses)
    assert len(grounding.labels) == boxes
    assert isinstance(grounding.status, BoxStatus)


def test_draw_returns_a_copy_with_every_box_on_it() -> None:
    grounding = grounder("[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]")(Image.new("RGB", (200, 200), "white"), "cup")

    drawn = grounding.draw()

    assert drawn.size == (200, 200)
    assert drawn.getpixel((20, 50)) != (255, 255, 255)
    assert drawn.getpixel((180, 150)) != (255, 255, 255)
    assert grounding.image.getcolors() == [(200 * 200, (255, 255, 255))]


@pytest.mark.parametrize(("answer", "status"), [("[]", "none"), ("hm", "unparsable")])
def test_what_is_not_found_is_written_on_the_drawing(answer: str, status: str) -> None:
    grounding = grounder(answer)(Image.new("RGB", (200, 200), "white"), "cup")

    assert grounding.status == status
    assert grounding.draw().getpixel((1, 1)) != (255, 255, 255)
    assert grounding.draw().getpixel((150, 150)) == (255, 255, 255)


def hosts() -> dict[str, Callable[[], tuple[Any, Any]]]:
    return {"attached": attached, "bare": lambda: (tiny_llava(), tiny_processor())}


@pytest.mark.parametrize("host", hosts())
def test_a_batch_answers_as_its_pairs_one_by_one(host: str) -> None:
    """Token for token, with images of other shapes and expressions of other lengths beside them."""
    model, processor = hosts()[host]()
    asking = Grounder(model, showing_ids(processor), max_new_tokens=6)
    images = [image(seed, size) for seed, size in enumerate(SIZES)]

    together = asking(images, EXPRESSIONS)

    compared = 0
    for shown, expression, grounding in zip(images, EXPRESSIONS, together, strict=True):
        certain = certain_tokens(asking, shown, expression)
        alone = asking(shown, expression)
        assert grounding.text.split()[:certain] == alone.text.split()[:certain]
        compared += certain
    assert compared > 20
    assert len({grounding.text for grounding in together}) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_any_family_answers_as_its_pairs_one_by_one(name: str) -> None:
    model, processor = attached_family(name)
    asking = Grounder(model, showing_ids(processor), max_new_tokens=5)
    images = [image(seed, (size[0] * 2, size[1] * 2)) for seed, size in enumerate(SIZES)]

    together = asking(images, EXPRESSIONS)

    compared = 0
    for shown, expression, grounding in zip(images, EXPRESSIONS, together, strict=True):
        certain = certain_tokens(asking, shown, expression)
        assert grounding.text.split()[:certain] == asking(shown, expression).text.split()[:certain]
        compared += certain
    assert compared > 12


def test_boxes_in_pixels_of_the_resized_image_come_back_to_the_original() -> None:
    """Qwen2.5-VL; its image processor brings 100 x 52 pixels to the nearest sides it can cut into patches."""
    model, processor = attached_family("qwen2_5_vl")
    shown = image(0, (100, 52))
    grid = processor(images=[shown], text=[Grounder(model, processor)._prompt("cup")], return_tensors="pt")
    _, rows, columns = grid["image_grid_thw"][0].tolist()
    height, width = rows * 4, columns * 4
    answer = f'[{{"bbox_2d": [0, 0, {width // 2}, {height}], "label": "cup"}}]'

    grounding = Grounder(model, saying(processor, answer), max_new_tokens=1)(shown, "cup")

    assert (height, width) != (52, 100)
    assert grounding.boxes == (pytest.approx((0, 0, 100 * (width // 2) / width, 52)),)
    assert grounding.labels == ("cup",)
    assert processor.image_metas([shown])[0].processed_size_hw == (height, width)


def test_another_processor_does_not_tell_how_it_resizes() -> None:
    model, processor = attached()

    with pytest.raises(
        VPPError, match="counts pixels of the image as Qwen's image processor resizes it, which a Llava"
    ):
        Grounder(model, processor, box_format="qwen2.5-vl", max_new_tokens=1)(image(), "cup")


def test_location_tokens_are_read_though_they_are_special() -> None:
    model, processor = attached(tiny_llava(vocabulary=64))
    tokens = ["<|box_start|>", "<|box_end|>", "(100,200),(300,400)"]
    processor.tokenizer.add_tokens(tokens, special_tokens=True)
    answer = processor.tokenizer.convert_tokens_to_ids(["<s>", tokens[0], tokens[2], tokens[1], "</s>", "<pad>"])
    model.generate = lambda **inputs: torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)

    grounding = Grounder(model, processor, box_format="qwen2-vl")(image(0, (50, 100)), "cup")

    assert grounding.boxes == (pytest.approx((5, 20, 15, 40)),)
    assert grounding.text.split() == ["<|box_start|>", "(100,200),(300,400)", "<|box_end|>"]


def test_every_end_that_generation_knows_is_left_out() -> None:
    model, processor = attached()
    model.generation_config.eos_token_id = [2, 12]
    model.generate = lambda **inputs: torch.cat([inputs["input_ids"], torch.tensor([[10, 12, 0]])], dim=1)

    assert Grounder(model, processor)(image(), "cup").text == "cup"


def test_without_a_template_the_image_comes_before_the_question() -> None:
    plain = Backbone(adapter="any", hidden_size=24, vision_encoders=(), box_format="qwen2-vl", frame="image")
    config = toy_config(global_vpp=None)
    model = attach_vpp(tiny_llava(), config, adapter=plain)
    first = attach_vpp(tiny_llava(), config, adapter=replace(plain, image_token="", box_format="paligemma"))

    asking = Grounder(model, VPPProcessor(tiny_processor(), model))
    assert asking._prompt(asking.codec.prompt("the {red} cup")) == (
        "<image>\nLocate the {red} cup in this image and output its bounding box."
    )
    asking = Grounder(first, VPPProcessor(tiny_processor(), first))
    assert asking._prompt(asking.codec.prompt("cup")) == "detect cup"


ASKED = {
    "florence2": ("florence2", "<CAPTION_TO_PHRASE_GROUNDING>the red cup"),
    "paligemma": ("paligemma", "detect the red cup"),
    "blip-2": ("blip2", 'Locate every object that matches the description "the red cup"'),
    "mistral3": ("pixtral", '[IMG]\nLocate every object that matches the description "the red cup"'),
    "idefics3": ("idefics3", '<image>\nLocate every object that matches the description "the red cup"'),
}


@pytest.mark.parametrize("kind", ASKED)
def test_every_kind_of_host_is_asked_in_its_own_way(kind: str) -> None:
    """An encoder-decoder with task tokens, a host that sets images first, one that generates from embeddings, tiles."""
    case, begins = ASKED[kind]
    host, processor = tiny_host(kind), CASES[case].build()
    # transformers 5.17's PaliGemma adds the places and segments, which checkpoints have, to the tokenizer by itself
    host.resize_token_embeddings(max(rows_of(host), len(processor.tokenizer)))
    host.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    if kind == "florence2":
        processor.num_image_tokens = 17
    model: Any = attach_vpp(host, toy_config())
    asking = Grounder(model, showing_ids(VPPProcessor(processor, model)), max_new_tokens=4)
    model.vpp.trained = True
    images, expressions = [image(0, (64, 64)), image(1, (64, 48))], ["the red cup", "cup"]

    together = asking(images, expressions)

    assert asking._prompt(asking.codec.prompt("the red cup")).startswith(begins)
    assert all(0 < len(grounding.text.split()) <= 4 for grounding in together)
    assert [asking(*pair).text for pair in zip(images, expressions, strict=True)] == [g.text for g in together]


def certain_tokens(asking: Grounder, shown: Image.Image, expression: str) -> int:
    """How many tokens of the answer come before the first that hangs on less than rounding could turn."""
    text = asking._prompt(asking.codec.prompt(expression))
    inputs = asking.processor(images=[shown], text=[text], return_tensors="pt")
    answer = asking.model.generate(
        **inputs, do_sample=False, max_new_tokens=6, return_dict_in_generate=True, output_logits=True
    )
    first, second = torch.cat(answer.logits).topk(2).values.unbind(-1)
    return int((first - second > 1e-3).long().cumprod(0).sum())


def test_inside_vpp_disabled_the_bare_host_answers() -> None:
    model, processor = attached()
    images = [image(seed, size) for seed, size in enumerate(SIZES)]
    asking = Grounder(model, showing_ids(processor), max_new_tokens=6)
    bare = Grounder(tiny_llava(), showing_ids(processor.processor), max_new_tokens=6)

    with vpp_disabled(model):
        disabled = [grounding.text for grounding in asking(images, EXPRESSIONS)]

    assert disabled == [grounding.text for grounding in bare(images, EXPRESSIONS)]
    assert disabled != [grounding.text for grounding in asking(images, EXPRESSIONS)]


def test_the_families_question_is_asked_in_the_hosts_chat_template() -> None:
    model, processor = tiny_llava(), tiny_processor()
    question = "Please provide the bounding box coordinate of the region this sentence describes: the red cup."
    asking = Grounder(model, processor)

    assert asking._prompt(asking.codec.prompt("the red cup")) == f"USER: <image>\n{question} ASSISTANT:"

    processor.chat_template = (
        "{% for message in messages %}<image>{{ message.role }}: {{ message.content[1].text }}{% endfor %}"
        "{% if add_generation_prompt %} answer:{% endif %}"
    )
    assert asking._prompt(asking.codec.prompt("the red cup")) == f"<image>user: {question} answer:"


def test_another_families_codec_can_be_named() -> None:
    asking = grounder("<|box_start|>(100,200),(300,400)<|box_end|>", box_format="qwen2-vl")

    grounding = asking(image(0, (50, 100)), "the red cup")

    assert "Locate the red cup in this image" in asking._prompt(asking.codec.prompt("the red cup"))
    assert grounding.boxes == (pytest.approx((5, 20, 15, 40)),)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(VPPError, match="Did you mean 'llava'"):
        grounder(box_format="lava")
    with pytest.raises(VPPError, match="batch_size must be at least 1"):
        grounder(batch_size=0)
    with pytest.raises(VPPError, match="max_new_tokens must be at least 1"):
        Grounder(*attached(), max_new_tokens=0)
    with pytest.raises(VPPError, match="2 images came with 1 questions"):
        grounder().ask([image(), image()], ["where"])
    with pytest.raises(VPPError, match="no adapter claims Linear"):
        Grounder(nn.Linear(2, 2), tiny_processor())


def test_parts_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    """They ended in errors of transformers, or in sentences about placeholders and adapters."""
    model, processor = attached()
    for part in (processor.tokenizer, processor.image_processor, None):
        with pytest.raises(VPPError, match=r"the host's whole processor is needed"):
            Grounder(model, part)
    with pytest.raises(VPPError, match="the processor is a VPPProcessor, but VPP is not attached to this Llava"):
        Grounder(tiny_llava(), processor)
    for other in (attached_family("qwen2_vl")[1], FAMILIES["qwen2_vl"].processor()):
        for host in (model, tiny_llava()):
            if host is model or not isinstance(other, VPPProcessor):
                with pytest.raises(VPPError, match="Qwen2VLProcessor is not the processor of this LlavaFor"):
                    Grounder(host, other)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"holds prompts beside this host, which is asked without them: attach_vpp"):
        Grounder(type(tiny_llava()).from_pretrained(tmp_path), tiny_processor())


@pytest.mark.parametrize(
    "asked",
    [
        {"num_return_sequences": 2},
        {"num_return_sequences": 2, "num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"num_return_sequences": None},  # the host's own may be another
        {"return_dict_in_generate": True},
    ],
)
def test_several_answers_to_a_question_are_refused(asked: dict[str, Any]) -> None:
    """It was a raw ValueError of zip, or a TypeError of tuple indices."""
    model, processor = attached()
    with pytest.raises(VPPError, match=f"one answer a question, but {next(iter(asked))} = .* came: leave it out"):
        Grounder(model, processor).ask([image()], ["where"], **asked)


def test_a_batch_is_padded_on_the_left_and_the_tokenizers_own_side_put_back() -> None:
    asking = grounder("x", "y")
    asking.processor.tokenizer.padding_side = "right"
    masks: list[Tensor] = []
    generate = asking.model.generate
    asking.model.generate = lambda **inputs: (masks.append(inputs["attention_mask"]), generate(**inputs))[1]

    asking([image(), image()], ["cup", "the red cup . the red cup"])

    assert not masks[0][0, 0]
    assert masks[0][:, -1].all()
    assert asking.processor.tokenizer.padding_side == "right"

    with pytest.raises(VPPError, match="2 image placeholders"):
        asking(image(), "the <image> cup")
    assert asking.processor.tokenizer.padding_side == "right"


@pytest.mark.parametrize("fails", [False, True])
def test_every_modules_training_mode_is_put_back(fails: bool) -> None:
    asking = grounder("x")
    model = asking.model.train()
    model.model.vision_tower.eval()
    before = {name: module.training for name, module in model.named_modules()}
    during: list[bool] = []
    generate = model.generate

    def watched(**inputs: Any) -> Tensor:
        during.extend(module.training for module in model.modules())
        if fails:
            raise RuntimeError("out of memory")
        return generate(**inputs)

    model.generate = watched
    if fails:
        with pytest.raises(RuntimeError):
            asking(image(), "cup")
    else:
        asking(image(), "cup")

    assert not any(during)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert sum(before.values()) > 10


def test_answers_are_greedy_whatever_the_generation_config_says() -> None:
    model, processor = attached()
    asking = Grounder(model, showing_ids(processor), max_new_tokens=6)
    greedy = asking(image(), "cup").text

    model.generation_config.do_sample = True
    model.generation_config.num_beams = 3

    assert {asking(image(), "cup").text for _ in range(3)} == {greedy}


def test_an_encoder_decoders_answer_is_read_from_its_start() -> None:
    """Its output does not repeat the prompt, whose length was cut off all the same."""
    model, processor = tiny_llava(), showing_ids(tiny_processor())
    model.generate = lambda **_: torch.tensor([[7, 8, 9]])
    model.config.is_encoder_decoder = True

    assert Grounder(model, processor)(image(), "cup").text == "7 8 9"


def test_any_question_can_be_asked(toy: None) -> None:
    model, processor = attached()
    asking = Grounder(model, processor)
    images = [image(0), image(1, (24, 40))]
    own = [asking.codec.prompt("the red cup")] * 2
    told = asking.ask(images, ["is the cup red", own[0]], max_new_tokens=3)

    assert [meta.size_hw for _, meta in told] == [(24, 40), (40, 24)]
    assert all(len(text.split()) <= 3 for text, _ in told)
    assert [text.strip() for text, _ in asking.ask(images, own)] == [
        grounding.text for grounding in asking(images, ["the red cup"] * 2)
    ]


def test_plain_questions_need_no_image(toy: None) -> None:
    model, processor = attached()
    asking = Grounder(model, processor)
    told = asking.talk(["is the cup red", "the cup"], max_new_tokens=3)

    assert [len(text.split()) <= 3 for text, _ in told] == [True, True]
    assert told[1] == asking.talk(["the cup"], max_new_tokens=3)[0]
    assert asking.talk([]) == []
    assert "<image>" not in asking._prompt("the cup", image=False)
    with pytest.raises(VPPError, match="a text came in place of several questions: give a list of texts"):
        asking.talk("the cup")


def test_talk_says_which_answers_ended() -> None:
    """By any end that generation knows: Gemma's turn ends with another token than its text."""
    model, processor = attached()
    model.generation_config.eos_token_id = [2, 12]
    told = torch.tensor([[10, 12, 0], [10, 10, 10]])
    model.generate = lambda **inputs: torch.cat([inputs["input_ids"], told], dim=1)

    assert Grounder(model, processor).talk(["cup", "cup"]) == [("cup", True), ("cup cup cup", False)]
