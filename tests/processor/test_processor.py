"""The processor adds each image's placeholders and the detector's view of it, and says what is wrong with inputs."""

import base64
import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from tests.tiny import FULL, TEXTS, TOY_GLOBAL, attached, image, inputs_for, tiny_llava, tiny_processor, toy_config
from tests.tiny import image as noise
from vpp_plugins import VPPError, VPPProcessor, attach_vpp, detach_vpp, vpp_disabled
from vpp_plugins.images import letterbox, load_image
from vpp_plugins.prompts.global_vpp import RGB

pytestmark = pytest.mark.usefixtures("toy")


def ids_without_placeholders(model: Any, inputs: Any) -> list[list[int]]:
    return [[i for i in row if i not in (model.vpp.token_id, 0)] for row in inputs["input_ids"].tolist()]


class TestInputs:
    @pytest.mark.parametrize("layout", [[1], [2, 1], [0, 2, 1]], ids=str)
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_are_the_hosts_plus_placeholders_and_images(self, layout: list[int], side: str) -> None:
        model, processor = attached()
        with vpp_disabled(model):
            host = inputs_for(processor, layout, side=side)

        inputs = inputs_for(processor, layout, side=side)

        assert set(inputs) - set(host) == {"vpp_pixel_values"}
        assert ids_without_placeholders(model, inputs) == ids_without_placeholders(model, host)
        assert (inputs["input_ids"] == model.vpp.token_id).sum(1).tolist() == [4 * count for count in layout]
        assert torch.equal(inputs["pixel_values"], host["pixel_values"])
        assert inputs["attention_mask"].shape == inputs["input_ids"].shape

    def test_placeholders_follow_their_image(self) -> None:
        model, processor = attached()

        ids = inputs_for(processor, [2])["input_ids"][0].tolist()

        image, ours = [4] * 16, [model.vpp.token_id] * 4
        words = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("red", "cup")]
        assert ids == [*image, *ours, words[0], *image, *ours, words[1]]

    def test_images_come_in_reading_order(self) -> None:
        _, processor = attached()
        images = [image(seed, size) for seed, size in ((1, (40, 24)), (2, (24, 40)), (3, (64, 64)))]

        inputs = processor(
            images=[images[:2], images[2:]], text=[TEXTS[2], TEXTS[1]], return_tensors="pt", padding=True
        )

        expected = torch.stack([letterbox(each, 64) for each in images])
        assert torch.equal(inputs["vpp_pixel_values"], expected)

    @pytest.mark.parametrize("form", ["PIL", "list", "nested", "array", "tensor", "bytes", "path", "Path", "RGBA"])
    def test_every_form_of_image(self, form: str, tmp_path: Path) -> None:
        _, processor = attached()
        image, buffer = noise(), io.BytesIO()
        image.save(tmp_path / "it.png")
        image.save(buffer, "PNG")
        forms: dict[str, Any] = {
            "PIL": image,
            "list": [image],
            "nested": [[image]],
            "array": np.array(image),
            "tensor": torch.from_numpy(np.array(image)).permute(2, 0, 1),
            "bytes": buffer.getvalue(),
            "path": str(tmp_path / "it.png"),
            "Path": tmp_path / "it.png",
            "RGBA": image.convert("RGBA"),
        }
        expected = processor(images=image, text=TEXTS[1], return_tensors="pt")

        inputs = processor(images=forms[form], text=TEXTS[1], return_tensors="pt")

        for name in ("input_ids", "pixel_values", "vpp_pixel_values"):
            assert torch.equal(inputs[name], expected[name]), name

    def test_a_list_of_texts_may_share_a_flat_list_of_images(self) -> None:
        _, processor = attached()
        images = [image(seed) for seed in range(3)]
        call = {"text": [TEXTS[2], TEXTS[1]], "return_tensors": "pt", "padding": True}

        flat, nested = processor(images=images, **call), processor(images=[images[:2], images[2:]], **call)

        assert all(torch.equal(flat[name], nested[name]) for name in nested)

    def test_lists_instead_of_tensors(self) -> None:
        model, processor = attached()

        one, batch = processor(images=image(), text=TEXTS[1]), processor(images=[image()], text=[TEXTS[1]])

        assert np.array(one["input_ids"]).ravel().tolist().count(model.vpp.token_id) == 4
        assert np.array(batch["input_ids"]).ravel().tolist().count(model.vpp.token_id) == 4

    def test_images_alone_and_text_alone(self) -> None:
        _, processor = attached()

        assert processor(images=[image(), image(1)], return_tensors="pt")["vpp_pixel_values"].shape == (
            2,
            3,
            64,
            64,
        )
        assert set(processor(text=[TEXTS[0]], return_tensors="pt")) == {"input_ids", "attention_mask"}

    def test_move_to_a_dtype_together(self) -> None:
        _, processor = attached()

        inputs = processor(images=image(), text=TEXTS[1], return_tensors="pt").to(torch.bfloat16)

        assert inputs["vpp_pixel_values"].dtype == inputs["pixel_values"].dtype == torch.bfloat16
        assert inputs["input_ids"].dtype == torch.int64

    def test_of_a_global_prompt_alone_are_the_hosts(self) -> None:
        model, processor = attached(config=toy_config(local_vpp=None))

        inputs = inputs_for(processor, [2, 1])

        assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
        assert "<|vpp|>" not in processor.tokenizer.get_vocab()
        assert model.vpp.token_id is None

    def test_chat(self) -> None:
        _, processor = attached()
        processor.processor.chat_template = (
            "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }} "
            "{% endfor %}{% endfor %}{{ 'ASSISTANT:' if add_generation_prompt }}"
        )
        chat = [{"role": "user", "content": [{"type": "image", "image": image()}, {"type": "text", "text": "the cup"}]}]

        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        batch = processor.apply_chat_template([chat, chat], tokenize=True, return_tensors="pt", padding=True)

        assert text == "<image> the cup ASSISTANT:"
        expected = processor(images=[image()], text=[text], return_tensors="pt")
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
        assert batch["vpp_pixel_values"].shape[0] == 2

    @pytest.mark.parametrize("key", ["path", "url", "image"])
    def test_chats_may_name_their_images(self, key: str, tmp_path: Path) -> None:
        _, processor = attached()
        processor.chat_template = "{% for m in messages %}{% for c in m['content'] %}<image> {% endfor %}{% endfor %}"
        image().save(tmp_path / "it.png")
        data = base64.b64encode((tmp_path / "it.png").read_bytes()).decode()
        source = f"data:image/png;base64,{data}" if key == "url" else str(tmp_path / "it.png")
        chat = [{"role": "user", "content": [{"type": "image", key: source}]}]

        inputs = processor.apply_chat_template(chat, tokenize=True, return_tensors="pt")

        expected = processor(images=[image()], text=["<image> "], return_tensors="pt")
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)

    def test_chats_with_videos_are_refused(self) -> None:
        _, processor = attached()
        processor.chat_template = "cup"
        chat = [{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}]}]

        with pytest.raises(VPPError, match="videos cannot be processed together with VPP yet"):
            processor.apply_chat_template(chat, tokenize=True)

    def test_lists_that_are_all_empty_are_text_alone(self) -> None:
        _, processor = attached()

        inputs = processor(images=[[], []], text=[TEXTS[0], TEXTS[0]], return_tensors="pt")

        assert set(inputs) == {"input_ids", "attention_mask"}

    def test_image_metas(self) -> None:
        _, processor = attached()

        metas = processor.image_metas([[image(size=(40, 24))], [image(size=(30, 50))]])

        assert [(meta.size_hw, meta.image_index) for meta in metas] == [((24, 40), 0), ((50, 30), 1)]


MISTAKES: dict[str, tuple[Callable[[VPPProcessor], Any], str]] = {
    "images without placeholders": (
        lambda p: p(images=[image()], text="the cup"),
        r"the text has 0 image placeholders '<image>', but 1 images came: every image needs one",
    ),
    "placeholders without images": (
        lambda p: p(text=TEXTS[2]),
        r"the text has 2 image placeholders '<image>', but 0 images came",
    ),
    "fewer images than placeholders": (
        lambda p: p(images=[[image()], [image()]], text=[TEXTS[2], TEXTS[1]]),
        r"the text has 3 image placeholders '<image>', but 2 images came",
    ),
    "images of the wrong text": (
        lambda p: p(images=[[image()], [image(), image()]], text=[TEXTS[2], TEXTS[1]]),
        r"the texts have \[2, 1\] image placeholders '<image>', but \[1, 2\] images came for them",
    ),
    "our token in the text": (
        lambda p: p(images=[image()], text=TEXTS[1] + "<|vpp|>"),
        r"the text holds <\|vpp\|>, which VPPProcessor places itself: leave it out",
    ),
    "truncation": (
        lambda p: p(images=[image()], text=TEXTS[1], truncation=True, max_length=19),
        r"2 of 4 <\|vpp\|> placeholders are left in the tokenised text: max_length cuts them off, so raise it",
    ),
    "an image of floats": (
        lambda p: p(images=[np.zeros((9, 9, 3))], text=TEXTS[1]),
        r"an image array must be 8-bit \[height, width, 3\], but is float64 \[9, 9, 3\]",
    ),
    "something else": (
        lambda p: p(images=[[image()], [None]], text=[TEXTS[1], TEXTS[1]]),
        "an image must be a path, bytes, a PIL image, an array or a tensor, but is None",
    ),
    "no text": (
        lambda p: p(images=[image()], text=3),
        "the text must be a string or a list of strings, but is 3",
    ),
    "videos": (
        lambda p: p(images=[image()], text=TEXTS[1], videos=["clip.mp4"]),
        "videos cannot be processed together with VPP yet: pass their frames as images",
    ),
    "no image at all": (
        lambda p: p(images=["/nowhere/cup.jpg"], text=TEXTS[1]),
        "'/nowhere/cup.jpg' does not exist",
    ),
}


class TestMistakes:
    @pytest.mark.filterwarnings("ignore:.*Truncation.*")
    @pytest.mark.parametrize("case", list(MISTAKES))
    def test_are_named(self, case: str) -> None:
        call, message = MISTAKES[case]
        _, processor = attached()

        with pytest.raises(VPPError, match=message):
            call(processor)

    def test_wrapping_twice(self) -> None:
        model, processor = attached()

        with pytest.raises(VPPError, match="is a VPPProcessor already: pass the host's own processor"):
            VPPProcessor(processor, model)

    @pytest.mark.parametrize("part", ["tokenizer", "image_processor", None])
    def test_wrapping_half_of_a_processor(self, part: str | None) -> None:
        half = None if part is None else vars(tiny_processor())[part]

        with pytest.raises(VPPError, match=r"tokenizer and image processor in one, but a \w+ came: load it with"):
            VPPProcessor(half, attach_vpp(tiny_llava(), toy_config()))

    def test_use_after_detaching(self) -> None:
        model, processor = attached()
        detach_vpp(model)

        with pytest.raises(
            VPPError, match="this processor's model was detached from VPP: use the host's own processor"
        ):
            processor(images=[image()], text=TEXTS[1])


class TestAnotherTokenizer:
    """The model embeds one id as the placeholder; a tokenizer that gives it another would be read as words."""

    def test_is_refused_when_swapped_in_later(self) -> None:
        _, processor = attached()
        processor.processor.tokenizer = tiny_processor().tokenizer

        with pytest.raises(
            VPPError, match=r"id of <\|vpp\|> is None, but the model knows 13: the tokenizer was swapped"
        ):
            processor(images=[image()], text=TEXTS[1])

    def test_is_refused_in_a_second_processor(self) -> None:
        model, _ = attached()
        other = tiny_processor()
        other.tokenizer.add_tokens(["blue"])

        with pytest.raises(
            VPPError, match=r"gives <\|vpp\|> the id 14, but another VPPProcessor has bound the model to 13"
        ):
            VPPProcessor(other, model)
        assert model.vpp.token_id == 13

    def test_does_not_know_the_image_token(self) -> None:
        other = tiny_processor()
        words = {word: i for i, word in enumerate(["<pad>", "<unk>", "cup"])}
        other.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        )

        with pytest.raises(
            VPPError, match="tokenizer does not know the image token '<image>': load the processor that"
        ):
            VPPProcessor(other, attach_vpp(tiny_llava(), toy_config()))


class TestTheHostsProcessor:
    def test_is_never_changed(self) -> None:
        original = tiny_processor()
        before = original.to_dict(), original.tokenizer.get_vocab(), original.image_processor.to_dict()
        model = attach_vpp(tiny_llava(), toy_config())

        processor = VPPProcessor(original, model)
        processor(images=[image()], text=TEXTS[1])

        assert (original.to_dict(), original.tokenizer.get_vocab(), original.image_processor.to_dict()) == before
        assert "<|vpp|>" in processor.tokenizer.get_vocab()

    def test_decodes(self) -> None:
        _, processor = attached()
        ids = inputs_for(processor, [1])["input_ids"]

        text = processor.batch_decode(ids, skip_special_tokens=True)

        assert text == [processor.decode(ids[0], skip_special_tokens=True)]
        assert text[0].split() == "USER: where is the cup ASSISTANT:".split()
        assert processor.decode(ids[0]).count("<|vpp|>") == 4

    def test_names_its_inputs(self) -> None:
        _, processor = attached()

        assert set(inputs_for(processor, [1])) <= set(processor.model_input_names)
        assert processor.image_processor is processor.processor.image_processor

    @pytest.mark.parametrize("vocabulary", [32, FULL], ids=["spare row", "grown"])
    def test_save_load_and_wrap_again(self, vocabulary: int, tmp_path: Path) -> None:
        model, processor = attached(tiny_llava(vocabulary=vocabulary))
        inputs = inputs_for(processor, [2, 1])

        processor.save_pretrained(tmp_path)
        again = VPPProcessor.from_pretrained(tmp_path, model)

        found = inputs_for(again, [2, 1])
        assert all(torch.equal(found[name], inputs[name]) for name in inputs)
        assert again.tokenizer.convert_tokens_to_ids("<|vpp|>") == model.vpp.token_id

    def test_a_second_model_may_use_the_same_one(self) -> None:
        (first, _), (second, _) = attached(), attached(tiny_llava(vocabulary=FULL))

        assert first.vpp.token_id == second.vpp.token_id == FULL


class TestNormalisation:
    def processor(self, mean: float) -> LlavaProcessor:
        processor = tiny_processor()
        processor.image_processor.image_mean = processor.image_processor.image_std = [mean] * 3
        return processor

    def shown(self, model: Any) -> torch.Tensor:
        prompt = model.vpp.global_vpp
        mean, std = (torch.tensor(v)[:, None, None] for v in (prompt.image_mean, prompt.image_std))
        return prompt.prompt.detach() * std + mean

    def test_an_untrained_prompt_follows_the_processor(self) -> None:
        model = attach_vpp(tiny_llava(), toy_config())
        expected = self.shown(model)

        VPPProcessor(self.processor(0.4), model)

        assert model.vpp.global_vpp.image_mean == model.vpp.config.global_vpp.image_mean == (0.4, 0.4, 0.4)
        torch.testing.assert_close(self.shown(model), expected)

    @pytest.mark.parametrize(
        ("settings", "mean", "std"),
        [
            ({"do_normalize": False}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            ({"image_mean": 0.25, "image_std": 0.5}, (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)),
        ],
        ids=["none", "one for all colours"],
    )
    def test_other_ways_to_say_it(self, settings: dict[str, Any], mean: RGB, std: RGB) -> None:
        model, host = attach_vpp(tiny_llava(), toy_config()), tiny_processor()
        expected = self.shown(model)
        for name, value in settings.items():
            setattr(host.image_processor, name, value)

        VPPProcessor(host, model)

        assert (model.vpp.global_vpp.image_mean, model.vpp.global_vpp.image_std) == (mean, std)
        torch.testing.assert_close(self.shown(model), expected)

    def test_a_trained_prompt_does_not(self) -> None:
        model = attach_vpp(tiny_llava(), toy_config(global_vpp=TOY_GLOBAL))
        model.vpp.trained = True

        with pytest.raises(VPPError, match=r"normalises pixels with mean \(0\.4, 0\.4, 0\.4\) .* trained with \(0\.48"):
            VPPProcessor(self.processor(0.4), model)
        VPPProcessor(tiny_processor(), model)


class TestInWorkers:
    def test_pickles(self) -> None:
        _, processor = attached()
        expected = inputs_for(processor, [2, 1])
        assert type(pickle.loads(pickle.dumps(processor))) is type(copy.deepcopy(processor)) is VPPProcessor

        found = inputs_for(pickle.loads(pickle.dumps(processor)), [2, 1])

        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_collates_in_a_data_loader(self) -> None:
        _, processor = attached()
        expected = inputs_for(processor, [1])
        loader = DataLoader([(image(), TEXTS[1])], collate_fn=Collator(processor), num_workers=1)

        (found,) = list(loader)

        assert all(torch.equal(found[name], expected[name]) for name in expected)


class Collator:
    def __init__(self, processor: VPPProcessor) -> None:
        self.processor = processor

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> dict[str, torch.Tensor]:
        images, texts = zip(*samples, strict=True)
        return dict(self.processor(images=[[p] for p in images], text=list(texts), return_tensors="pt", padding=True))


def test_the_detectors_view_is_the_reference_letterbox() -> None:
    """Both sides of a wide image are kept, unlike in transformers' default crop for LLaVA."""
    _, processor = attached()
    wide = image(size=(80, 20))

    pixels = processor(images=[wide], text=TEXTS[1], return_tensors="pt")["vpp_pixel_values"][0]

    assert torch.equal(pixels, letterbox(load_image(wide), 64))
    assert not pixels[:, :24].any()
    assert pixels[:, 24:40].all()


def test_published_llava_checkpoints_get_a_processor_that_pads() -> None:
    model = attach_vpp(tiny_llava(), toy_config())
    host = tiny_processor()
    host.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    processor = VPPProcessor(host, model)

    assert processor.image_processor.do_pad is True
    assert isinstance(host.image_processor, CLIPImageProcessorPil)
