"""
Recipes: YAML files that name a stage and its arguments, alone or on top of another one.

```yaml
extends: pretrain_7b.yaml       # all of it, and of what it extends, with the fields below on top
tune_vision_from_block: 6
output_dir: runs/table8/block_6
```
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from trl import TrlParser

from .configs import AnyModelConfig, CaptionerConfig, FinetuneConfig, PretrainConfig, StageConfig


CONFIGS: dict[str, type[StageConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "captioner": CaptionerConfig,
    "any_model": AnyModelConfig,
}


# What a value of a recipe may be that is no text, by the name of the field's type.
KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "string_to_bool": (bool,)}
QUOTE = " (put it in quotes: YAML reads a bare no, off, yes or on as false or true)"


@dataclass
class RunArguments:
    """What a recipe says beside the trainer's own arguments."""

    stage: Literal["pretrain", "finetune", "captioner", "any_model"] = field(
        metadata={"help": "Which trainer runs; any_model takes models of other families, as they are."}
    )
    model: str = field(metadata={"help": "Folder or Hub id of the model, or of the LLM beside `vision_tower`."})
    dataset: str = field(metadata={"help": "Folder or Hub id of a repository with conversation or caption rows."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tower that is joined with the LLM to a new model."}
    )
    projector_from: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a model, or a safetensors file, to take a projector from."},
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Of weights and optimizer; float32 computes in bfloat16 with `bf16`."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})


def load_recipe(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read a recipe with everything that it extends.

    Args:
        path (`str` or `os.PathLike`): YAML file; `extends` in it names another one, relative to its folder.

    Returns:
        `dict`: Fields of the whole chain, those of the file itself on top, without `extends`.

    Raises:
        `FileNotFoundError`: A file of the chain is missing.
        `ValueError`: A file is no mapping of fields, or extends itself.
    """
    chain: list[dict[str, Any]] = []
    seen: list[Path] = []
    following: Path | None = Path(path)
    while following is not None:
        place = following.resolve()
        if place in seen:
            raise ValueError(f"{seen[-1]} extends {following}, which extends it again. Cut the circle.")
        if not place.is_file():
            behind = f", which {seen[-1]} extends" if seen else ""
            raise FileNotFoundError(f"There is no recipe {following}{behind}.")
        seen.append(place)
        try:
            fields = yaml.safe_load(place.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{following} is no YAML file: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{following} must be a mapping of fields, `name: value` in each line.")
        parent = fields.pop("extends", None)
        if parent is not None and not isinstance(parent, str):
            raise ValueError(f"`extends` of {following} must name one file, got {parent!r}.")
        chain.append(fields)
        following = None if parent is None else place.parent / parent
    return {name: value for fields in reversed(chain) for name, value in fields.items()}


def parse_arguments(argv: Sequence[str]) -> tuple[RunArguments, StageConfig]:
    """
    Read a recipe and the flags that override it.

    Args:
        argv (`Sequence[str]`): Command line without the program's name.

    Returns:
        `tuple[RunArguments, StageConfig]`: The run, and the arguments of its stage's trainer.

    Raises:
        `FileNotFoundError`: The recipe, or one that it extends, is missing.
        `ValueError`: The stage or a field is unknown, or a value is refused.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    parser.add_argument("--config", type=Path)
    given, flags = parser.parse_known_args(argv)
    recipe = load_recipe(given.config) if given.config is not None else {}
    stage = given.stage or recipe.get("stage")
    if stage is None and {"-h", "--help"} & set(flags):
        stage = "finetune"
    if stage not in CONFIGS:
        raise ValueError(
            f"`stage` must be one of {sorted(CONFIGS)}, got {stage!r}. Set it in the recipe or by --stage."
        )
    full = TrlParser((RunArguments, CONFIGS[stage]))
    if problems := [problem for action in full._actions if (problem := _refusal(action, recipe))]:
        raise ValueError(f"{given.config} cannot be used: {'; '.join(problems)}.")
    if unknown := full.set_defaults_with_config(**{**recipe, "stage": stage}):
        raise ValueError(f"{given.config} has unknown fields: {', '.join(unknown[::2])}.")
    run, config = full.parse_args_into_dataclasses(args=flags)
    _check_together(run, config)
    return run, config


def _refusal(action: argparse.Action, recipe: dict[str, Any]) -> str | None:
    # Values of a recipe become defaults, which argparse takes as they are unless they are texts.
    value = recipe.get(action.dest)
    if action.dest not in recipe or not action.option_strings or isinstance(value, list | dict):
        return None
    if value is None:
        return f"`{action.dest}` must not be null" if action.required else None
    wanted = KINDS.get(getattr(action.type, "__name__", ""))
    if action.choices is not None and value not in action.choices:
        listed = ", ".join(map(str, action.choices))
        return f"`{action.dest}` must be one of {listed}, got {value!r}{QUOTE if isinstance(value, bool) else ''}"
    if wanted and not isinstance(value, str) and type(value) not in wanted:
        return f"`{action.dest}` must be of type {wanted[0].__name__}, got {value!r}"
    return None


def _check_together(run: RunArguments, config: StageConfig) -> None:
    if run.stage == "any_model" and (run.vision_tower or run.projector_from):
        raise ValueError("`vision_tower` and `projector_from` are for ShareGPT4V's own architecture, not `any_model`.")
    if config.lora_rank and run.vision_tower:
        raise ValueError(
            "`lora_rank` needs a model that is saved: adapters name what they belong to. Join LLM and tower by "
            "`modeling_sharegpt4v.compose`, save the result, and name it by `model`."
        )
    if config.lora_rank and run.projector_from and not getattr(config, "tune_projector", True):
        raise ValueError("`projector_from` would be lost: adapters hold the projector only with `tune_projector`.")
