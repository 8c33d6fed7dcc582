"""VPP-LLaVA's text: the chat template vicuna_v1, the axis sentence, and a tokenizer that gives the reference's ids."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from vpp_plugins.boxes import AXIS_SENTENCE

IMAGE = "<image>"

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_TURNS = "vicuna_v1 chats take turns, and the user begins: user, assistant, user, ..."

VICUNA_V1 = (
    "{%- macro words(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    f"{{%- elif part['type'] == 'image' -%}}{{{{ '{IMAGE}' }}}}{{%- endif -%}}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    f'{{%- set system = "{_SYSTEM}" -%}}'
    "{%- set chat = messages -%}"
    "{%- if chat and chat[0]['role'] == 'system' -%}"
    "{%- set system = words(chat[0]['content']) -%}{%- set chat = chat[1:] -%}{%- endif -%}"
    "{%- if chat and chat[0]['role'] == 'assistant' -%}{%- set chat = chat[1:] -%}{%- endif -%}"
    "{{ system + ' ' if system else '' }}"
    "{%- for message in chat -%}"
    "{%- set text = words(message['content']) -%}"
    "{%- if message['role'] != ['user', 'assistant'][loop.index0 % 2] -%}"
    f"{{{{ raise_exception('{_TURNS}') }}}}{{%- endif -%}}"
    "{%- if message['role'] == 'user' -%}"
    f"{{%- set images = text.split('{IMAGE}') | length - 1 -%}}"
    f"{{%- if images -%}}{{%- set text = ('{IMAGE}\\n' * images + text.replace('{IMAGE}', '') | trim) | trim -%}}"
    "{%- endif -%}"
    "{{ 'USER: ' + text + ' ' }}"
    "{%- else -%}"
    "{{ 'ASSISTANT:' }}{%- generation -%}{{ ' ' + text + '</s>' }}{%- endgeneration -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
"""The reference's conversation template as a chat template, character by character.

Images come first in their message, as `<image>` and a newline, wherever its content names them. A leading assistant
message is left out, as the reference does. What stands between `generation` marks is what training learns: the answer,
with the blank before it, and `</s>`.
"""


def with_axis_sentence(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the training chat with the axis sentence at the end of its first message, as the reference trains.

    Text-only chats get it too. A chat whose first message (after the system's) is the assistant's does not: the
    reference appends it there, and leaves that message out later. For evaluation the sentence is part of the question
    of the box codec "vpp-llava": do not add it twice.
    """
    messages = [dict(message) for message in chat]
    first = next((message for message in messages if message["role"] != "system"), None)
    if first is None or first["role"] != "user":
        return messages
    content = first["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    words = "".join(part["text"] for part in parts if part["type"] == "text")
    others = [part for part in parts if part["type"] != "text"]
    images = words.count(IMAGE)
    if images or others:
        words = words.replace(IMAGE, "").strip()
    if isinstance(content, str):
        first["content"] = f"{IMAGE}\n" * images + words + AXIS_SENTENCE
    else:
        named = [{"type": "image"}] * images
        first["content"] = [*others, *named, {"type": "text", "text": words + AXIS_SENTENCE}]
    return messages


def vicuna_tokenizer(folder: str | Path, *, legacy: bool | None = None) -> PreTrainedTokenizerFast:
    """Load LLaMA's `tokenizer.model` so that a rendered chat gets the reference's ids, with `<image>` as one token.

    The reference tokenises the text before and after an image apart, so the newline after `<image>` gets the blank that
    begins a text; transformers 5 gives it none. A normaliser puts it back. `legacy` is sentencepiece's old treatment of
    what follows `</s>` (a blank is put before the next turn); None takes the folder's own setting, and where it has
    none True, as the reference's transformers did.

    The result is of the general fast class: LlamaTokenizer builds itself anew when it is loaded, and forgets both.
    """
    from tokenizers import Regex, normalizers
    from transformers import LlamaTokenizer

    if legacy is None:
        settings = Path(folder) / "tokenizer_config.json"
        legacy = json.loads(settings.read_text()).get("legacy", True) if settings.is_file() else True
    llama = LlamaTokenizer.from_pretrained(folder, legacy=legacy, add_bos_token=True)
    llama.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\A\n"), "▁\n")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=llama.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        model_max_length=llama.model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=VICUNA_V1,
    )
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    return tokenizer
