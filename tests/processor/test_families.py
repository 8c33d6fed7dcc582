"""Every kind of processor of transformers, real ones with toy tokenizers: where the placeholders go, and what stays."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from packaging.version import Version
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.families import FAMILIES, WORDS, attached_family, encoder_pixels, family_inputs, tokenizer
from tests.tiny import image, tiny_llava, toy_config
from tests.tiny import image as noise
from vpp_plugins import VPPError, VPPProcessor, attach_vpp, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.windows import to_windows
from vpp_plugins.images import letterbox, load_image
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.processor.processor import Placement

pytestmark = [
    pytest.mark.usefixtures("toy"),
    # hosts' own: they make arrays of tensors in the old way
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

PER_IMAGE = 4
ONE_EACH = (1, 1, 1)
SQUARE = {"height": 32, "width": 32}
ANY_HOST = Backbone(adapter="any", hidden_size=24, vision_encoders=(), box_format="llava", frame="image")
"""The processor alone is under test: its host may be anything with rows enough."""


def any_host() -> Any:
    model = tiny_llava(vocabulary=2048)
    model.config.image_token_id = None  # which one it is depends on the processor
    return model


@dataclass(frozen=True)
class Case:
    """A processor, and what its texts and images may look like."""

    build: Callable[[], Any]
    image: str
    """How one image stands in the text; "" where the processor sets it before the text."""
    before: str
    """The token before the run."""
    after: str = "is"
    """The token after the run."""
    counts: tuple[int, int, int] = (3, 0, 1)
    """How many images the texts of a batch have; (1, 1, 1) where a text must have one."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the processor is called with besides."""


def clip(kind: type, **more: Any) -> Any:
    return kind(size={"shortest_edge": 32}, crop_size=SQUARE, **more)


def aya() -> Any:
    tiles = [f"TILE_{i}" for i in range(1, 13)]
    others = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "<|IMG_PATCH|>", *tiles]
    return hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE), tokenizer({}, ["<image>", *others]), patch_size=4, img_size=32
    )


def idefics3(kind: str) -> Any:
    if kind == "SmolVLM":
        module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
        module.num2words = module.num2words or str  # it spells counts of video frames, and no wheel of it can be had
    named = {
        "<image>": "image_token",
        "<fake_token_around_image>": "fake_image_token",
        "<global-img>": "global_image_token",
        "<end_of_utterance>": "end_of_utterance_token",
    }
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]
    images = getattr(hf, f"{kind}ImageProcessor")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    others = [hf.SmolVLMVideoProcessor()] if kind == "SmolVLM" else []
    return getattr(hf, f"{kind}Processor")(images, tokenizer(named, rows), *others, image_seq_len=4)


def idefics2() -> Any:
    return hf.Idefics2Processor(
        hf.Idefics2ImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_image_splitting=False),
        tokenizer({}),
        image_seq_len=4,
    )


def pixtral() -> Any:
    return hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}),
        tokenizer({}, ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
        patch_size=8,
        spatial_merge_size=2,
    )


def gemma3() -> Any:
    named = {"<image_soft_token>": "image_token", "<start_of_image>": "boi_token", "<end_of_image>": "eoi_token"}
    return hf.Gemma3Processor(hf.Gemma3ImageProcessor(size=SQUARE), tokenizer(named), image_seq_length=4)


def paddle() -> Any:
    return hf.PaddleOCRVLProcessor(hf.PaddleOCRVLImageProcessor(), tokenizer({"<|IMAGE_PLACEHOLDER|>": "image_token"}))


def glm4v() -> Any:
    named = {"<|image|>": "image_token", "<|video|>": "video_token"}
    others = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    return hf.Glm4vProcessor(hf.Glm4vImageProcessor(), tokenizer(named, others), hf.Glm4vVideoProcessor())


def paligemma() -> Any:
    images = hf.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, tokenizer({}, ["<image>"]))


def llama4() -> Any:
    tokens = "<|image|> <|patch|> <|image_start|> <|image_end|> <|tile_x_separator|> <|tile_y_separator|>".split()
    return hf.Llama4Processor(hf.Llama4ImageProcessor(size=SQUARE), tokenizer({}, tokens), patch_size=8)


def mllama() -> Any:
    return hf.MllamaProcessor(hf.MllamaImageProcessor(size=SQUARE), tokenizer({}, ["<|image|>", "<|python_tag|>"]))


def florence2() -> Any:
    images = clip(hf.CLIPImageProcessor)
    images.image_seq_length = 5
    return hf.Florence2Processor(images, tokenizer({"<image>": "image_token"}))


def blip2() -> Any:
    return hf.Blip2Processor(hf.BlipImageProcessor(size=SQUARE), tokenizer({}), num_query_tokens=3)


def instruct_blip() -> Any:
    return hf.InstructBlipProcessor(
        hf.BlipImageProcessor(size=SQUARE), tokenizer({}), tokenizer({}), num_query_tokens=3
    )


def git() -> Any:
    words = tokenizer({})
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $0", special_tokens=[("<s>", 1)])
    return hf.GitProcessor(clip(hf.CLIPImageProcessor), words)


def kosmos2() -> Any:
    return hf.Kosmos2Processor(
        clip(hf.CLIPImageProcessor), tokenizer({}, ["<image>", "</image>"]), num_patch_index_tokens=4
    )


def fuyu() -> Any:
    """Fuyu's tokenizer begins every text with an underscore, which its processor cuts off the images' tokens."""
    vocabulary = [*WORDS, "_", "|SPEAKER|", "|NEWLINE|", "<0x04>"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.normalizer = normalizers.Prepend("_ ")
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\|[A-Z]+\||<0x04>|[^\s|<]+"), "removed", invert=True)
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
    return hf.FuyuProcessor(hf.FuyuImageProcessor(size={"height": 60, "width": 60}), fast)


def chameleon() -> Any:
    words = tokenizer({}, ["<image>", "<racm3:break>", "<eoss>"])
    words.sep_token = "</s>"
    return hf.ChameleonProcessor(clip(hf.ChameleonImageProcessor), words, image_seq_length=4)


def deepseek_vl() -> Any:
    return hf.DeepseekVLProcessor(
        hf.DeepseekVLImageProcessor(size=SQUARE), tokenizer({"<image_placeholder>": "image_token"}), num_image_tokens=4
    )


def of_family(name: str, before: str, after: str = "is") -> Case:
    return Case(FAMILIES[name].processor, FAMILIES[name].image, before, after)


QWEN = ("<|image_pad|>", "<|vision_end|>")
CASES = {
    "llava": of_family("llava", "<image>"),
    "llava_next": of_family("llava_next", "<image>"),
    "llava_onevision": of_family("llava_onevision", "<image>"),
    "qwen2_vl": of_family("qwen2_vl", *QWEN),
    "qwen2_5_vl": of_family("qwen2_5_vl", *QWEN),
    "qwen3_vl": of_family("qwen3_vl", *QWEN),
    "internvl": of_family("internvl", "</img>"),
    "aya": Case(aya, "<image>", "<|END_OF_IMG|>"),
    "idefics3": Case(lambda: idefics3("Idefics3"), "<image>", "<fake_token_around_image>"),
    "smolvlm": Case(lambda: idefics3("SmolVLM"), "<image>", "<fake_token_around_image>"),
    "pixtral": Case(pixtral, "[IMG]", "[IMG_END]"),
    "gemma3": Case(gemma3, "<start_of_image>", "<end_of_image>"),
    "paddle": Case(paddle, "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_PLACEHOLDER|>"),
    "glm4v": Case(glm4v, "<|begin_of_image|><|image|><|end_of_image|>", "<|image|>", "<|end_of_image|>"),
    "llama4": Case(llama4, "<|image|>", "<|image_end|>"),
    "chameleon": Case(chameleon, "<image>", "<eoss>"),
    "deepseek_vl": Case(deepseek_vl, "<image_placeholder>", "<image_placeholder>"),
    "mllama": Case(mllama, "<|image|>", "<|image|>", counts=(3, 2, 1)),
    "idefics2": Case(idefics2, "<image>", "<fake_token_around_image>"),
    "paligemma": Case(paligemma, "", "<image>", "<s>", counts=ONE_EACH),
    "paligemma with markers": Case(paligemma, "<image>", "<image>", "<s>", counts=ONE_EACH),
    "florence2": Case(florence2, "", "<image>", "<s>", counts=ONE_EACH),
    "fuyu": Case(fuyu, "", "<s>", "_", counts=ONE_EACH),
    "blip2": Case(blip2, "", "<image>", counts=ONE_EACH),
    "instruct_blip": Case(instruct_blip, "", "<image>", counts=ONE_EACH),
    # its images take the place of the ids behind <unk>'s, so that few fit here
    "kosmos2": Case(kosmos2, "", "</image>", counts=ONE_EACH, options={"num_image_tokens": 2}),
    "git": Case(git, "", "<s>", counts=ONE_EACH),
}


def wrapped(case: Case) -> tuple[Any, VPPProcessor]:
    model: Any = attach_vpp(any_host(), toy_config(global_vpp=None), adapter=ANY_HOST)
    return model, VPPProcessor(case.build(), model)


def batch(processor: Any, case: Case, side: str = "left", **options: Any) -> Any:
    """A padded batch: texts of three images, of none and of one, or of one each, of different lengths."""
    processor.tokenizer.padding_side = side
    begin = "" if case.counts == ONE_EACH else "the "
    words = ["the cup red", "the", "where is the cup"]
    texts = [begin + (case.image + "is ") * n + w for n, w in zip(case.counts, words, strict=True)]
    sizes = iter([(200, 320), (320, 200), (256, 256), (160, 64), (64, 64), (200, 64)])
    images = [[image(seed, next(sizes)) for seed in range(n)] for n in case.counts]
    return processor(images=images, text=texts, **{"return_tensors": "pt", "padding": True, **case.options, **options})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_every_image_gets_its_run_and_the_hosts_own_ids_stay(name: str, side: str) -> None:
    case = CASES[name]
    model, processor = wrapped(case)
    with vpp_disabled(model):
        host = batch(processor, case, side)

    inputs = batch(processor, case, side)

    token = model.vpp.token_id
    words = processor.tokenizer.convert_ids_to_tokens
    for row, mask, bare, bare_mask, count in zip(
        inputs["input_ids"],
        inputs["attention_mask"],
        host["input_ids"],
        host["attention_mask"],
        case.counts,
        strict=True,
    ):
        kept = row[mask.bool()]
        assert torch.equal(kept[kept != token], bare[bare_mask.bool()])
        starts = (kept == token).nonzero().flatten().tolist()
        assert len(starts) == count * PER_IMAGE
        for start in starts[::PER_IMAGE]:
            around = words([int(kept[start - 1]), int(kept[start + PER_IMAGE])])
            assert around == [case.before, case.after]
            assert (kept[start : start + PER_IMAGE] == token).all()
    assert set(inputs) - set(host) == {"vpp_pixel_values"}
    for kind in {"mm_token_type_ids", "token_type_ids"} & set(inputs):
        assert not inputs[kind][inputs["input_ids"] == token].any()
        for row, mask, types, bare, bare_mask in zip(
            *(inputs[key] for key in ("input_ids", "attention_mask", kind)),
            host[kind],
            host["attention_mask"],
            strict=True,
        ):
            assert torch.equal(types[mask.bool() & (row != token)], bare[bare_mask.bool()])
    assert torch.equal(inputs["vpp_pixel_values"][0], letterbox(first_image(), 64))


def test_paligemmas_answer_is_the_only_part_that_is_no_prefix() -> None:
    model, processor = wrapped(CASES["paligemma"])

    inputs = processor(images=[image()], text=["is the cup"], suffix=["red"], return_tensors="pt")

    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0][inputs["token_type_ids"][0] == 1])
    assert tokens == ["red", "</s>"]
    assert (inputs["labels"][inputs["input_ids"] == model.vpp.token_id] == -100).all()
    assert inputs["token_type_ids"].shape == inputs["input_ids"].shape


@pytest.mark.parametrize("name", ["qwen2_vl", "mllama", "git"])
def test_cutting_a_run_is_refused(name: str) -> None:
    """One processor of each kind."""
    case = CASES[name]
    _, processor = wrapped(case)
    text = f"{case.image}is the cup red"
    whole = processor(images=[image()], text=[text], return_tensors="pt")["input_ids"].shape[1]
    processor(images=[image()], text=[text], truncation=True, max_length=whole - 1)

    with pytest.raises(VPPError, match="placeholders are left in the tokenised text: max_length cuts them off"):
        processor(images=[image()], text=[text], truncation=True, max_length=whole - 6)


def test_the_qformer_is_asked_without_placeholders() -> None:
    model, processor = wrapped(CASES["instruct_blip"])
    with vpp_disabled(model):
        host = batch(processor, CASES["instruct_blip"])

    inputs = batch(processor, CASES["instruct_blip"])

    assert torch.equal(inputs["qformer_input_ids"], host["qformer_input_ids"])


class Remote:
    """A processor from outside transformers: a call, a tokenizer, an image processor."""

    def __init__(self, **attributes: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer({}, ["<img>"]), None
        self.__dict__.update(attributes)

    def __call__(self, images: Any, text: Any, **options: Any) -> Any:
        return hf.BatchFeature(dict(self.tokenizer(text, return_tensors="pt")))


@pytest.mark.parametrize(("declared", "says"), [("<img>", {}), (None, {"image_token": "<img>"})])
def test_a_strangers_processor_gets_the_run_after_its_marker(declared: str | None, says: dict[str, str]) -> None:
    backbone = replace(ANY_HOST, image_token=declared)
    model: Any = attach_vpp(any_host(), toy_config(global_vpp=None), adapter=backbone)
    processor = VPPProcessor(Remote(**says), model)

    ids = processor(images=[image()], text="the <img> cup")["input_ids"][0]

    words = processor.tokenizer.convert_ids_to_tokens(ids)
    assert words == ["the", "<img>", *["<|vpp|>"] * PER_IMAGE, "cup"]


def test_a_stranger_whose_images_come_first_gets_the_runs_before_its_text() -> None:
    backbone = replace(ANY_HOST, image_token="")
    model: Any = attach_vpp(any_host(), toy_config(global_vpp=None), adapter=backbone)
    processor = VPPProcessor(Remote(), model)

    ids = processor(images=[image(), image()], text="the cup")["input_ids"][0]

    words = processor.tokenizer.convert_ids_to_tokens(ids)
    assert words == [*["<|vpp|>"] * 2 * PER_IMAGE, "the", "cup"]
    with pytest.raises(VPPError, match="3 images came for 2 texts: give each text a list of its own images"):
        processor(images=[image()] * 3, text=["the cup", "the cup"])


def test_a_processor_without_a_marker_is_refused() -> None:
    model: Any = attach_vpp(any_host(), toy_config(global_vpp=None), adapter=ANY_HOST)

    with pytest.raises(VPPError, match="Remote does not say what stands for an image in its texts: name it in the ada"):
        VPPProcessor(Remote(), model)


def test_a_tokenizer_without_the_image_token_is_refused() -> None:
    build = CASES["qwen2_vl"].build()
    build.tokenizer = tokenizer({})
    model: Any = attach_vpp(any_host(), toy_config(global_vpp=None), adapter=ANY_HOST)

    with pytest.raises(
        VPPError, match=r"tokenizer does not know the image token '<\|image_pad\|>': load the processor"
    ):
        VPPProcessor(build, model)


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_saved_and_loaded_again(self, name: str, tmp_path: Path) -> None:
        model, processor = attached_family(name)
        expected = family_inputs(processor, [1, 2])

        processor.save_pretrained(tmp_path)
        again = VPPProcessor.from_pretrained(tmp_path, model)

        found = family_inputs(again, [1, 2])
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_chats_give_what_their_texts_and_images_give(self, name: str) -> None:
        _, processor = attached_family(name)
        chats = [chat(3), chat(0), chat(1)]
        options = {"return_tensors": "pt", "padding": True}
        texts = [processor.apply_chat_template(each, add_generation_prompt=True) for each in chats]
        images = [[image(seed) for seed in range(count)] for count in (3, 0, 1)]

        batch = processor.apply_chat_template(
            chats, tokenize=True, add_generation_prompt=True, processor_kwargs=options
        )
        one = processor.apply_chat_template(
            chats[2], tokenize=True, add_generation_prompt=True, processor_kwargs=options
        )
        text_only = processor.apply_chat_template(chats[1], tokenize=True, processor_kwargs=options)

        expected = processor(images=images, text=texts, **options)
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
        alone = processor(images=[image(0)], text=[texts[2]], **options)
        assert all(torch.equal(one[key], alone[key]) for key in alone)
        assert "vpp_pixel_values" not in text_only

    @pytest.mark.skipif(Version(hf.__version__) < Version("5.23"), reason="the host's own masks are empty there")
    def test_answers_masked_by_the_template_stay_masked_right(self, name: str) -> None:
        """Trainers that learn answers only go by the template's marks; the runs move the answers."""
        _, processor = attached_family(name)
        processor.chat_template = (
            "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}"
            + FAMILIES[name].image
            + "{% elif "
            "m.role == 'user' %}{{ p.text }} {% else %}{% generation %}{{ p.text }} {% endgeneration %}{% endif %}"
            "{% endfor %}{% endfor %}"
        )
        talk = [*chat(2), {"role": "assistant", "content": [{"type": "text", "text": "red cup"}]}]

        inputs = processor.apply_chat_template(
            talk, tokenize=True, return_assistant_tokens_mask=True, processor_kwargs={"return_tensors": "pt"}
        )

        answer = inputs["input_ids"][0][torch.as_tensor(inputs["assistant_masks"][0]).bool()]
        assert processor.tokenizer.convert_ids_to_tokens(answer) == ["red", "cup"]

    def test_numbers_as_arrays(self, name: str) -> None:
        _, processor = attached_family(name)
        image = FAMILIES[name].image

        arrays = processor(images=[noise()], text=[f"the {image} cup"], return_tensors="np")

        tensors = processor(images=[noise()], text=[f"the {image} cup"], return_tensors="pt")
        assert set(arrays) == set(tensors)
        for key, array in arrays.items():
            assert isinstance(array, np.ndarray), key
            assert np.array_equal(array, tensors[key].numpy())

    def test_tiles_get_their_boxes(self, name: str) -> None:
        model, processor = attached_family(name)
        inputs = family_inputs(processor, [1, 1])

        assert (
            ("vpp_tile_boxes" in inputs)
            == host_state(model).backbone.tiled
            == ("vpp_tile_boxes" in processor.model_input_names)
        )
        if host_state(model).backbone.tiled:
            seen = encoder_pixels(model, inputs)
            assert inputs["vpp_tile_boxes"].shape == (len(seen), 4)
        without = attached_family(name, toy_config(global_vpp=None))[1]
        assert "vpp_tile_boxes" not in family_inputs(without, [2, 1])

    def test_is_taken_for_the_hosts_processor(self, name: str) -> None:
        _, processor = attached_family(name)

        assert isinstance(processor, hf.ProcessorMixin)
        assert isinstance(processor, VPPProcessor)
        assert isinstance(processor, type(FAMILIES[name].processor()))
        assert processor.image_token_id == processor.processor.image_token_id


def test_only_a_global_prompt_on_tiles_needs_boxes_and_no_placeholders() -> None:
    model, processor = attached_family("internvl", toy_config(local_vpp=None))

    inputs = family_inputs(processor, [2, 1])

    assert "vpp_pixel_values" not in inputs
    assert ("vpp_tile_boxes" in inputs) == host_state(model).backbone.tiled


@pytest.mark.parametrize("option", [{"crop_to_patches": False}, {"images_kwargs": {"crop_to_patches": False}}])
def test_boxes_heed_the_settings_of_the_call(option: dict[str, Any]) -> None:
    _, processor = attached_family("internvl")
    call = {"images": [image()], "text": ["the <IMG_CONTEXT> cup"], "return_tensors": "pt", "padding": True}

    assert len(processor(**call)["vpp_tile_boxes"]) > 1
    whole = to_windows(processor(**call, **option)["vpp_tile_boxes"])
    assert np.allclose(whole, [(0, 0, 1, 1)], atol=1e-3)


def test_the_runs_do_not_eat_the_blank_that_kosmos_sets_before_its_text() -> None:
    assert Placement("", 2)(kosmos2(), "the cup", None, 1)[1] == "<|vpp|><|vpp|> the cup"
    assert Placement("", 2)(blip2(), "the cup", None, 1)[1] == "<|vpp|><|vpp|>the cup"


def chat(loaded: int) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": image(seed)} for seed in range(loaded)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "where is the cup"}]}]


def first_image() -> Image.Image:
    return load_image(image(0, (200, 320)))
