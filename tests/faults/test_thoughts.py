"""Text that is not the answer is not searched for it: a right draft with a wrong answer earns nothing, anywhere."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.evaluate.conftest import Stub
from tests.tiny import attached, image
from vpp_plugins import Grounder
from vpp_plugins.boxes import BOX_CODECS, Box, BoxStatus, ImageMeta, answer_of, box_iou, codec, opens_thought
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.captions import summarise_captions
from vpp_plugins.evaluate.kits.answers import answer
from vpp_plugins.evaluate.protocol import protocols
from vpp_plugins.evaluate.results import judge
from vpp_plugins.train.rewards import rewards

UNPARSABLE, NONE = BoxStatus.UNPARSABLE, BoxStatus.NONE
SIZE = (480, 640)
META = ImageMeta(SIZE, (476, 644))
DRAFT, RIGHT = (64.0, 48.0, 192.0, 144.0), (320.0, 240.0, 512.0, 384.0)
TWINS = ("vpp-llava", "llava-next", "qwen3.5")  # which write as others do
FAMILIES = sorted(name for name, row in BOX_CODECS.items() if row.text is not None and name not in TWINS)
seeded = settings(derandomize=True, deadline=None, max_examples=25, database=None)

# What models of today write around their answers, {draft} and {answer} being boxes.
WRAPPED = {
    "Qwen3, DeepSeek": "<think>Near {draft}? No, it is green.</think>\n\n{answer}",
    "VLM-R1": "<think>Near {draft}?</think> <answer>{answer}</answer>",
    "only the closing tag": "Near {draft}? No, it is green.\n</think>\n\n{answer}",
    "thought twice": "<think>{draft}</think> So {draft}. <think>Wait.</think> {answer}",
    "answer tags alone": "I see {draft}, which is green. <answer> {answer} </answer>",
    "answers in the thought": "<think>The format is <answer>{draft}</answer>.</think><answer>{answer}</answer>",
    "the last of two answers": "<answer>{draft}</answer> No: <answer>{answer}</answer>",
    "cut off in the answer": "<think>{draft}</think><answer>{answer}",
    "the question opens the answer": "<think>{draft}</think>{answer}</answer> {draft}",
    "tags in capitals": "<THINK>{draft}</THINK>{answer}",
    "thinking": "<thinking>{draft}</thinking>{answer}",
    "LLaVA-CoT": "<REASONING> {draft} </REASONING>\n\n<CONCLUSION> {answer} </CONCLUSION>",
    "Kimi": "◁think▷{draft}◁/think▷{answer}",
    "Magistral": "[THINK]{draft}[/THINK]{answer}",
    "gpt-oss": "<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>{answer}",
    "Gemma": "<|channel>thought\n{draft}<channel|>{answer}",
    "a tool": '<tool_call>{{"name": "zoom", "arguments": {draft}}}</tool_call>{answer}',
    "a tool's answer": "<tool_response>{draft}</tool_response>\n{answer}",
    "boxed": "I see {draft}. The answer is \\boxed{{{answer}}}",
    "Seed": "<seed:think>{draft}<seed:cot_budget_reflect>120</seed:cot_budget_reflect></seed:think>{answer}",
    "Cohere": "<|START_THINKING|>{draft}<|END_THINKING|><|START_RESPONSE|>{answer}<|END_RESPONSE|>",
    "OpenThinker": "<|begin_of_thought|>{draft}<|end_of_thought|><|begin_of_solution|>{answer}<|end_of_solution|>",
    "MedGemma": "<unused94>thought\n{draft}<unused95>{answer}",
    "LongCat": "<longcat_think>{draft}</longcat_think>{answer}",
    "Apertus": "<|inner_prefix|>{draft}<|inner_suffix|>{answer}",
    "reasoning content": "<reasoning_content>{draft}</reasoning_content>{answer}",
    "Chinese tags": "<思考>{draft}</思考>{answer}",
    "Chinese words": "思考：{draft}\n答案：{answer}",
    "Granite": "Here is my thought process: {draft}\nHere is my response: {answer}",
    "thought and answer in words": "Thought: near {draft}, green.\n**Answer:** {answer}",
    "headings": "### Thinking\n{draft}\n\n### Answer\n{answer}",
    "DeepSeek's tools": '<｜tool▁calls▁begin｜>zoom\n```json\n{{"bbox": {draft}}}\n```<｜tool▁calls▁end｜>{answer}',
    "Kimi's tools": "<|tool_calls_section_begin|>{draft}<|tool_calls_section_end|>{answer}",
    "Llama's tools": "<|python_tag|>zoom({draft})<|eom_id|>{answer}",
    "a program": "<code>crop({draft})</code>{answer}",
    "final answer": "I see {draft}, green.\n**Final answer:** {answer}",
}
CUT_OFF = {
    "thinking": "<think>It is at {draft}, let me see",
    "thinking again": "<think>No.</think>{draft} <think>or",
    "thought only": "<think>It is at {draft}</think>",
    "thought and empty answer": "<think>It is at {draft}</think><answer></answer>",
    "calling": '<think>So.</think><tool_call>{{"arguments": {draft}}}',
    "analysis": "<|channel|>analysis<|message|>It is at {draft}",
}


def wrapped(template: str, family: str, draft: Box = DRAFT, answer: Box = RIGHT) -> str:
    row = codec(family)
    return template.format(draft=row.encode([draft], META), answer=row.encode([answer], META))


@pytest.mark.parametrize("template", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_read_and_not_the_draft(family: str, template: str) -> None:
    row = codec(family)
    clean = row.decode(row.encode([RIGHT], META), META)
    assert row.decode(wrapped(template, family), META).boxes_xyxy_px[:1] == clean.boxes_xyxy_px


GOES_ON = {
    "words": "{answer}\nUSER: where is the dog? ASSISTANT: {draft}",
    "headings": "{answer}\n\n### Human: where is the dog?\n### Assistant: {draft}",
    "Qwen": "{answer}<|im_end|>\n<|im_start|>user\nwhere?<|im_end|>\n<|im_start|>assistant\n{draft}",
    "Llama 3": "{answer}<|start_header_id|>user<|end_header_id|>where?<|start_header_id|>assistant {draft}",
    "Gemma": "{answer}<end_of_turn>\n<start_of_turn>user\nwhere?<end_of_turn>\n<start_of_turn>model\n{draft}",
    "Mistral": "{answer}</s>[INST] where? [/INST] {draft}",
}


@pytest.mark.parametrize("template", GOES_ON.values(), ids=GOES_ON.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_goes_on_to_ask_itself_is_no_answer(family: str, template: str) -> None:
    """The second answer became a second box, and where the first had none, the box."""
    row = codec(family)
    clean = row.decode(row.encode([RIGHT], META), META)
    assert row.decode(wrapped(template, family), META).boxes_xyxy_px == clean.boxes_xyxy_px
    assert row.decode(wrapped(template.replace("{answer}", "I cannot see it."), family), META).boxes_xyxy_px == ()


@pytest.mark.parametrize("template", CUT_OFF.values(), ids=CUT_OFF.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_cut_off_holds_no_answer(family: str, template: str) -> None:
    decoded = codec(family).decode(wrapped(template, family), META)
    assert (decoded.boxes_xyxy_px, decoded.statuses) == ((), (UNPARSABLE,))


DRAFTS = ["[1, 2, 3, 4]", "(5,5),(9,9)", "[0.1, 0.2, 0.3, 0.4]", "<loc_1>", '{"bbox_2d": [5, 5, 9, 9]}']
PIECES = [*DRAFTS, "a cup", "\n", '"', "'s", "{", "```json", "<answer>", "<box>", "maybe ", "]"]
TAGS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<tool_call>",
    "</tool_call>",
    "<|channel|>",
    "final",
    "<channel|>",
]
thoughts = st.lists(st.sampled_from(PIECES)).map("".join)
sides = st.tuples(st.floats(0, 300), st.floats(0, 200), st.floats(40, 300), st.floats(40, 250))
boxes = sides.map(lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3]))


@pytest.mark.parametrize("family", FAMILIES)
@seeded
@given(thought=thoughts, answers=st.lists(boxes, min_size=1, max_size=4), opening=st.sampled_from(["<think>", ""]))
def test_whatever_is_thought_the_answer_stays_the_same(
    family: str, thought: str, answers: list[Box], opening: str
) -> None:
    row = codec(family)
    text = row.encode(answers, META, [f"thing {number}" for number in range(len(answers))])
    alone = row.decode(text, META)
    assert row.decode(f"{opening}{thought}</think>\n{text}", META) == alone
    assert row.decode(f"{opening}{thought}</think><answer>{text}</answer>", META) == alone
    assert row.decode(f"<think>{thought}{text}", META).statuses == (UNPARSABLE,)


@seeded
@given(st.lists(st.sampled_from([*TAGS, *PIECES, "\\boxed{", "\nFinal answer:", "}"])).map("".join))
def test_the_answer_of_an_answer_is_itself(text: str) -> None:
    assert answer_of(answer_of(text)) == answer_of(text)


class TestInFamiliesOfBrackets:
    """Where an answer quotes, or names its boxes, other numbers are none."""

    @pytest.mark.parametrize(
        ("family", "text"),
        [
            ("qwen3-vl", 'You asked "what is at [100, 100, 200, 200]?" It is at [500, 500, 800, 800].'),
            ("internvl", "You asked “what is at [[100, 100, 200, 200]]?” It is at [[500, 500, 800, 800]]."),
            ("ferret", "> What is at [100, 100, 200, 200]?\n\n[500, 500, 800, 800]"),
            ("qwen3-vl", "Question: what is at [100, 100, 200, 200]?\nAnswer: [500, 500, 800, 800]"),
            ("ferret", "USER: what is at [100, 100, 200, 200]? ASSISTANT: [500, 500, 800, 800]"),
            ("qwen3-vl", '[{"text": "[100, 100, 200, 200]", "bbox_2d": [500, 500, 800, 800], "label": "sign"}]'),
            ("qwen3-vl", '{"size": [100, 100, 200, 200], "bbox_2d": [500, 500, 800, 800]}'),
            ("qwen3-vl", '{"thought": "near [100, 100, 200, 200]", "answer": [500, 500, 800, 800]}'),
            ("qwen3-vl", '{"thought": {"bbox_2d": [1, 2, 3, 4]}, "answer": [{"bbox_2d": [500, 500, 800, 800]}]}'),
            ("qwen3-vl", 'Near [100, 100, 200, 200]. ```json\n[{"bbox_2d": [500, 500, 800, 800]}]\n```'),
            ("qwen3-vl", "Near [100, 100, 200, 200].\n```\n[500, 500, 800, 800]\n```"),
            ("qwen3-vl", "```python\nimage.crop([100, 100, 200, 200])\n```\nIt is at [500, 500, 800, 800]."),
            ("internvl", "Near [100, 100, 200, 200], so <ref>ball</ref><box>[[500, 500, 800, 800]]</box>"),
            ("qwen2-vl", "Near (100,100),(200,200): <|box_start|>(500,500),(800,800)<|box_end|>"),
            ("qwen3-vl", '{"reasoning": [100, 100, 200, 200], "final": [500, 500, 800, 800]}'),
            ("ferret", "<!-- [100, 100, 200, 200] --> [500, 500, 800, 800]"),
            ("ferret", "~~[100, 100, 200, 200]~~ [500, 500, 800, 800]"),
            ("qwen3-vl", "Near [100, 100, 200, 200], so the answer is [500, 500, 800, 800]."),
            ("qwen3-vl", "It is at [500, 500, 800, 800], I am sure the answer is right."),
            ("qwen3-vl", "Near [100, 100, 200, 200]: <|begin_of_box|>[500, 500, 800, 800]<|end_of_box|>"),
        ],
    )
    def test_the_stated_box_is_read(self, family: str, text: str) -> None:
        decoded = codec(family).decode(text, ImageMeta((1000, 1000)))
        assert decoded.boxes_xyxy_px == ((500.0, 500.0, 800.0, 800.0),)

    @pytest.mark.parametrize(
        "text", ['"It is at [500, 500, 800, 800]."', "> It is at [500, 500, 800, 800].", '"[500, 500, 800, 800]"']
    )
    def test_an_answer_that_is_quoted_as_a_whole_is_one(self, text: str) -> None:
        assert codec("ferret").decode(text, ImageMeta((1000, 1000))).boxes_xyxy_px == ((500.0, 500.0, 800.0, 800.0),)

    @pytest.mark.parametrize(
        "text",
        [
            'You asked "what is at [100, 100, 200, 200]?" I cannot see that.',
            '{"text": "[100, 100, 200, 200]", "label": "sign"}',
            'It is near [100, 100, 200, 200]: [{"bbox_2d": [500, 500, 8',
            "```python\nimage.crop([100, 100, 200, 200])\n```",
            'near [1, 2, 3, 4], so {"bbox_2d": null}',
            "<box></box> [100, 100, 200, 200]",
        ],
    )
    def test_nothing_else_is_taken_in_its_place(self, text: str) -> None:
        assert codec("qwen3-vl").decode(text, ImageMeta((1000, 1000))).statuses == (UNPARSABLE,)

    def test_an_empty_list_of_something_else_does_not_say_that_nothing_is_there(self) -> None:
        assert codec("qwen3-vl").decode('{"tags": [], "label": "cup"}', META).statuses == (UNPARSABLE,)
        assert codec("qwen3-vl").decode("<think>[]</think> I see a cup.", META).statuses == (UNPARSABLE,)
        assert codec("qwen3-vl").decode("<think>[1, 2, 3, 4]</think>[]", META).statuses == (NONE,)

    @pytest.mark.parametrize(
        "label", ["<think>", "</think>", "</answer>", "```json", "\\boxed{", "◁think▷", "\ud800", "[THINK]"]
    )
    def test_a_label_that_looks_like_a_tag_comes_back(self, label: str) -> None:
        row = codec("qwen3-vl")
        written = row.encode([DRAFT, RIGHT], META, [label, "b"])
        assert written.isprintable() or "\\boxed" in label
        assert row.decode(written, META).labels == (label, "b")


class TestEveryReader:
    @pytest.mark.parametrize("name", sorted(name for name, one in protocols().items() if one.task == "box"))
    def test_a_right_draft_with_a_wrong_answer_is_wrong_and_the_other_way_round_right(self, name: str) -> None:
        rules, square = protocols()[name], ImageMeta((640, 640), (644, 644))
        row = codec(rules.family or "llava")
        draft, answer = row.encode([DRAFT], square), row.encode([RIGHT], square)
        for template in ("<think>{}</think>{}", "{}</think><answer>{}</answer>"):
            for text, right in ((template.format(draft, answer), True), (template.format(answer, draft), False)):
                assert rules.is_correct(rules.iou(rules.read(text, square, row), RIGHT, square, row)) is right
        cut = rules.read(f"<think>{answer}", square, row)
        assert (cut.box, cut.status) == (None, UNPARSABLE)

    def test_rescoring_reads_no_thought(self) -> None:
        texts = [
            wrapped(WRAPPED["VLM-R1"], "llava"),
            wrapped(WRAPPED["VLM-R1"], "llava", RIGHT, DRAFT),
            "<think>[0.5, 0.5",
        ]
        answers = [
            Answer(id=str(number), image="", size_hw=SIZE, processed_size_hw=None, expression="ball", boxes=(RIGHT,),
                   category="", kind="", text=text)
            for number, text in enumerate(texts)
        ]  # fmt: skip
        assert [one.correct for one in judge(answers, protocols()["default"], codec("llava"))] == [True, False, False]

    def test_captions_are_scored_without_their_thoughts(self) -> None:
        pytest.importorskip("pycocoevalcap")

        def said(number: int, text: str) -> Answer:
            return Answer(
                id=str(number), image="", size_hw=SIZE, processed_size_hw=None, expression="a red cup on the table",
                boxes=(RIGHT,), category="", kind="", text=text)  # fmt: skip

        plain = [said(0, "a red cup on the table"), said(1, "a dog")]
        thinking = [said(0, "<think>A green one?</think>a red cup on the table"), said(1, "<think>cup</think>a dog")]
        assert summarise_captions(thinking) == summarise_captions(plain)


class TestRewards:
    TRUTH: dict[str, Any] = {"boxes": [[RIGHT]], "size_hw": [SIZE], "processed_size_hw": [(476, 644)]}

    @pytest.mark.parametrize("family", FAMILIES)
    def test_only_the_answer_earns(self, family: str) -> None:
        reward = rewards(family)
        right = wrapped(WRAPPED["VLM-R1"], family)
        wrong = wrapped(WRAPPED["VLM-R1"], family, RIGHT, DRAFT)
        cut = wrapped(CUT_OFF["thinking"], family, RIGHT)
        for one in (reward.iou, reward.f1):
            assert one([right], **self.TRUTH)[0] > 0.7
            assert one([wrong], **self.TRUTH) == [0]
            assert one([cut], **self.TRUTH) == [0]
        assert [reward.format([text], **self.TRUTH) for text in (right, wrong, cut)] == [[1], [1], [0]]

    def test_a_prompt_that_opens_the_thought_counts(self) -> None:
        """Qwen's thinking models get `<think>` with the question, so that an answer cut off in it holds no tag."""
        reward, text = rewards("llava").iou, codec("llava").encode([RIGHT], META)
        assert reward([text], prompts=["Where? <think>\n"], **self.TRUTH) == [0]
        assert reward([text], prompts=["Where? <think>\n\n</think>\n\n"], **self.TRUTH)[0] > 0.9
        assert reward([f"no </think>{text}"], prompts=["Where?<think>"], **self.TRUTH)[0] > 0.9

    def test_a_template_that_opens_the_thought_counts(self) -> None:
        from tests.tiny import tiny_processor

        tokenizer, text = tiny_processor().tokenizer, codec("llava").encode([RIGHT], META)
        chat = [{"role": "user", "content": "where?"}]
        tokenizer.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}"
        assert rewards("llava", tokenizer=tokenizer).iou([text], prompts=[chat], **self.TRUTH) == [0]
        tokenizer.chat_template = "{{ messages[0].content }}"
        assert rewards("llava", tokenizer=tokenizer).iou([text], prompts=[chat], **self.TRUTH)[0] > 0.9

    def test_what_a_tool_says_is_no_answer(self) -> None:
        text = codec("llava").encode([RIGHT], META)
        call, tool = {"role": "assistant", "content": None}, {"role": "tool", "content": text}
        assert rewards("llava").iou([[call, tool]], **self.TRUTH) == [0]
        assert rewards("llava").iou([[tool, call]], **self.TRUTH) == [0]
        assert rewards("llava").iou([[tool, {"role": "assistant", "content": text}]], **self.TRUTH)[0] > 0.9


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("opening", "boxes"), [("<think>\n", 0), ("<think>\n\n</think>\n\n", 1), ("", 1)])
def test_the_grounder_knows_that_its_template_opened_the_thought(opening: str, boxes: int) -> None:
    model, processor = attached()
    processor.processor.chat_template = f"<image> {{{{ messages[0].content[1].text }}}}{opening}"
    processor.batch_decode = lambda ids, **_: ["near [0.1, 0.2, 0.3, 0.6], or"] * len(ids)
    grounding = Grounder(model, processor, max_new_tokens=2)(image(0, (40, 24)), "the red cup")
    assert len(grounding.boxes) == boxes
    assert grounding.text.startswith("<think>") is (boxes == 0)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("<think>[0.1, 0.2, 0.3, 0.6]</think>[0.5, 0.5, 0.7, 0.7]", "[0.5000, 0.5000, 0.7000, 0.7000]"),
        ("<think>[0.1, 0.2, 0.3, 0.6], or", ""),
        ("<think>[0.1, 0.2, 0.3, 0.6]</think>I cannot see it.", "I cannot see it."),
    ],
)
def test_a_kit_finds_no_draft(text: str, given: str) -> None:
    asked = "Give the bounding box coordinates of the region this sentence describes: cup"
    asker = Stub(lambda question, image: text, "llava")
    assert answer(asker, [Image.new("RGB", (100, 100))], [asked]) == [given]


def test_whether_a_prompt_opens_a_thought() -> None:
    assert opens_thought("<|im_start|>assistant\n<think>\n")
    assert not opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thought("What does <think> mean?")
    assert not opens_thought("")


def test_a_draft_and_an_answer_overlap_nowhere() -> None:
    assert math.isclose(box_iou(DRAFT, RIGHT), 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", ["think", "rationale", "THINKING"])
def test_thoughts_between_tags_of_full_width(family: str, word: str) -> None:
    """As Chinese answers write them: their draft was read as a first box."""
    draft, right = (codec(family).encode([box], META) for box in ((10.0, 10, 200, 200), (300.0, 100, 500, 400)))
    text = f"＜{word}＞{draft}＜／{word}＞{right}"
    assert codec(family).decode(text, META).boxes_xyxy_px == codec(family).decode(right, META).boxes_xyxy_px
    assert codec(family).decode(text[: len(word) + 2 + len(draft)], META).boxes_xyxy_px == ()
