"""A recipe: everything that a training run is, as flat TOML.

Our own keys are the fields of `Recipe`. All others are those of transformers' `TrainingArguments`, by their own names.
"""

import ast
import json
import math
import tomllib
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, get_args

from vpp_plugins.config import fits
from vpp_plugins.errors import VPPError, known_name, named_extras, nearest

PARTS = ("llm", "lora", "projector", "vision", "vpp.global", "vpp.local", "vpp.projector")
"""Every trainable parameter is in one of these. "vpp.local" is the query generator, "vpp.projector" what brings its
queries to the language model; "llm" is all of the host that its adapter does not call vision encoder or projector."""
NO_PROMPTS = "none"
"""The recipe's `vpp` for a run without any prompt."""
CLEARED = "none"
"""What stands for no value, as TOML has none."""
BOTH = ("global_vpp", "local_vpp")
"""Both prompts, which are there unless they are false: "none" could mean either."""
TABLES = ("lr", "schedule", "unfreeze", "keep", *BOTH)
"""Keys that hold values of their own, written `lr.vpp.global = 1e-4` or `global_vpp.alpha = 0.9`."""


_SET_BY_TORCHRUN = "local_rank"
_DEEPEST = 20
_MOST = 1e30
_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys("hide_boxes lora_dropout average_weights label_smoothing_factor".split(), (0, 1)),
    **dict.fromkeys(
        "max_samples max_length max_turns lora_r eval_limit per_device_train_batch_size per_device_eval_batch_size "
        "gradient_accumulation_steps save_total_limit".split(),
        (1, 2**62),
    ),
    **dict.fromkeys("max_skipped dataloader_num_workers lora_first_layer".split(), (0, 2**62)),
    **dict.fromkeys("learning_rate weight_decay max_grad_norm warmup_steps num_train_epochs".split(), (0, _MOST)),
    **dict.fromkeys("max_steps save_steps eval_steps logging_steps".split(), (-1, 2**62)),
    **dict.fromkeys("seed data_seed".split(), (0, 2**32 - 1)),
}
"""The least and the most of keys that are numbers."""

NEED_PROMPTS = ("detection",)
"""Losses on the prompts alone."""
OLD_LOSSES = {"word_alignment": "words", "detection_loss": "detection", "soft_boxes": "coordinates"}
"""Keys of 0.1.0 that are entries of `losses` now; they work until 0.2."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

        recipe = Recipe.load("examples/recipes/llava-1.5-lora.toml", changes=["max_steps=100", "lr.vpp.local=1e-5"])

    Paths are taken from the working directory. "none" clears what an earlier file or the recipe itself says, as
    `local_vpp.weights=none`, but for `vpp`, where it is a control's.
    """

    model: str
    """Folder or hub id of the host, an image-text-to-text model of transformers; "pocket" is the pocket model from
    scratch, its prompts attached."""
    data: str
    """File with the samples."""
    output_dir: str
    """Folder of the run: checkpoints, the report, and at the end `final/`."""
    family: str | None = None
    """transformers' model_type that the recipe is for; any other model is refused. None takes all."""
    processor: str | None = None
    """Folder or hub id of the host's processor; None takes the model's."""
    chat_template: str | None = None
    """File with a Jinja chat template to train with instead of the processor's own; `vicuna_v1.jinja` ships."""
    dtype: str = "auto"
    """Weights of the host as loaded; what is trained becomes float32 where bf16 or fp16 is on."""
    attn_implementation: str | None = None
    """Attention of the host, such as sdpa or flash_attention_2; None takes transformers' choice."""
    load_in_4bit: bool = False
    """QLoRA: the host's linear layers in 4 bits (bitsandbytes). Prompts are never quantised."""

    vpp: str | None = None
    """Prompts to begin with, a folder or hub id that `save_vpp` wrote; None begins with drawn axes. "none" trains the
    host without any prompt, as the control of a comparison: all else stays equal, and what needs prompts is off."""
    global_vpp: Mapping[str, Any] | bool = field(default_factory=dict)
    """Changes to the family's `GlobalVPPConfig`; false leaves the global prompt out."""
    local_vpp: Mapping[str, Any] | bool = field(default_factory=dict)
    """Changes to the family's `LocalVPPConfig`; false leaves the local prompt out."""

    data_format: str = "neutral"
    """Format of the data; `vpp data formats` lists them. "drawn-scenes" draws `max_samples` scenes as they are needed,
    of the cut-outs in the folder `data`, fetched if they are not there, or of shapes where `data` is "shapes"."""
    data_family: str = "llava"
    """Whose boxes stand in the text of the data, where the format has them there."""
    data_boxes: str = ""
    """How the boxes of the data are written, where not as the format or the family says: "pixels", "resized", "0-1",
    "0-1000", "0-1,padded" or "pixels,xywh". Holds for `eval_data` too where `eval_format` is `data_format`."""
    data_pixels: tuple[int, ...] = ()
    """Where boxes stand in pixels of the image as Qwen's processor resized it: least and most pixels of that, as
    `data_pixels = [3136, 12845056]`; empty is the family's own."""
    images: str | None = None
    """Folder of the images; None takes the data file's own."""
    split: str = ""
    """Which split of a file that has several."""
    mix: tuple[Mapping[str, Any], ...] = ()
    """Other data to mix in, such as chats that the model should not forget: tables of data, weight, and where they
    differ data_format, data_family, images, split, max_samples. `weight` samples come for each one of `data`."""
    keep: Mapping[str, Any] = field(default_factory=dict)
    """Held-out chats that the model should not forget, a table as in `mix` but without weight: their answers' loss is
    logged as `kept_loss` before the first step and after the last."""
    max_samples: int | None = None
    """Only the first so many samples."""
    max_length: int | None = None
    """Samples of more tokens are skipped, not cut: half an image teaches nothing."""
    max_turns: int | None = None
    """Only the first so many turns of a sample are asked; `losses` see them all."""
    max_skipped: int = 100
    """Samples that may be lost (missing or damaged images, too long) before the run stops."""
    box_format: str | None = None
    """How answers write boxes; None is the host's own. vpp-llava adds the axis sentence."""

    learning_rates: str = "reference"
    """Rates of all parts: reference or paper. `learning_rate` gives one rate to all parts instead."""
    lr: Mapping[str, float] = field(default_factory=dict)
    """Rates of single parts: lr.llm, lr.lora, lr.projector, lr.vision, lr.vpp.global, lr.vpp.local, lr.vpp.projector.

    A rate is for all of its part, vectors too."""
    schedule: Mapping[str, str] = field(default_factory=dict)
    """Schedules of single parts, by transformers' names (schedule.llm = "constant"); others: `lr_scheduler_type`."""
    freeze: tuple[str, ...] = ()
    """Parts that keep their weights, by the same names."""
    unfreeze: Mapping[str, float] = field(default_factory=dict)
    """Parts that keep their weights at first, and learn from this share of the steps on (unfreeze.vpp.global = 0.9).
    From the first of them on nothing is read from `cache_encodings`: the rest of the run is end to end, from pixels."""
    lora_scope: str | None = None
    """Where LoRA goes: llm, vision, projector or all; None trains without LoRA. The rest of the host is then frozen,
    except a projector that is neither in the scope nor in `freeze`."""
    lora_r: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.05
    lora_first_layer: int = 0
    """The language model's first layer with LoRA, from 0. Where nothing before it learns, the backward pass ends
    there."""

    cache_encodings: str | None = None
    """Folder in which what frozen encoders (the vision encoder, the local prompt's generator) make of each image is
    kept, to be read by every later step, epoch and run; of the pocket model 0.3 MB an image. None computes it each
    time. The axes must be frozen."""
    turns_apart: bool = False
    """Whether the turns of a dialogue share its image alone, and none sees another; for LLaVA and its like."""
    hide_boxes: float = 0.0
    """Share of the answers' boxes that the model reads as random numbers while it learns them; for tokenizers with a
    token for each number."""
    answers: bool = True
    """Whether answers are learned. False leaves `losses` alone, and where none of them listens to the language model
    that is not run: a first stage, which brings projectors to the language model in minutes."""
    losses: tuple[str, ...] = ()
    """Losses beside the answer's own, as "name:weight", or "name" for weight 1. words aligns the image's tokens with
    the words that describe its regions; detection teaches the local prompt's queries where the named objects are;
    coordinates, the answer's own loss, counts numbers near to a coordinate as nearly right, for tokenizers as
    `hide_boxes`. pointing binds an answer's hidden states to the tokens that show what it speaks of: the local prompt's
    queries where the generator says where they look, else the image's own. looking and copying do so for the heads of
    the last layer, for tokenizers as `hide_boxes`. For pretrained language models alignment stands for words, naming
    for pointing, and writing for copying. Plugins bring more."""

    snapshots: tuple[int, ...] = ()
    """Steps after which the weights are also written as they are at the end, to `step-N/` beside `final/`, for good."""
    average_weights: float = 0.0
    """Decay of an average of the weights over the steps, such as 0.998, which the run ends with and evaluation asks;
    0 is without."""

    eval_data: str | None = None
    """Data to ask during training, see `eval_steps`: photos, a folder of scenes, or a file."""
    eval_format: str | None = None
    eval_images: str | None = None
    eval_protocol: str = "default"
    eval_limit: int | None = 200
    """Only the first so many rows."""

    trainer: Mapping[str, Any] = field(default_factory=dict)
    """TrainingArguments by name; in TOML they stand beside the others."""

    @classmethod
    def load(cls, *paths: str | Path, changes: Iterable[str] = ()) -> Self:
        """Read TOML files, each changing what those before say, then `key=value` changes."""
        values: dict[str, Any] = {}
        for path in paths:
            _merge(values, read_toml(Path(path), "recipe", "recipes"))
        ours: list[str] = []
        theirs: list[str] = []
        for change in changes:
            (ours if _key(change) in own_types() else theirs).append(change)
        for change in ours:
            _merge(values, _parsed(change, own_types()))
        if theirs:
            cls._of_own_keys(values)  # refused before the types of transformers' keys are asked for
        for change in theirs:
            _merge(values, _parsed(change, key_types()))
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from flat keys; raises VPPError for an unknown key, naming the nearest, and for a wrong type.

        Our own keys, and all keys' names, are checked before transformers is imported, which takes seconds.
        """
        recipe = cls._of_own_keys(values)
        theirs = {key: value for key, value in values.items() if key not in own_types()}
        trainer = _checked(theirs, key_types()) if theirs else {}
        recipe = replace(recipe, losses=_with_old_losses(recipe.losses, trainer), trainer=trainer)
        recipe.loss_weights()
        if recipe.schedule:
            from vpp_plugins.train.optim import check_schedule

            recipe = replace(recipe, schedule={part: check_schedule(name) for part, name in recipe.schedule.items()})
        return recipe

    @classmethod
    def _of_own_keys(cls, values: Mapping[str, Any]) -> Self:
        """Build from our own keys alone."""
        for key in values:
            _check_known(key)
        ours = _checked({key: value for key, value in values.items() if key in own_types()}, own_types())
        ours = {key: tuple(value) if isinstance(value, list) else value for key, value in ours.items()}
        for key in ("model", "data", "output_dir"):
            if not ours.get(key):
                raise VPPError(f'the recipe names no {key}: add the line {key} = "...", or --set {key}=...')
        recipe = cls(**{**ours, **_of_parts(ours)})
        recipe.loss_weights()
        return recipe

    def loss_weights(self) -> dict[str, float]:
        """Return the weights of `losses` by name, those of 0 left out; raises VPPError for a faulty entry."""
        weights = dict(_loss_weight(entry) for entry in self.losses)
        if len(weights) < len(self.losses):
            raise VPPError(f"losses = {_short(list(self.losses))} names one loss twice.")
        off = self.switched_off()
        return {name: weight for name, weight in weights.items() if weight and name not in off}

    @property
    def trains_prompts_alone(self) -> bool:
        """Whether the host keeps all of its weights."""
        return self.lora_scope is None and {"llm", "projector", "vision"} <= {*self.freeze}

    def switched_off(self) -> list[str]:
        """Return what the recipe says that has nothing to act on without prompts; empty where there are some."""
        if self.vpp != NO_PROMPTS:
            return []
        named = [key for key in BOTH if getattr(self, key)]
        parts = [part for part in (*self.lr, *self.schedule, *self.freeze, *self.unfreeze) if part.startswith("vpp.")]
        losses = [name for name, weight in map(_loss_weight, self.losses) if name in NEED_PROMPTS and weight]
        return list(dict.fromkeys([*named, *parts, *losses]))

    def to_dict(self) -> dict[str, Any]:
        """Return the flat keys, without those that were not set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        trainer = values.pop("trainer")
        chosen = {name: value for name, value in values.items() if value not in (None, {}, ())}
        return {**chosen, **trainer}


@cache
def own_types() -> Mapping[str, Any]:
    """Return our own keys with their types."""
    return {f.name: f.type for f in fields(Recipe) if f.name != "trainer"}


@cache
@named_extras("train")
def key_types() -> Mapping[str, Any]:
    """Return every key of a recipe with its type."""
    from transformers import TrainingArguments

    theirs = {f.name: f.type for f in fields(TrainingArguments) if f.init and f.name != _SET_BY_TORCHRUN}
    theirs["fsdp"] = bool | str | None  # true is what its documentation says to write
    return {**theirs, **own_types(), **dict.fromkeys(OLD_LOSSES, float | bool)}


@cache
@named_extras("train")
def key_names() -> Collection[str]:
    """Return every key of a recipe, those of TrainingArguments from its source: importing it takes seconds."""
    transformers = find_spec("transformers")
    if transformers is None or transformers.origin is None:
        return key_types()
    source = Path(transformers.origin).with_name("training_args.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    if classes["TrainingArguments"].bases:  # whose fields stand elsewhere
        return key_types()
    lines = [node.target for node in classes["TrainingArguments"].body if isinstance(node, ast.AnnAssign)]
    theirs = {line.id for line in lines if isinstance(line, ast.Name)} - {_SET_BY_TORCHRUN}
    return {*theirs, *own_types(), *OLD_LOSSES}


def shipped(path: Path, kind: str) -> Path:
    """Return a path as it is where something is there, else that of the file of this name which ships, if one does."""
    inside = path.relative_to(f"examples/{kind}") if path.is_relative_to(f"examples/{kind}") else path
    ours = _shipped_folder(kind) / inside
    return ours if ours.is_file() and not path.exists() else path


def _shipped_folder(kind: str) -> Path:
    """Return the folder of recipes or studies: of a clone's `examples/`, and beside this file where it is installed."""
    installed = Path(__file__).with_name(kind)
    return installed if installed.is_dir() else Path(__file__).parents[2] / "examples" / kind


def read_toml(path: Path, what: str, kind: str) -> dict[str, Any]:
    """Read a file, or the one of this name that ships; `what` it is stands in what VPPError says where it cannot be."""
    path = shipped(path, kind)
    try:
        return _toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(one.name for one in _shipped_folder(kind).glob("*.toml")))
        here = "" if path.is_absolute() else f" in '{Path.cwd()}'"
        raise VPPError(f"there is no {what} '{path}'{here}. With the library come {names}.") from None
    except OSError as error:
        raise VPPError(f"the {what} '{path}' cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise VPPError(f"'{path}' is not valid TOML ({error}).") from None


def _toml(text: str) -> dict[str, Any]:
    """Read TOML; raises ValueError for what is none, for text of half characters, and for what is nested too deep."""
    try:
        text.encode()
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError("too many brackets or dots") from None
    if _depth(values, _DEEPEST) > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} tables or lists in one another")
    return values


def _depth(value: Any, most: int) -> int:
    """Return how deep tables and lists lie in one another, counted no further than past `most`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(one, most - 1) for one in inner), default=0) if most >= 0 and inner else 0


def _key(change: str) -> str:
    """Return the key that a change is for; raises VPPError where it is none, or for no key."""
    key, equals, _ = change.partition("=")
    if not equals or not key.strip():
        raise VPPError(f"a change of the recipe is written key=value, but is {_short(change)}.")
    key = key.strip().partition(".")[0]
    _check_known(key)
    return key


def _check_known(key: str) -> None:
    if key not in own_types() and key not in key_names():
        near = nearest(key[:80], key_names())
        raise VPPError(f"a recipe has no key '{key[:80]}'.{near} `vpp train --help` lists them.")


def _parsed(change: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Read `key=value` of known kinds; the value is TOML, or else text, which needs no quotes here."""
    key, _, text = change.partition("=")
    key = key.strip()
    as_text = f"{key} = {json.dumps(text.strip())}"
    kind = kinds.get(key)
    try:
        values = _toml(f"{key} = {text}")
        if kind is not None and not fits(values[key], kind) and fits("", kind):  # output_dir=2026 is a name
            return _toml(as_text)
    except ValueError as error:
        try:
            return _toml(as_text)
        except ValueError:
            raise VPPError(f"the change '{change[:80]}' of the recipe cannot be read ({str(error)[:200]}).") from None
    return values


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, change in changes.items():
        if key in TABLES and isinstance(change, dict) and isinstance(values.get(key), dict):
            values[key] = _deep(values[key], change)
        else:
            values[key] = change


def _deep(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    tables = {key for key in values.keys() & changes.keys() if isinstance(values[key], Mapping)}
    deeper = {key: _deep(values[key], changes[key]) for key in tables if isinstance(changes[key], Mapping)}
    return {**values, **changes, **deeper}


def _checked(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of the types that they should have, and in their ranges, without those that "none" clears.

    It clears what need not be there, but is itself among texts of transformers' own, as report_to = "none".
    """
    optional = {f.name for f in fields(Recipe) if f.default is None} - {"vpp"}
    kept = {
        key: _uncleared(value) if key in TABLES else value
        for key, value in values.items()
        if value != CLEARED or (key not in optional and fits(CLEARED, kinds.get(key, str))) or key in BOTH
    }
    for key, value in kept.items():
        if key not in kinds:
            raise VPPError(f"a recipe has no key '{key}'.{nearest(key, kinds)} `vpp train --help` lists them.")
        if not fits(value, kinds[key]):
            raise VPPError(f"the recipe's key '{key}' should be {_said(kinds[key])}, but is {_short(value)}.")
        _check_range(key, value)
    return kept


def _uncleared(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _uncleared(one) for key, one in value.items() if one != CLEARED}


def flat_names(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn `lr.vpp.global`, to TOML a table in a table, into one name."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flat_names(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _with_old_losses(losses: tuple[str, ...], given: dict[str, Any]) -> tuple[str, ...]:
    """Take the keys of 0.1.0 out of what is given, and return the losses that they stand for, with a warning."""
    old = {key: float(given.pop(key)) for key in OLD_LOSSES if key in given}
    if old:
        renamed = {OLD_LOSSES[key]: weight for key, weight in old.items()}
        kept = [entry for entry in losses if entry.partition(":")[0] not in renamed]
        losses = (*kept, *(f"{name}:{weight:g}" for name, weight in renamed.items() if weight))
        warnings.warn(
            f"{', '.join(old)}: write losses = {json.dumps(losses)} in the recipe instead; these keys work until 0.2.",
            DeprecationWarning,
            stacklevel=3,
        )
    return losses


def _loss_weight(entry: str) -> tuple[str, float]:
    name, colon, weight = entry.partition(":")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        value = -1.0
    if not name or not 0 <= value < math.inf:
        raise VPPError(f"an entry of losses is written name:weight, such as words:0.3, but is {_short(entry)}.")
    return name, value


def _of_parts(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of single parts of the model, flat; raises VPPError for faulty values and unknown parts."""
    checks = {"lr": _rate, "schedule": _schedule, "unfreeze": _share}
    said = {
        key: {part: check(part, value) for part, value in flat_names(ours.get(key, {})).items()}
        for key, check in checks.items()
    }
    frozen = ours.get("freeze", ())
    for part in (*said["lr"], *said["schedule"], *said["unfreeze"], *frozen):
        known_name(part[:80], PARTS, "part of a model")
    if both := [part for part in said["unfreeze"] if part in frozen]:
        raise VPPError(f"freeze and unfreeze both name '{both[0]}': leave it in one of them.")
    return said


def _rate(part: str, value: Any) -> float:
    if not fits(value, float) or not 0 <= value <= _MOST:
        raise VPPError(f"the learning rate lr.{part} should be a number, 0 or more, but is {_short(value)}.")
    return float(value)


def _schedule(part: str, value: Any) -> str:
    if not isinstance(value, str):
        raise VPPError(f"schedule.{part} should be the name of a schedule, but is {_short(value)}.")
    return value


def _share(part: str, share: Any) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise VPPError(f"unfreeze.{part} should be a share of the steps from 0 to 1, but is {_short(share)}.")
    return float(share)


def _short(value: Any) -> str:
    """Return a value for a sentence; one of thousands of digits cannot even be written."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return "too long to show"


def _check_range(key: str, value: Any) -> None:
    """Raise VPPError for a number that no run can have: better said before a model is loaded."""
    least, most = _RANGES.get(key, (-math.inf, math.inf))
    if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= most:
        wanted = f"{least} or more" if most == math.inf else f"from {least} to {most}"
        raise VPPError(f"the recipe's key '{key}' should be {wanted}, but is {_short(value)}.")


def _said(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
