"""`train(recipe)`: from a recipe to trained prompts, and never from half a run to nothing."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from transformers import TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import align_special_tokens

from vpp_plugins.attach import Stopwatch, host_state, unwrap
from vpp_plugins.data import TrainingData
from vpp_plugins.data.formats import data_format
from vpp_plugins.errors import VPPError, known_name
from vpp_plugins.evaluate import protocol
from vpp_plugins.files import only_one, whole_file
from vpp_plugins.plugins import box_codec
from vpp_plugins.processor import VPPProcessor
from vpp_plugins.train.checkpoints import FINAL, check_room, check_writable, open_run
from vpp_plugins.train.collate import ChatWriter, Collator
from vpp_plugins.train.data import load_kept, load_mixture, pixel_budget
from vpp_plugins.train.distributed import check_sharding, check_whole, shard_by_units
from vpp_plugins.train.encodings import KeptEncodings
from vpp_plugins.train.evaluation import TrainingEvaluation, evaluation_of
from vpp_plugins.train.forgetting import Forgetting
from vpp_plugins.train.groups import SCOPES
from vpp_plugins.train.losses import (
    ANSWERS,
    HiddenBoxes,
    answer_loss,
    build_losses,
    check_losses,
    coordinate_ids,
    read_language_model,
)
from vpp_plugins.train.machine import check_machine
from vpp_plugins.train.model import (
    attach,
    check_family,
    check_how_loaded,
    empty_host,
    learning_rates,
    load_host,
    prepare_for_training,
)
from vpp_plugins.train.optim import MUON, WeightAverage, muon_groups
from vpp_plugins.train.packing import PackingCollator, check_packing
from vpp_plugins.train.preflight import preview, show
from vpp_plugins.train.recipe import NO_PROMPTS, Recipe
from vpp_plugins.train.report import write_training_page
from vpp_plugins.train.trainer import VPPTrainer
from vpp_plugins.train.unfreezing import Unfreezing

RUN = "run.json"
TIMED = {
    "get_batch_samples": "data",
    "training_step": "gradients",
    "compute_loss": "language model",  # PEFT calls its host's forward, not the host
    "evaluate": "evaluation",
    "_save_checkpoint": "writing",
    "write_weights": "writing",
}
"""The trainer's methods whose time is told apart from that of the optimizer, and as what."""


@dataclass(frozen=True)
class Trained:
    """What a run left."""

    folder: Path
    """The final weights: prompts and, where it learned, the host or its LoRA."""
    steps: int
    history: list[dict[str, float]]
    """What was logged, step by step."""
    skipped: tuple[str, ...]
    """Samples that could not be used, and why."""


def train(recipe: Recipe, *, model: Any = None, processor: Any = None, watch: Stopwatch | None = None) -> Trained:
    """Train what the recipe says, and return where it is.

    `model` and `processor` are loaded by the recipe's names, unless they are given: a host or an attached model, and
    the host's processor or a VPPProcessor. Launched by torchrun or accelerate, the processes share the work. On `watch`
    is counted where the time goes, which the page then says.

    Killed at any moment, the same recipe with `resume_from_checkpoint="auto"` goes on from the last checkpoint, and on
    a machine that computes deterministically ends with the same weights to the bit. Raises VPPError before anything is
    trained for a recipe, data, model or folder that does not fit.
    """
    if model is None:
        check_machine(recipe)
    arguments = training_arguments(recipe)
    _check_names(recipe)
    set_seed(arguments.seed)  # LoRA's first weights are random, and a run may be killed before they are saved
    check_writable(Path(recipe.output_dir))
    held = only_one(Path(recipe.output_dir), "training run", advice="choose another output_dir")
    with held if arguments.should_save else nullcontext():
        return _train(recipe, arguments, model, processor, watch)


def _train(recipe: Recipe, arguments: Any, model: Any, processor: Any, watch: Stopwatch | None) -> Trained:
    asked, first = recipe.trainer.get("resume_from_checkpoint"), arguments.local_process_index == 0
    resume = open_run(recipe.output_dir, asked, prompts=recipe.vpp != NO_PROMPTS, verify=first)
    with arguments.main_process_first(desc="reading the data"):  # they are converted by one and read by all
        data = load_mixture(recipe)
    _check_images(data, recipe)
    if watch is not None:
        watch.resumed = resume is not None
    evaluation = evaluation_of(recipe, arguments.per_device_eval_batch_size)  # before a model is loaded
    model, processor, groups = _prepared(recipe, model, processor)
    shard_by_units(arguments, model)
    collator = _collator(recipe, data, model, processor)
    unfreezing = Unfreezing(groups, recipe.unfreeze, processes=arguments.world_size)
    kept = None if recipe.cache_encodings is None else KeptEncodings(model, recipe.cache_encodings)
    trainer = _trainer(recipe, arguments, collator, model, groups, evaluation)
    trainer.add_callback(unfreezing)
    if kept is not None:
        trainer.cost.saved, unfreezing.at_first = kept.saved_seconds, kept.remove
    if arguments.should_save:
        check_room(Path(recipe.output_dir), _checkpoint_bytes(trainer))
        _record(recipe, data, unwrap(model).config.name_or_path, resumed=resume is not None)
        show(data, collator, groups, off=recipe.switched_off(), answers=recipe.answers)
    trainer.accelerator.wait_for_everyone()
    with nullcontext() if watch is None else _timed(trainer, model, watch):
        try:
            _run(trainer, resume)
        finally:
            for loss in trainer.losses:
                loss.remove()
            if kept is not None:
                kept.remove()
        trainer.write_weights(Path(recipe.output_dir) / FINAL)
    return _finished(trainer, Path(recipe.output_dir), watch)


@contextmanager
def _timed(trainer: VPPTrainer, model: Any, watch: Stopwatch) -> Iterator[None]:
    timed = TIMED if trainer.answers else {**TIMED, "compute_loss": "losses"}  # the language model is not run
    with watch.parts_of(model), watch.calls_of(trainer, timed), watch.part("optimizer"):
        yield


def training_arguments(recipe: Recipe) -> Any:
    """Return transformers' TrainingArguments of the recipe; raises VPPError for values that they do not take."""
    known = {f.name for f in fields(TrainingArguments)}
    on_gpu = torch.accelerator.is_available() and not recipe.trainer.get("use_cpu")
    values: dict[str, Any] = {"logging_steps": 10, "dataloader_pin_memory": on_gpu, **recipe.trainer}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    asked = values.pop("gradient_checkpointing", None) or values.pop("activation_checkpointing", None)
    chosen = values.pop("gradient_checkpointing_kwargs", None) or values.pop("activation_checkpointing_kwargs", None)
    if asked:
        # the re-entrant kind gives no gradient to what lies before a frozen layer: LoRA, the projector, prompts
        values |= {checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False, **(chosen or {})}}
    values.pop("resume_from_checkpoint", None)
    if values.get("optim") == MUON:  # not transformers' own: the trainer builds it
        values.pop("optim")
    values |= {"output_dir": recipe.output_dir, "remove_unused_columns": False}
    if recipe.eval_data is not None:
        values.setdefault("eval_strategy", "steps")
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise VPPError(f"transformers does not take the recipe: {error}") from None
    if recipe.eval_data is None and arguments.eval_strategy != "no":
        raise VPPError(f'eval_strategy = "{arguments.eval_strategy}" asks no data: name some by eval_data.')
    _check_arguments(arguments, recipe)
    return arguments


def _check_names(recipe: Recipe) -> None:
    """Raise VPPError for names that nobody knows: better said before data and model are loaded."""
    if recipe.data_format != "drawn-scenes":
        data_format(recipe.data_format)
    for family in (recipe.data_family, recipe.box_format):
        if family is not None:
            box_codec(family)
    if recipe.eval_data is not None:
        protocol(recipe.eval_protocol)
    check_how_loaded(recipe)
    if recipe.lora_scope is not None:
        known_name(recipe.lora_scope, SCOPES, "LoRA scope")
    elif recipe.lora_first_layer:
        raise VPPError('lora_first_layer has nothing to act on without LoRA: add lora_scope = "llm", or leave it out.')
    if recipe.vpp == NO_PROMPTS and recipe.trains_prompts_alone:
        raise VPPError(
            'the recipe trains prompts alone, so with vpp = "none" nothing is left to train: its control is the host '
            "as it is, asked by `vpp eval run --disable-vpp` on the trained weights."
        )
    pixel_budget(recipe)
    check_losses(recipe.loss_weights())
    _check_answers(recipe)
    learning_rates(recipe)


def _check_answers(recipe: Recipe) -> None:
    weights = recipe.loss_weights()
    if recipe.answers:
        return
    if not weights:
        raise VPPError(
            f"answers = false leaves nothing to learn with losses = {list(recipe.losses)}: name others, such as "
            '"alignment", which also works where there are no prompts.'
        )
    if ANSWERS in weights or recipe.hide_boxes:
        named = f"the loss '{ANSWERS}'" if ANSWERS in weights else "hide_boxes"
        raise VPPError(f"answers = false leaves the answers out, and {named} is about them: leave one of the two out.")
    if not read_language_model(weights) and (recipe.lora_scope is not None or "llm" not in recipe.freeze):
        raise VPPError(
            f"with answers = false and no losses but {', '.join(weights)} the language model is not run, and cannot "
            'learn: add "llm" to freeze, and leave lora_scope out.'
        )


def _check_arguments(arguments: TrainingArguments, recipe: Recipe) -> None:
    check_sharding(arguments)
    check_whole(arguments, recipe)
    if arguments.push_to_hub:
        raise VPPError(
            "push_to_hub would upload all of the run's folder, this machine's paths in it and the prompts not: leave "
            f"it out, and upload what is to be shared at the end by hf upload OWNER/NAME {recipe.output_dir}/{FINAL}."
        )
    order = recipe.trainer.get("train_sampling_strategy", "random")
    if order not in ("random", "sequential"):
        raise VPPError(
            f'train_sampling_strategy = "{order}": take "random" or "sequential", as the others go by lengths in '
            "tokens, which nobody knows before a sample is rendered."
        )
    if recipe.eval_data is not None and is_deepspeed_zero3_enabled():
        raise VPPError(
            "eval_data cannot be asked while ZeRO-3 shards the model: leave it out and run `vpp eval` on the final "
            "weights, or take ZeRO-2 or fsdp."
        )


def preview_sample(recipe: Recipe, index: int) -> Text:
    """Return `preview` of one of a recipe's samples; the model is built without weights."""
    data = load_mixture(recipe)
    if index >= len(data):
        raise VPPError(f"there is no sample {index}: the data hold {len(data)}, counted from 0.")
    host, processor = empty_host(recipe)
    check_family(host, recipe)
    local = recipe.local_vpp
    if isinstance(local, Mapping):
        local = {name: value for name, value in local.items() if name != "weights"}
    vpp = recipe.vpp if recipe.vpp == NO_PROMPTS else None
    model, wrapped = attach(host, processor, replace(recipe, vpp=vpp, local_vpp=local))
    return preview(_collator(recipe, data, model, wrapped), index)


def _prepared(recipe: Recipe, model: Any, processor: Any) -> tuple[Any, VPPProcessor, list[dict[str, Any]]]:
    """Return the attached model, ready to be trained, its processor, and the groups of what is trained."""
    if model is None or processor is None:
        model, processor = load_host(recipe)
    check_family(model, recipe)
    model, wrapped = attach(model, processor, recipe)
    model, groups = prepare_for_training(model, recipe)
    return model, wrapped, muon_groups(groups, model) if recipe.trainer.get("optim") == MUON else groups


def _trainer(
    recipe: Recipe,
    arguments: TrainingArguments,
    collator: Collator,
    model: Any,
    groups: list[dict[str, Any]],
    evaluation: TrainingEvaluation | None,
) -> VPPTrainer:
    processor, weights = collator.processor, recipe.loss_weights()
    trainer = VPPTrainer(
        model=model,
        args=arguments,
        train_dataset=collator.data,
        eval_dataset=None if evaluation is None else evaluation.rows,
        evaluation=evaluation,
        data_collator=collator,
        processing_class=processor,
        groups=groups,
        max_skipped=recipe.max_skipped,
        losses=build_losses(weights, model, processor),
        compute_loss_func=answer_loss(weights, processor.tokenizer),
        muon=recipe.trainer.get("optim") == MUON,
        average=_average(recipe, groups),
        snapshots=recipe.snapshots,
        answers=recipe.answers,
    )
    trainer.card_sections = {"Data": _data_told(recipe, collator.data)}
    if recipe.keep:
        as_answered = replace(recipe, turns_apart=False, hide_boxes=0.0)
        trainer.add_callback(Forgetting(trainer, _collator(as_answered, load_kept(recipe), model, processor)))
    return trainer


def _collator(recipe: Recipe, data: TrainingData, model: Any, processor: VPPProcessor) -> Collator:
    backbone = host_state(model).backbone
    write = ChatWriter(recipe.box_format or backbone.box_format)
    ids = coordinate_ids(processor.tokenizer) if recipe.hide_boxes else None
    hide = None if ids is None else HiddenBoxes(ids, recipe.hide_boxes, len(data))
    if recipe.turns_apart:
        check_packing(unwrap(model))
    kind = PackingCollator if recipe.turns_apart else Collator
    limits = {"max_length": recipe.max_length, "max_turns": recipe.max_turns}
    return kind(data, processor, write, image_token=backbone.image_token, hide=hide, **limits)


def _data_told(recipe: Recipe, data: TrainingData) -> str:
    """Return what a model card says of the data: no path of this machine."""
    names = [recipe.data, *(str(entry["data"]) for entry in recipe.mix)]
    listed = ", ".join(f"`{Path(name).name}`" for name in names)
    return f"{len(data):,} samples of {listed} ({recipe.data_format}), SHA-256 {data.fingerprint()}."


def _average(recipe: Recipe, groups: Iterable[Mapping[str, Any]]) -> WeightAverage | None:
    if not recipe.average_weights:
        return None
    if recipe.trainer.get("load_best_model_at_end"):
        raise VPPError("average_weights ends with the average and load_best_model_at_end with a checkpoint: drop one.")
    return WeightAverage((weight for group in groups for weight in group["params"]), recipe.average_weights)


def _run(trainer: VPPTrainer, resume: Path | None) -> None:
    trainer.cost.begin(resume)
    if resume is None:
        trainer.train()
        return
    state = json.loads((resume / "trainer_state.json").read_text())
    *_, max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if state["global_step"] < max_steps:
        trainer.train(resume_from_checkpoint=str(resume))
    else:  # all steps are done, only the end is missing; Trainer would take one step too many
        align_special_tokens(trainer.model, trainer.processing_class)  # as it does before the first
        trainer._load_from_checkpoint(str(resume))
        trainer.state.global_step, trainer.state.log_history = state["global_step"], state["log_history"]


def _finished(trainer: VPPTrainer, run: Path, watch: Stopwatch | None) -> Trained:
    """Write the page of the run."""
    skipped, history = tuple(trainer.skipped), trainer.state.log_history
    if trainer.args.should_save:
        time = "" if watch is None else watch.sentence()
        write_training_page(run / "report.html", json.loads((run / RUN).read_text()), history, skipped, time)
    return Trained(run / FINAL, trainer.state.global_step, history, skipped)


def _check_images(data: TrainingData, recipe: Recipe) -> None:
    if not data.has_images:
        raise VPPError(
            f"none of the {len(data)} samples has an image, so the prompts would learn nothing: check `data` and "
            f"`data_format`; `vpp data head {recipe.data} --from {recipe.data_format}` shows what is read."
        )


def _data_of(path: Path) -> str:
    """Return the digest of the data that a run was begun with."""
    try:
        return str(json.loads(path.read_bytes())["data_sha256"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise VPPError(
            f"'{path}' is damaged ({error!r}), so whether the data are the same cannot be checked: delete it where you "
            "know that they are, and go on."
        ) from None


def _checkpoint_bytes(trainer: VPPTrainer) -> int:
    """Estimate a checkpoint: weights, and two numbers of AdamW for each that is trained."""
    trained: int = sum(p.numel() * p.element_size() for group in trainer.groups for p in group["params"])
    model: Any = trainer.model
    host = unwrap(model)
    whole = trainer.keeps_host or "peft_config" in vars(host)
    weights: int = trained if whole else sum(p.numel() * p.element_size() for p in host.parameters())
    return weights + 2 * trained


def _record(recipe: Recipe, data: TrainingData, host: str, *, resumed: bool) -> None:
    """Write what the run is, its host's place included; one that goes on must have the same data, in the same order."""
    run = Path(recipe.output_dir)
    path, digest = run / RUN, data.fingerprint()
    if resumed and path.is_file() and _data_of(path) != digest:
        raise VPPError(
            f"'{run}' was begun with other data than '{recipe.data}' holds now, so going on would repeat some samples "
            "and miss others: give the same data, or another output_dir."
        )
    packages = ("vpp-plugins", "torch", "transformers", "accelerate", "peft", "tokenizers")
    about = {
        "recipe": recipe.to_dict(),
        "host": str(Path(host).resolve()) if Path(host).is_dir() else host,
        "samples": len(data),
        "data_sha256": digest,
        "faults": {issue: count for issue, count, _ in data.tally.rows()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }
    with whole_file(path) as file:
        file.write(json.dumps(about, indent=2, ensure_ascii=False, default=str).encode() + b"\n")
