"""What of a text is the answer: not the thoughts before it, the tools it calls, nor the questions it quotes.

Codecs, the readers of published protocols, rewards and captions all ask here.
"""

import re

_THOUGHT = re.compile(
    r"[<＜]\|?\s*+(?P<end>[/／]|end_(?:of_)?)?+\s*+(?:(?:start|begin)_(?:of_)?|longcat_|\w{1,20}:)?+"
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?(?:_content)?|rationale|analysis|reflection|scratchpad|inner_monologue|思考)"
    r"(?:\s[^<>|]*+)?\|?[>＞]|\[(?P<end2>/?)(?-i:THINK)\]|◁(?P<end3>/?)think▷"
    r"|<\|channel\|?>\s*+(?P<end4>final\b)?(?:\s*+<\|message\|>)?|(?P<end5><channel\|>)"
    r"|<unused94>(?=thought)|(?P<end6><unused95>)|<\|inner_(?:prefix|(?P<end7>suffix))\|>",
    re.IGNORECASE,
)
"""The tags around thoughts: Qwen's, DeepSeek's, LLaVA-CoT's, Seed's, Cohere's, OpenThinker's; Magistral's; Kimi's; the
channels of gpt-oss and Gemma; MedGemma's; Apertus's."""
_TOOL = re.compile(
    r"<\|?(?P<end>/?)(?:tool_call|tool_calls_section|tool_response|tool_output|function_call|sandbox_output|observation"
    r"|code|interpreter|tool)(?:_begin|(?P<end2>_end))?\|?>|<｜tool▁(?:call|output)s▁(?:begin|(?P<end3>end))｜>"
    r"|<\|python_tag\|>|(?P<end4><\|eom_id\|>)|\[TOOL_CALLS\]",
    re.IGNORECASE,
)
_NEXT_TURN = re.compile(
    r"<\|im_start\|>\s*+user|<\|start_header_id\|>\s*+user|<start_of_turn>\s*+user|<\|user\|>|<｜User｜>|\[INST\]"
    r"|\n[# \t]*+(?:USER|User|Human) ?:"
)
"""What begins a question that a model, going on after its answer, asks itself."""
_ANSWER = re.compile(
    r"<\s*+(?P<end>/?)\s*+(?:answer|final_answer|conclusion)\s*+>"
    r"|\\boxed\s*+\{|(?:\A|\n|[.!?]\s)[*#> \t]*+final answer[* ]*+:"
    r"|(?:\A|\n)[*#> \t]*+(?:answer|here is my response|答案)[* ]*+[:：]"
    r"|(?:\A|\n)#+ *+(?:final )?answer[* ]*+\n"
    r"|\b(?:the|my) (?:final )?answer is:?(?=[^\n.]{0,40}?[\[(<{])",
    re.IGNORECASE,
)

_BOX_KEYS = r"bbox(?:_2d)?|bboxes|box(?:es)?|bounding_box(?:es)?|coordinates|coords|(?:final_)?answer"
_NOTHING = re.compile(
    r"\W*(?:json\W+)?(?:none|nothing|null|not (?:found|present|visible)|there (?:is|are) (?:no|none|nothing|not)"
    r"|no (?:bounding )?(?:box(?:es)?|objects?|match(?:es)?|such)"
    rf"""|(?:{_BOX_KEYS})["']\s*+:\s*+(?:null|None))\b""",
    re.IGNORECASE,
)
_EMPTY_LIST = re.compile(rf"""["'](?:(?P<box>{_BOX_KEYS})|\w++)["']\s*+:\s*+\[\s*+\]|(?P<bare>\[\s*+\])""")
_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""

_FENCE = re.compile(r"(?P<opens>(?:^[ \t]*+```|```(?=json)))|```", re.IGNORECASE | re.MULTILINE)
_DIGIT = re.compile(r"\d")
_NUMBERS = re.compile(r"(?<![\d.])(?:\d[\d.]*+\D*+){4}")
_PROGRAM = re.compile(
    r"(?:python\d?|py|javascript|js|typescript|ts|java|c|cpp|bash|sh|shell|sql|tool_code)\b", re.IGNORECASE
)
_REPEATED = re.compile(
    r"<!--[^<>]*+>|~~[^~\n]*+~~|<del>[^<]*+</del>|^[ \t]*+>[^\n]*+"
    r"|^[ \t*]*+(?:question|user|human|q)[ *]*+:(?:(?!\bassistant:|\banswer:)[^\n<])*+",
    re.IGNORECASE | re.MULTILINE,
)
"""Comments, what is struck out, and lines that quote, or repeat the question."""
_ALL_QUOTED = re.compile(r"(?:\s*+>[^\n]*+)++\s*+")
_QUOTED = re.compile(
    rf"""["'](?!(?:{_BOX_KEYS}|[xy]_?(?:[12]|min|max))["'])\w++["']\s*+:\s*+{_STRING}"""
    r"""|(?<![\w\\])["“](?!\w++["']\s*+[:：])(?=[^"“”<>{}\n]*?[^\W\d_])[^"“”<>{}\n]*+["”](?!\w)""",
    re.DOTALL,
)
"""JSON strings under keys that name no box, and words in quotation marks."""
_OTHER_LISTS = re.compile(
    r"""["'](?:(?:thought|reason|draft|think)\w*+|key_?points?|points?|polygons?|quads?|segment\w*+|masks?|lines?|rgba?|colou?rs?|ids?|sizes?|cent(?:er|re))["']"""
    r"""\s*+:[^{}"']*+""",
    re.IGNORECASE,
)
"""What JSON calls something else than a box."""
_ANSWER_KEY = re.compile(r"""(?<!\\)["'](?:final_)?answer["']\s*+:""")
_KEYED = re.compile(
    rf"""(?<!\\)["'](?:{_BOX_KEYS})["']\s*+[:：]\s*+"""
    r"""(?P<value>\{[^{}]*+|"[^"{}]*+|'[^'{}]*+|(?:[^\w{}<>]|[\d_])*+)"""
)
_TAGGED = re.compile(
    r"<(?:box|bbox|\|box_start\||\|det\||\|begin_of_box\|)>(?P<value>[^<]*+)"
    r"|</(?:box|bbox)>|<\|(?:box_end|/det|end_of_box)\|>"
)
_NOTABLE = re.compile(r"[`\"'“<>:~]")
"""What none of the patterns above can do without."""


def answer_of(text: str) -> str:
    """Return what of a model's text is its answer; a text without thoughts, tags and tool calls is returned as it is.

    What stands before the end of the last thought is none, and a thought that was cut off leaves none at all. Where
    the answer is marked (`<answer>`), it is the last that is.
    """
    start, thinking = 0, False
    for tag in _THOUGHT.finditer(text):
        start, thinking = tag.end(), _opens(tag)
    return "" if thinking else _marked(_without_tools(_one_turn(text[start:])))


def opens_thought(prompt: str) -> bool:
    """Return whether a prompt ends with the tag that opens a thought: the texts it is answered by have none."""
    end = prompt.rstrip()[-100:]
    return any(_opens(tag) and tag.end() == len(end) for tag in _THOUGHT.finditer(end))


def says_nothing(answer: str) -> bool:
    """Return whether an answer without boxes says that nothing is there: it begins so, or holds an empty list.

    "I cannot find it" says nothing of the kind.
    """
    return bool(_NOTHING.match(answer)) or any(found.lastgroup for found in _EMPTY_LIST.finditer(answer))


def _opens(tag: re.Match[str]) -> bool:
    return not any(tag.groups())


def _one_turn(text: str) -> str:
    """Cut off what a model goes on with after its answer: the next question, and so on."""
    for found in _NEXT_TURN.finditer(text):
        if text[: found.start()].strip():
            return text[: found.start()]
    return text


def _without_tools(text: str) -> str:
    """Cut out what is said to tools and by them; one that does not end goes on to the end."""
    kept, start, calling = [], 0, False
    for tag in _TOOL.finditer(text):
        if not calling:
            kept.append(text[start : tag.start()])
        start, calling = tag.end(), _opens(tag)
    return "".join([*kept, "" if calling else text[start:]])


def _marked(text: str) -> str:
    """Return what the last answer tags hold; a closing tag without an opening one ends what began with the text."""
    start, end = 0, len(text)
    for tag in _ANSWER.finditer(text):
        if _opens(tag):
            start, end = tag.end(), len(text)
        elif end == len(text):
            end = tag.start()
    return text[start:end]


def stated(answer: str) -> str:
    """Return an answer with `#` for every digit that is no part of the boxes it states; its length stays the same.

    Left out are programs, repeated and quoted questions, and JSON strings that are no box. Where the answer says which
    its boxes are, by a code fence, a key such as "bbox_2d" or a tag such as `<box>`, so is all else.
    """
    if _NOTABLE.search(answer) is None:
        return answer
    if not _ALL_QUOTED.fullmatch(answer):
        answer = _REPEATED.sub(_hidden, answer)
    answer = _only(_fences(answer), answer)
    for key in [*_ANSWER_KEY.finditer(answer)][-1:]:
        if _NUMBERS.search(answer, key.end()):
            answer = _only([(key.start(), len(answer))], answer)
    spans = [found.span("value") for found in _KEYED.finditer(answer)] or _tagged(answer)
    if spans or _QUOTED.fullmatch(answer.strip()):
        return _only(spans, answer) if spans else answer
    return _OTHER_LISTS.sub(_hidden, _QUOTED.sub(_hidden, answer))


def _hidden(found: re.Match[str]) -> str:
    return _DIGIT.sub("#", found[0])


def _only(spans: list[tuple[int, int]], text: str) -> str:
    """Hide every digit outside of the spans."""
    parts, done = [], 0
    for start, end in spans:
        parts += [_DIGIT.sub("#", text[done:start]), text[start:end]]
        done = end
    return "".join([*parts, _DIGIT.sub("#", text[done:])])


def _fences(text: str) -> list[tuple[int, int]]:
    """Return where the answer stands: in the code fences that hold numbers, or else in all but fenced programs."""
    fences: list[tuple[int, int]] = []
    begun = None
    for fence in _FENCE.finditer(text):
        if begun is not None:
            fences.append((begun, fence.start()))
            begun = None
        elif fence["opens"]:
            begun = fence.end()
    fences += [(begun, len(text))] if begun is not None else []
    programs = [span for span in fences if _PROGRAM.match(text, span[0])]
    numbers = [span for span in sorted({*fences} - {*programs}) if _NUMBERS.search(text, *span)]
    edges = [0, *(edge for span in programs for edge in span), len(text)]
    return numbers or list(zip(edges[::2], edges[1::2], strict=True))


def _tagged(text: str) -> list[tuple[int, int]]:
    """Return what stands between box tags; before a closing one too, as the opening one may have ended the question."""
    spans, done = [], 0
    for tag in _TAGGED.finditer(text):
        if tag["value"] is not None:
            spans.append(tag.span("value"))
        else:
            before = max(done, text.rfind(">", done, tag.start()) + 1), tag.start()
            spans += [before] if _NUMBERS.search(text, *before) else []
        done = tag.end()
    return spans
