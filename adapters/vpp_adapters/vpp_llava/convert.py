"""Bring a checkpoint of VPP-LLaVA's own code into transformers' layout, a shard at a time.

Its files are read a tensor at a time, without ever running code that came with them.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig, LlavaImageProcessorPil, LlavaProcessor

from vpp_adapters.vpp_llava.config import check_parts, expected_shapes, host_config, match, prompt_config
from vpp_adapters.vpp_llava.reference import is_reference, read_settings
from vpp_adapters.vpp_llava.vicuna import IMAGE, VICUNA_V1, vicuna_tokenizer
from vpp_plugins import VPPConfig, VPPError
from vpp_plugins.attach import CONFIG_FILE, WEIGHTS_FILE
from vpp_plugins.files import Shape, read_pickled, sha256_of, whole_folder
from vpp_plugins.prompts import TOKEN

_NAMES = ("model.safetensors", "pytorch_model.bin")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and how large it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Whole numbers of any kind count as uint8."""

    @property
    def nbytes(self) -> int:
        """Return its size in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder's checkpoint, in the files' order, without reading one.

    Reads model.safetensors or pytorch_model.bin, whole or in the shards that the index beside it names. Raises VPPError
    where a shard is missing, truncated, holds anything but tensors, or a tensor is in two of them.
    """
    found: dict[str, StoredTensor] = {}
    files, indexed = _files(folder)
    for file in files:
        with opened(file) as tensors:
            for name in tensors.names:
                if name in found:
                    raise VPPError(
                        f"'{name}' is in two files, '{found[name].file.name}' and '{file.name}': keep one of them."
                    )
                found[name] = StoredTensor(file, *tensors.describe(name))
    if absent := sorted(indexed - found.keys()):
        raise VPPError(
            f"the index in '{folder}' promises '{absent[0]}' and {len(absent) - 1} more tensors that no file holds: "
            "download the checkpoint again."
        )
    return found


@dataclass(frozen=True)
class Tensors:
    """The tensors of an open file."""

    names: list[str]
    describe: Callable[[str], tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[str], Tensor]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Tensors]:
    """Open a weight file without reading its tensors; those that were read stay valid afterwards."""
    if file.suffix != ".safetensors":
        state = read_pickled(file)
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise VPPError(f"'{file}' holds something else than tensors by name: a state dict is expected.")
        yield Tensors(list(state), lambda name: (tuple(state[name].shape), state[name].dtype), state.__getitem__)
        return
    from safetensors import SafetensorError, safe_open

    try:
        opening = safe_open(file, framework="pt")
    except SafetensorError as error:
        raise VPPError(f"'{file}' is truncated or no safetensors file ({error}): download it again.") from error
    with opening as content:

        def describe(name: str) -> tuple[tuple[int, ...], torch.dtype]:
            part = content.get_slice(name)
            return tuple(part.get_shape()), _FLOATS.get(part.get_dtype(), torch.uint8)

        yield Tensors(list(content.keys()), describe, content.get_tensor)


def _files(folder: Path) -> tuple[list[Path], set[str]]:
    """Return the checkpoint's files, and the names of the tensors that its index, if any, promises."""
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = _read_index(index)
            files = [folder / file for file in sorted(set(places.values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise VPPError(
                    f"{len(missing)} of {len(files)} shards are missing in '{folder}': {', '.join(missing[:3])}. "
                    "Download them too."
                )
            return files, set(places)
        if (folder / name).is_file():
            return [folder / name], set()
    raise VPPError(f"no weights in '{folder}': expected is {' or '.join(_NAMES)}, or shards with their index.")


def _read_index(index: Path) -> dict[str, str]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        whole = all(isinstance(file, str) and Path(file).name == file for file in places.values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise VPPError(f"'{index}' is no index of weight files: download it again.")
    return dict(places)


SHARD_BYTES = 2**30
"""The most that one written file holds, unless one tensor is larger or the checkpoint's own files are smaller. So much
is in memory at a time."""

_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def convert(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Write the VPP-LLaVA checkpoint in folder `source` to the new folder `target`, as save_pretrained would.

    `LlavaForConditionalGeneration.from_pretrained(target)` loads the host, `attach_vpp(model, target)` the prompts, and
    `load_vpp_llava(target)` both. Nothing but the checkpoint is needed, no file of CLIP's or DETR's. The vocabulary
    gains `<image>` and `<|vpp|>`, as zero rows where none are spare. `dtype` None keeps the checkpoint's.

    Everything is checked before the first byte is written: raises VPPError for a checkpoint of another model, without
    VPP, with a shard missing, truncated or holding anything but tensors, and for tensors that are missing, unknown, or
    of another shape. A NaN or infinite weight is found on the way. What is unfinished lies in a hidden folder beside
    `target`, and is removed by an error or by the next conversion to the same `target`.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise VPPError(f"'{target}' exists and is not empty: give a folder that is new or empty.")
    plan = _plan(source)
    with whole_folder(target) as folder:
        _write_weights(plan, folder, dtype)
        host = {"family": "llava", "box_format": "vpp-llava", "frame": "square", "unit": "0-1"}
        plan.prompts.save(folder / CONFIG_FILE, weights_sha256=sha256_of(folder / WEIGHTS_FILE), trained_on=host)
        _write_host_settings(plan, folder, dtype)


@dataclass(frozen=True)
class _Plan:
    """What a checkpoint is, and what becomes of it."""

    stored: dict[str, StoredTensor]
    names: dict[str, str]
    """The new name of every tensor that is kept; the prompts' begin with "vpp."."""
    host: Any
    rows: int
    """Rows of the written vocabulary."""
    prompts: VPPConfig
    tokenizer: Any


def _plan(source: Path) -> _Plan:
    settings = read_settings(source)
    if not is_reference(settings):
        raise VPPError(
            f"'{source}' is a {settings.get('model_type', 'model of unknown type')}, not a checkpoint of VPP-LLaVA's "
            "own code (LlavaLlamaForCausalLM): what from_pretrained loads needs no conversion."
        )
    stored = stored_tensors(source)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    check_parts(shapes, f"'{source}'")
    host, prompts, expected = _described(settings, shapes, source)
    names = match(shapes, expected, f"'{source}'")
    if packed := [name for name in names if not stored[name].dtype.is_floating_point]:
        raise VPPError(f"'{packed[0]}' in '{source}' is quantised: convert the checkpoint that it was made from.")
    tokenizer = _tokenizer(source, rows=host.text_config.vocab_size)
    host.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    rows = max(host.text_config.vocab_size, *(1 + tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, TOKEN)))
    return _Plan(stored, names, host, rows, prompts, tokenizer)


def _described(
    settings: Mapping[str, Any], shapes: Mapping[str, Shape], source: Path
) -> tuple[Any, VPPConfig, dict[str, Shape]]:
    """Return the host's configuration, the prompts', and the shape of every tensor of both."""
    try:
        host, prompts = host_config(settings, shapes, source), prompt_config(shapes)
        return host, prompts, expected_shapes(host, prompts)
    except VPPError:
        raise
    except Exception as error:  # transformers raises anything where a value makes no sense
        raise VPPError(
            f"the config.json in '{source}' describes no LLaVA ({' '.join(str(error).split())}): download it again."
        ) from error


def _tokenizer(source: Path, *, rows: int) -> Any:
    if not (source / "tokenizer.model").is_file():
        raise VPPError(f"no tokenizer.model in '{source}': give the folder of a whole checkpoint.")
    try:
        tokenizer: Any = vicuna_tokenizer(source)
    except Exception as error:  # a damaged file makes sentencepiece and transformers raise anything
        raise VPPError(
            f"tokenizer.model or tokenizer_config.json in '{source}' cannot be read "
            f"({' '.join(str(error).split())}): download them again."
        ) from error
    if len(tokenizer) - (IMAGE in tokenizer.get_added_vocab()) > rows:
        raise VPPError(f"the tokenizer in '{source}' knows {len(tokenizer) - 1} tokens, but the model only {rows}.")
    tokenizer.add_tokens([TOKEN], special_tokens=True)
    return tokenizer


def _write_weights(plan: _Plan, folder: Path, dtype: torch.dtype | None) -> None:
    prompts = [key for key, name in plan.names.items() if name.startswith("vpp.")]
    shards = list(_shards(plan, [key for key, name in plan.names.items() if not name.startswith("vpp.")]))
    places: dict[str, str] = {}
    written = 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("converting", total=sum(plan.stored[key].nbytes for key in plan.names))
        advance = partial(progress.advance, task)
        if computed := [key for key in plan.stored if key not in plan.names]:
            progress.console.print(f"{len(computed)} tensors are computed and not kept, such as {computed[0]}")
        for number, keys in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            written += _write_file(plan, keys, folder / file, dtype, advance)
            places |= {plan.names[key]: file for key in keys}
        _write_file(plan, prompts, folder / WEIGHTS_FILE, dtype, advance)
    index = {"metadata": {"total_size": written}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _shards(plan: _Plan, keys: list[str]) -> Iterator[list[str]]:
    """Cut the tensors into groups of a file each, in the order in which they lie in the checkpoint."""
    most = min(SHARD_BYTES, max(tensor.file.stat().st_size for tensor in plan.stored.values()))
    group: list[str] = []
    size = 0
    for key in keys:
        if group and size + plan.stored[key].nbytes > most:
            yield group
            group, size = [], 0
        group.append(key)
        size += plan.stored[key].nbytes
    yield group


def _write_file(
    plan: _Plan, keys: list[str], path: Path, dtype: torch.dtype | None, advance: Callable[[int], None]
) -> int:
    """Write the tensors' new file, and return the bytes of its tensors; none of them outlives the call."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for file, in_file in groupby(keys, key=lambda key: plan.stored[key].file):
        with opened(file) as stored:
            for key in in_file:
                tensor = stored.read(key).detach()
                tensor = tensor.to(dtype or tensor.dtype)
                if not torch.stack(torch.aminmax(tensor)).isfinite().all():  # isfinite of the whole makes copies
                    raise VPPError(
                        f"'{key}' in '{file}' has NaN or infinite values in {tensor.dtype}: the checkpoint is damaged, "
                        "or its numbers need a wider dtype."
                    )
                if key in _VOCABULARY:
                    missing = plan.rows - len(tensor)
                    tensor = torch.cat([tensor, tensor.new_zeros(missing, tensor.shape[1])])
                tensors[plan.names[key].removeprefix("vpp.")] = tensor.contiguous()
                advance(plan.stored[key].nbytes)
    save_file(tensors, path, {"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _write_host_settings(plan: _Plan, folder: Path, dtype: torch.dtype | None) -> None:
    host = plan.host
    host.text_config.vocab_size = plan.rows
    host.architectures = ["LlavaForConditionalGeneration"]
    host.dtype = dtype or plan.stored[_VOCABULARY[0]].dtype
    host.save_pretrained(folder)
    # greedy, as the reference evaluates; Vicuna's own file holds sampling settings that transformers refuses to save
    text = host.text_config
    ids = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
    side = host.vision_config.image_size
    LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True),
        plan.tokenizer,
        patch_size=host.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_V1,
    ).save_pretrained(folder)
