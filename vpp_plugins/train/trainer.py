"""transformers' Trainer with the few things that prompts need: groups, checks, and checkpoints that hold them."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from vpp_plugins.attach import (
    CARD,
    active_vpp,
    every_vpp,
    host_state,
    onloaded,
    read_into,
    unwrap,
    vocabulary,
    write_card,
    write_vpp,
)
from vpp_plugins.errors import VPPError
from vpp_plugins.files import whole_folder, write_manifest
from vpp_plugins.train.checkpoints import (
    check_checkpoint,
    check_weights,
    forget_local_host,
    gathered_prompts,
    read_host,
)
from vpp_plugins.train.collate import ABOUT, About
from vpp_plugins.train.console import Console
from vpp_plugins.train.cost import Cost
from vpp_plugins.train.distributed import whole_weights
from vpp_plugins.train.evaluation import TrainingEvaluation
from vpp_plugins.train.losses import AuxiliaryLoss, learned_alone
from vpp_plugins.train.optim import EveryStep, WeightAverage, build_muon, scheduled
from vpp_plugins.train.preflight import check_gradients, give_every_parameter_a_gradient, squared_norms


class VPPTrainer(Trainer):
    """Trainer for an attached model.

    `groups` are those of `parameter_groups`; `max_skipped` samples may be lost; `evaluation` is what `evaluate` asks;
    `losses` are added to the answer's own, which `answers=False` leaves out; after the steps `snapshots` the weights
    are written to `step-N/`.
    """

    def __init__(
        self,
        *args: Any,
        groups: list[dict[str, Any]],
        max_skipped: int = 100,
        evaluation: TrainingEvaluation | None = None,
        losses: Sequence[AuxiliaryLoss] = (),
        muon: bool = False,
        average: WeightAverage | None = None,
        snapshots: Collection[int] = (),
        answers: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for usual in (PrinterCallback, ProgressCallback):
            self.remove_callback(usual)
        self.add_callback(Console())
        self.groups, self.max_skipped, self.evaluation = groups, max_skipped, evaluation
        self.losses = [loss.to(self.args.device) for loss in losses]
        self._muon, self.average, self.answers = muon, average, answers
        averaging = [] if average is None else [average.update]
        emptying = [partial(_empty_gradients, loss) for loss in losses]  # Trainer empties those of the model alone
        self.add_callback(EveryStep([*averaging, partial(_snapshot, self, frozenset(snapshots)), *emptying]))
        self._about = About((), (), (), ())
        self.cost = Cost()
        self.skipped: dict[str, None] = {}
        self.gradients: list[float] | None = None
        self.card_sections: Mapping[str, str] = {}
        """Texts by heading for the model card beside the final weights."""
        self._images = 0
        self._saving: Path | None = None
        self._rates: list[float] = []
        self._clock, self._samples = time.perf_counter(), 0

    @property
    def keeps_host(self) -> bool:
        """Whether the host has learned nothing, so that checkpoints hold the prompts alone."""
        return all(str(group["name"]).startswith("vpp.") for group in self.groups)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give every group its own learning rate."""
        if self.optimizer is None:
            kind, options = (build_muon, {}) if self._muon else self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(self.groups, **options)
            for loss in self.losses:
                own = {"params": list(loss.parameters()), "lr": loss.learning_rate(self.groups), "weight_decay": 0.0}
                if own["params"]:
                    self.optimizer.add_param_group(own | ({"use_fallback": True} if self._muon else {}))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Give every group its part's schedule, where one has its own."""
        chosen: Any = self.optimizer if optimizer is None else optimizer
        if self.lr_scheduler is None and any(group.get("schedule") for group in self.groups):
            names = [group.get("schedule") for group in chosen.param_groups]  # a loss's own group has none
            self.lr_scheduler = scheduled(chosen, self.args, steps=num_training_steps, names=names)
            self._created_lr_scheduler = True
            return self.lr_scheduler
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run one forward and backward; before the first step, see that every group got a gradient."""
        self._about = about = inputs.pop(ABOUT)
        self._count(about)
        self._rates = [float(group["lr"]) for group in self.create_optimizer().param_groups]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_finite(loss.mean(), "loss")
        if self.gradients is None:
            self._images += len(about.imaged)
            if self.accelerator.sync_gradients:
                self._preflight()
        if self.accelerator.sync_gradients:
            for added in self.losses:
                added.average_gradients()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add the recipe's losses to the answer's own."""
        given = dict(inputs)  # Trainer may take the labels out
        if self.answers:
            with self._head_reads_what_is_learned(inputs["labels"]):
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            loss, outputs = self._unanswered(model, inputs)
        for added in self.losses:
            value = added.weighted(self._about, given, outputs)
            loss = loss + value.to(loss) / self._accumulated(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _unanswered(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return no loss and what the model says; of its language model nothing, where no loss listens to it."""
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        silent = not any(loss.reads_language_model for loss in self.losses)
        with without_decoder(unwrap(model)) if silent else nullcontext():
            outputs = model(**asked)
        return torch.zeros((), device=self.args.device), outputs

    def _head_reads_what_is_learned(self, labels: Tensor) -> AbstractContextManager[None]:
        if self.compute_loss_func is None:
            return nullcontext()
        return learned_alone(unwrap(self._parts[0]).get_output_embeddings(), labels)

    def _accumulated(self, num_items_in_batch: Any) -> int:
        """Return by how much to divide a loss of our own for accumulation: 1 where Trainer will divide the sum."""
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return self.current_gradient_accumulation_steps if counted or self.compute_loss_func is not None else 1

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; one that is no number would spoil every weight (fp16's scaler skips it)."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and self.accelerator.scaler is None:
            self._check_finite(torch.as_tensor(norm), "gradient")
        return norm

    def _check_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value).all():
            taken = "DeepSpeed may have taken it, but" if self.is_deepspeed_enabled else "No weight has taken it, and"
            raise VPPError(
                f"the {what} is {float(value)} at step {self.state.global_step + 1}, in the batch of "
                f"{', '.join(self._about.ids)}. {taken} the last checkpoint is whole: look at them "
                "(`vpp data preview`), lower the learning rate, and go on with --resume auto."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every group's learning rate, and the speed since the last time."""
        if "loss" in logs:
            logs |= {f"lr/{group['name']}": rate for group, rate in zip(self.groups, self._rates, strict=False)}
            now = time.perf_counter()
            logs["samples_per_second"] = round(self._samples / (now - self._clock), 3)
            self._clock, self._samples = now, 0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Ask the evaluation's rows; without one, as Trainer does."""
        if self.evaluation is None:
            return dict(super().evaluate(*args, **kwargs))
        model: Any = self.model
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        resharded = plugin is not None and bool(plugin.reshard_after_forward)
        with self.accelerator.autocast(), self.averaged(), whole_weights(model, reshard_after_forward=resharded):
            metrics = self.evaluation(self.model, self.processing_class, self.state.global_step)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def averaged(self) -> AbstractContextManager[None]:
        """Have the model hold the average of its weights, where one is kept."""
        return nullcontext() if self.average is None else self.average.swapped()

    def _preflight(self) -> None:
        """Check the gradients of the first step in which some process had an image; all processes must agree."""
        if self.is_deepspeed_enabled:  # its gradients are not in parameters' .grad
            self.gradients = []
            return
        every = self.create_optimizer().param_groups[: len(self.groups)]  # FSDP2 puts its shards in place of ours
        groups = [group for group in every if any(parameter.requires_grad for parameter in group["params"])]
        squares = squared_norms(groups)
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        told = torch.cat([squares, squares.new_tensor([self._images])]).float().to(self.args.device)
        shared = self.accelerator.reduce(told, "sum").double().cpu()
        if shared[-1] > 0:
            squares = shared[:-1] / scale**2
            check_gradients(groups, squares)
            self.gradients = squares.sqrt().tolist()
            if self.is_fsdp_enabled:
                give_every_parameter_a_gradient(groups)

    def _count(self, about: About) -> None:
        seen = len(about.samples) * self.args.world_size
        self._samples += seen
        self.cost.samples += seen
        self.skipped |= dict.fromkeys(about.skipped)
        if len(self.skipped) > self.max_skipped:
            shown = "; ".join(list(self.skipped)[:5])
            raise VPPError(
                f"{len(self.skipped)} samples were skipped, and max_skipped is {self.max_skipped}. The first: {shown}. "
                "Mend the data, or raise max_skipped and go on with --resume auto."
            )

    def _get_output_dir(self, trial: Any) -> str:
        """Return where Trainer writes: beside the run's folder while a checkpoint is not whole."""
        return str(self._saving or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, but give the folder its name only when all of it is there."""
        step, run = self.state.global_step, Path(str(self.args.output_dir))
        target = run / f"checkpoint-{step}"
        with whole_folder(target, renames=self.args.should_save) as written:
            self.accelerator.wait_for_everyone()
            self._saving = written.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = None
            if self.state.best_global_step == step:
                self.state.best_model_checkpoint = str(target)
            if self.args.should_save:
                self.state.save_to_json(str(written / "trainer_state.json"))
                self.cost.write(written, step, self.args.device.type)
            self.accelerator.wait_for_everyone()  # the others have written theirs too
            if self.args.should_save:
                write_manifest(written)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            limit = self.args.save_total_limit
            rotate_checkpoints(str(run), limit, self.state.best_model_checkpoint, use_mtime=False)

    def write_weights(self, folder: Path) -> None:
        """Write the weights that the run would end with now, or their average, and what they have cost."""
        with self.averaged(), whole_folder(folder, renames=self.args.should_save) as written:
            self.save_model(str(written))
            if self.args.should_save:
                self.cost.write(written, self.state.global_step, self.args.device.type)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_manifest(written)
                self._write_card(written)  # not in the manifest: people edit it

    def _write_card(self, folder: Path) -> None:
        """Say what was trained, on what and how well, for who gets the folder."""
        learned = [
            f"- {group['name']}: {sum(one.numel() for one in group['params']):,} numbers, learning rate {group['lr']:g}"
            for group in self.groups
        ]
        about = f"{self.state.global_step} steps over {self.cost.samples} samples."
        asked = sorted(Path(str(self.args.output_dir), "eval").glob("step-*/results.json"), key=_step)[-1:]
        host = unwrap(self._parts[0]).config
        write_card(
            folder,
            host.name_or_path,
            family=host.model_type,
            sections={"What was trained": "\n".join([about, "", *learned]), **self.card_sections},
            evaluations=[path.parent for path in asked],
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the host's part, if it has learned, and the prompts beside it: they are nowhere else."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained, processor = self._parts
        host = unwrap(trained)
        if not self.keeps_host:
            # a checkpoint keeps the parameters' own names: load_state_dict would not find what has the published ones;
            # of a sharded model transformers cannot tell these
            own_names = (self._in_checkpoint or state_dict is not None) and not self._has_lora
            names = {"save_original_format": False} if own_names else {}
            with _without_bars():
                trained.save_pretrained(folder, state_dict=state_dict, **names)
            (folder / CARD).unlink(missing_ok=True)  # PEFT's template, without a word filled in
            forget_local_host(folder)
        processor.save_pretrained(folder)
        if active_vpp(host).is_empty:
            pass  # a control: the host is all there is
        elif state_dict is None:
            with onloaded(active_vpp(host)):
                write_vpp(active_vpp(host), folder)
        else:  # gathered from the devices that share the model
            write_vpp(active_vpp(host), folder, gathered_prompts(state_dict))
        added = vocabulary.added_rows(host) if self._in_checkpoint and state_dict is None else {}
        if added:
            save_file(added, folder / vocabulary.ROWS_FILE)
        for kept in self._kept if self._in_checkpoint else ():
            kept.save(folder)
        if not active_vpp(host).is_empty:
            check_weights(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the host's part and the prompts; prompts that are missing are refused."""
        check_checkpoint(Path(resume_from_checkpoint), prompts=not active_vpp(unwrap(self._parts[0])).is_empty)
        self._load_weights(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load both of the best checkpoint; Trainer itself would leave the last prompts beside the best host."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_weights(str(self.state.best_model_checkpoint), None)

    def _load_weights(self, resume_from_checkpoint: str, model: nn.Module | None) -> None:
        folder, host = Path(resume_from_checkpoint), unwrap(self._parts[0])
        if self._has_lora or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif not self.keeps_host:
            with vocabulary.narrowed(host, host_state(host).host_rows):
                read_host(host, folder)
        if self.is_fsdp_enabled:  # its shards hold the prompts too
            return
        for vpp in (vpp for vpp in every_vpp(host) if not vpp.is_empty):
            read_into(vpp, folder, check=False)  # the checkpoint's manifest was checked
        if (folder / vocabulary.ROWS_FILE).is_file():
            vocabulary.put_rows(host, load_file(folder / vocabulary.ROWS_FILE))
        for kept in self._kept:
            kept.load(folder)

    @property
    def _in_checkpoint(self) -> bool:
        return self._saving is not None

    @property
    def _kept(self) -> list[AuxiliaryLoss | WeightAverage]:
        """Return what stands in checkpoints alone."""
        return [*self.losses, *([] if self.average is None else [self.average])]

    @property
    def _parts(self) -> tuple[Any, Any]:
        """Return model and processor, of which Trainer says that they may be None."""
        return self.model, self.processing_class

    @property
    def _has_lora(self) -> bool:
        return isinstance(self.model, PeftModel)


@contextmanager
def without_decoder(host: Any) -> Iterator[None]:
    """Have a host's language model return the first place of what it is given, at no cost."""
    decoder = host.get_decoder()

    def first_place(*args: Any, inputs_embeds: Tensor, **kwargs: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds[:, :1])  # with the fields of every kind

    decoder.forward = first_place
    try:
        yield
    finally:
        del decoder.forward


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from a bar for each file that it writes, among the lines of the run."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _step(results: Path) -> int:
    return int(results.parent.name.removeprefix("step-"))


def _empty_gradients(loss: AuxiliaryLoss, step: int) -> None:
    loss.zero_grad()


def _snapshot(trainer: VPPTrainer, steps: Collection[int], step: int) -> None:
    """Before the checkpoint of the same step is written: a run that goes on from there has the snapshot."""
    if step in steps:
        trainer.write_weights(Path(str(trainer.args.output_dir)) / f"step-{step}")
