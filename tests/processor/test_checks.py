"""A processor of another model is refused, and never one of the model's own."""

import pytest

from tests.families import FAMILIES, WORDS
from tests.tiny import FULL, tiny_llava, tiny_processor, toy_config
from vpp_plugins import VPPError, VPPProcessor, attach_vpp
from vpp_plugins.processor.checks import check_pair

pytestmark = pytest.mark.usefixtures("toy")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_own_processor_passes(name: str) -> None:
    check_pair(FAMILIES[name].processor(), FAMILIES[name].model())


@pytest.mark.parametrize("local", [True, False], ids=["both prompts", "global prompt alone"])
def test_a_processor_with_a_word_where_the_model_has_its_image_token_is_refused(local: bool) -> None:
    model = attach_vpp(FAMILIES["llava"].model(), toy_config() if local else toy_config(local_vpp=None))
    model.config.image_token_id = WORDS.index("cup")

    with pytest.raises(
        VPPError,
        match="InternVLProcessor is not the processor of this LlavaForConditionalGeneration: the model expects "
        f"images at token id {WORDS.index('cup')}, which is 'cup' to its tokenizer, and no image token; load the",
    ):
        VPPProcessor(FAMILIES["internvl"].processor(), model)
    assert model.vpp.token_id is None


def test_a_tokenizer_of_more_ids_than_the_model_embeds_is_refused() -> None:
    model, processor = attach_vpp(tiny_llava(vocabulary=FULL), toy_config()), tiny_processor()
    processor.tokenizer.add_tokens(["cat", "dog"])

    with pytest.raises(
        VPPError,
        match=f"its tokenizer has 'dog' at {FULL + 1}, but the model embeds {FULL} ids; .*resize_token_embeddings",
    ):
        VPPProcessor(processor, model)


def test_added_tokens_pass_after_a_resize() -> None:
    model, processor = tiny_llava(vocabulary=FULL), tiny_processor()
    processor.tokenizer.add_tokens(["cat", "dog"])
    model.resize_token_embeddings(len(processor.tokenizer))

    wrapped = VPPProcessor(processor, attach_vpp(model, toy_config()))

    assert model.vpp.token_id == FULL + 2
    assert wrapped.processor.tokenizer.convert_tokens_to_ids("dog") == FULL + 1


def test_a_saved_processor_with_the_placeholder_passes_on_a_full_vocabulary() -> None:
    """The placeholder's own id may lie beyond the rows: that is what they grow for."""
    model = attach_vpp(tiny_llava(vocabulary=FULL), toy_config())
    saved = VPPProcessor(tiny_processor(), model).processor

    again = attach_vpp(tiny_llava(vocabulary=FULL), toy_config())
    VPPProcessor(saved, again)

    assert again.vpp.token_id == FULL


def test_a_host_that_does_not_say_where_its_images_stand_is_believed() -> None:
    model = tiny_llava()
    model.config.image_token_id = None

    check_pair(FAMILIES["llava"].processor(), model)
