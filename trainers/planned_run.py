"""What a plan needs of a recipe: the model that it trains, its samples, and how they are divided."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers.training_args import OptimizerNames

from .configs import accumulation_for
from .geometry import Geometry, Tuning, build_on_meta, measure
from .recipes import CONFIGS, RunArguments, load_recipe
from .roofline import WORKLOADS, Workload


# Samples of the published data sets, by the names of their configurations.
SAMPLES = {
    "ShareGPT4V": 102_025,
    "ShareGPT4V-PT": 1_246_901,
    "ShareGPT4V-PT-LCS": 558_128,
    "ShareGPT4V-Mix665K": 665_058,
    "LLaVA-Pretrain": 558_128,
    "LLaVA-Mix665K": 665_298,
}
SUBSET = re.compile(r"ShareGPT4V-PT-(\d+)K")  # thousands of samples


@dataclass(frozen=True)
class PlannedRun:
    """
    What a recipe says, with the defaults of its stage.

    Args:
        stage (`str`): Which trainer runs.
        model (`str`): LLM or whole model.
        vision_tower (`str`, *optional*): Tower.
        size (`Geometry`): The model and what trains.
        load (`Workload`): The mean sample.
        batch (`int`): Samples of an optimizer step.
        per_device (`int`): Samples of a micro-batch of one GPU at most.
        micro_batches (`int`): Gradient accumulation steps.
        samples (`int`): Samples of the whole run, all epochs.
        recompute (`bool`): Whether activations are checkpointed.
        mixed (`bool`): Whether float32 weights compute in bfloat16.
        dtype (`str`): Of weights and gradients.
        optim (`str`): Name of transformers' optimizer.
        problem (`str`, *optional*): Why the recipe's batch cannot be kept; then each GPU has one sample.
    """

    stage: str
    model: str
    vision_tower: str | None
    size: Geometry
    load: Workload
    batch: int
    per_device: int
    micro_batches: int
    samples: int
    recompute: bool
    mixed: bool
    dtype: str
    optim: str
    problem: str | None

    @property
    def mean_tokens(self) -> float:
        """Tokens of a sample, image features included (`float`)."""
        share = self.load.image_share
        return share * (self.size.patches + self.load.text_tokens) + (1 - share) * self.load.text_only_tokens


def from_origin(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """
    Replace a model that is yet to be trained by what its own recipe starts from, which has the same size.

    Args:
        recipe (`dict`): Fields of a recipe.
        folder (`Path`): Where it stands; recipes of this folder and of the one above are looked through.

    Returns:
        `dict`: Its fields, with another `model` and `vision_tower` if a recipe writes the one it names.
    """
    known = {str(found.get("output_dir")): found for found in _recipes(folder)}
    if not recipe.get("model"):
        return recipe
    model, tower = str(recipe["model"]), recipe.get("vision_tower")
    seen: set[str] = set()
    while tower is None and model in known and model not in seen and not Path(model).is_dir():
        seen.add(model)
        model, tower = str(known[model].get("model")), known[model].get("vision_tower")
    return {**recipe, "model": model, "vision_tower": tower}


def read_run(
    recipe: dict[str, Any], count: int, samples: int | None, text_tokens: float | None, model: str | None
) -> PlannedRun:
    """
    Read what a plan needs of a recipe.

    Args:
        recipe (`dict`): Its fields.
        count (`int`): GPUs.
        samples (`int`, *optional*): Rows of its dataset.
        text_tokens (`float`, *optional*): Mean text tokens of a sample with an image.
        model (`str`, *optional*): A model in place of the recipe's.

    Returns:
        `PlannedRun`: With the sizes of the model.

    Raises:
        `ValueError`: The stage is not one of ours, the model cannot be read, or the number of samples is not known.
    """
    stage = recipe.get("stage")
    if stage not in WORKLOADS:
        raise ValueError(f"A plan knows the stages {', '.join(WORKLOADS)}, got `stage` {stage!r}.")
    if not (model or recipe.get("model")):
        raise ValueError("The recipe names no `model`.")
    kinds = (*fields(CONFIGS[stage]), *fields(RunArguments))
    known: dict[str, Any] = {field.name: field.default for field in kinds} | recipe
    name, tower = (model, None) if model else (known["model"], known["vision_tower"])
    lora = known["lora_rank"] or None
    begin = known["tune_vision_from_block"]
    tuning = Tuning(begin, known["tune_projector"], known["tune_language_model"], lora)
    per_device, batch, micro_batches, problem = _divide(known, count)
    load = WORKLOADS[stage]
    if text_tokens is not None:
        load = replace(load, text_tokens=text_tokens, labels=load.labels * text_tokens / load.text_tokens)
    recompute = known["activation_checkpointing"]
    return PlannedRun(
        stage=stage,
        model=name,
        vision_tower=tower,
        size=measure(build_on_meta(name, tower), tuning),
        load=load,
        batch=batch,
        per_device=per_device,
        micro_batches=micro_batches,
        samples=_samples(known, samples, batch),
        recompute=bool(known["gradient_checkpointing"] if recompute is None else recompute),
        mixed=known["dtype"] == "float32" and known["bf16"] is not False,
        dtype=known["dtype"],
        optim=OptimizerNames(known["optim"]).value,
        problem=problem,
    )


def _divide(known: dict[str, Any], count: int) -> tuple[int, int, int, str | None]:
    """Samples a GPU at most, samples a step, micro-batches, and why the recipe's batch cannot be kept."""
    per_device, batch = known["per_device_train_batch_size"], known["global_batch_size"]
    if batch is None:
        micro_batches = known["gradient_accumulation_steps"]
        return per_device, per_device * micro_batches * count, micro_batches, None
    try:
        return per_device, batch, accumulation_for(batch, per_device, count), None
    except ValueError as error:
        return 1, count, 1, str(error)


def _recipes(folder: Path) -> Iterator[dict[str, Any]]:
    for path in (*sorted(folder.parent.glob("*.yaml")), *sorted(folder.glob("*.yaml"))):
        try:
            yield load_recipe(path)
        except (ValueError, OSError):  # another kind of file
            continue


def _samples(known: dict[str, Any], samples: int | None, batch: int) -> int:
    if known["max_steps"] > 0:
        return known["max_steps"] * batch
    subset = SUBSET.fullmatch(known["dataset_config"] or "")
    if samples is None and subset:
        samples = 1000 * int(subset.group(1))
    if samples is None and known["dataset_config"] not in SAMPLES:
        raise ValueError(
            f"How many samples {known['dataset_config'] or known['dataset']} has is not known; the published "
            f"configurations are {', '.join(SAMPLES)}. Pass `--samples`."
        )
    rows = SAMPLES[known["dataset_config"]] if samples is None else samples
    return round(rows * known["num_train_epochs"])
