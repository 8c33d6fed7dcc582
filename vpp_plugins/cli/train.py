"""`vpp train`: train as a recipe says."""

from pathlib import Path
from typing import Annotated

import typer

Recipes = Annotated[
    list[Path], typer.Argument(help="TOML; each file changes what those before it say.", show_default=False)
]

Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value; may be given again.", show_default=False)]


def train(
    recipes: Recipes,
    changes: Changes = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Two steps on a tiny host of the family, and what the run will take.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(help="auto: go on from the last checkpoint, if there is one. Or a checkpoint's folder."),
    ] = None,
) -> None:
    """Train prompts as a recipe says.

    With or without their host. The recipes of examples/recipes are found by their names from any folder.

    A recipe is flat TOML. Ours: model, processor, chat_template, family, dtype, attn_implementation, load_in_4bit;
    vpp, global_vpp.alpha (and all its settings; global_vpp = false leaves it out), local_vpp.num_queries (likewise);
    data, data_format, data_family, data_boxes, data_pixels, images, split, mix, keep, box_format, max_samples,
    max_length, max_turns, max_skipped; learning_rates (reference or paper), lr.vpp.global (and llm, lora, projector,
    vision, vpp.local, vpp.projector), schedule.llm (likewise), freeze, unfreeze; lora_scope, lora_r, lora_alpha,
    lora_dropout, lora_first_layer;
    turns_apart, hide_boxes, cache_encodings, answers, losses, average_weights, snapshots; eval_data,
    eval_format, eval_images, eval_protocol, eval_limit. All others are transformers' TrainingArguments by their own
    names: output_dir, max_steps, save_steps, learning_rate, bf16, ...; optim = "muon" is one more optimizer.

    --set KEY=none clears what a recipe says, as local_vpp.weights=none. vpp = "none" is the control without prompts.

    A killed run goes on with --resume auto, and ends with the same weights.

    Several GPUs: torchrun --nproc_per_node 8 -m vpp_plugins.cli train RECIPE.toml

    Example: vpp train examples/recipes/llava-1.5-lora.toml --set max_steps=100 --set output_dir=out/try

    On a CPU: vpp train pocket.toml

    --dry-run tries the recipe on your own data in little, on a CPU and without a network.
    """
    from vpp_plugins.train import Recipe

    resumed = [] if resume is None else [f"resume_from_checkpoint={resume}"]
    recipe = Recipe.load(*recipes, changes=[*(changes or []), *(() if dry else resumed)])
    if dry:
        from vpp_plugins.train import dry_run  # as `train`, takes seconds to import: a faulty recipe is refused before

        for sentence in dry_run(recipe).sentences:
            typer.echo(sentence)
        return
    from vpp_plugins.attach import Stopwatch
    from vpp_plugins.train import train as run

    watch = Stopwatch()
    trained = run(recipe, watch=watch)
    steps = "1 step" if trained.steps == 1 else f"{trained.steps} steps"
    typer.echo(f"{steps}; the weights: {trained.folder}; the report: {trained.folder.parent}/report.html")
    typer.echo(watch.sentence())
