"""`sharegpt4v train`: what a recipe needs before it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import AsJson, show


GpuName = Literal["A100-80GB", "A100-40GB", "H100", "H200", "L40S", "RTX-4090"]
Recipe = Annotated[Path, typer.Argument(help="YAML file of a stage.")]
Gpu = Annotated[GpuName, typer.Option(help="GPU, by its data sheet.")]
Sharding = Annotated[
    Literal["fsdp2", "hsdp", "zero3", "ddp"], typer.Option(help="How GPUs share weights and optimizer.")
]
app = typer.Typer(help="Plan training.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Plan training."""


@app.command(epilog="Example: sharegpt4v train plan recipes/demo_pretrain.yaml --gpu H100 --count 8 --samples 100000")
def plan(
    recipe: Recipe,
    gpu: Gpu = "H100",
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    sharding: Sharding = "fsdp2",
    samples: Annotated[int | None, typer.Option(min=1, help="Rows of the dataset; known for published ones.")] = None,
    text_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean text tokens of a sample with an image; estimated by stage.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Plan with this one, Lin-Chen/ShareGPT4V-7B for instance, in place of the recipe's."),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(min=1, help="TFLOP/s measured in a large bf16 product; one H100 reached 798.")
    ] = None,
    mfu: Annotated[
        float, typer.Option(min=1, max=100, help="MFU while computing, %, beside network and waiting.")
    ] = 45,
    as_json: AsJson = False,
) -> None:
    """FLOPs, time, memory and traffic of a recipe at best, beside the paper's runs."""
    from trainers.plan import Machine
    from trainers.plan import plan as plan_recipe
    from trainers.recipes import load_recipe

    from .plan_text import describe_plan, read_measured

    machine = Machine(gpu, count, peak and peak * 1e12, mfu / 100, sharding)
    figures = plan_recipe(load_recipe(recipe), machine, samples, text_tokens, model, recipe.resolve().parent)
    measured = read_measured()
    result = {"recipe": str(recipe), **figures, "measured": measured}
    show(result, describe_plan(str(recipe), figures, measured), as_json)
