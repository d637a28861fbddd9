"""What the files of a run, a built dataset or a metric say about it."""

import ast
import doctest
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .front_matter import split_card
from .licences import SOURCES
from .repo_names import on_the_hub


# Facts of `run.json` that go on a card under the same name.
RUN_FACTS = (
    *("stage", "instruction", "samples", "samples_dropped", "turns_dropped", "step_samples", "world_size", "bf16"),
    *("seconds", "peak_memory_gb", "settings", "versions", "hardware", "energy_kwh"),
)
# Captions of the paper's sets, by configuration: what they are, and the records of the released file.
RELEASED = {
    "ShareGPT4V": ("captions that GPT4-Vision wrote of images from many sources", 102_025),
    "ShareGPT4V-PT": ("captions that Share-Captioner wrote, for pretraining", 1_246_901),
    "ShareGPT4V-Mix665K": (
        "LLaVA-1.5's instruction mix with 23K of its detailed descriptions replaced by captions of GPT4-Vision",
        665_058,
    ),
}


def model_facts(source: Path) -> dict[str, Any]:
    """
    Read what training wrote beside the weights.

    Args:
        source (`Path`): Output folder of `trainers.train`.

    Returns:
        `dict`: Facts by name; what no file says is absent.
    """
    run = _json(source / "run.json") or {}
    facts: dict[str, Any] = {name: run[name] for name in RUN_FACTS if run.get(name) is not None}
    facts |= {name: on_the_hub(run.get(name)) for name in ("base_model", "datasets")}
    facts |= _state_facts(_json(source / "trainer_state.json") or {})
    table = _json(source / "trainable.json")
    if table:
        facts["trainable"] = table
        facts["parameters"] = sum(row["parameters"] for row in table)
        facts["trained_parameters"] = sum(row["parameters"] for row in table if row["trains"])
    config = _json(source / "config.json") or {}
    facts["remote_code"] = "auto_map" in config
    if "architectures" in config:
        facts["architecture"] = config["architectures"][0]
    facts["has_results"] = (source / "results.json").is_file() or any((source / ".eval_results").glob("*.yaml"))
    return facts


def adapter_facts(source: Path) -> dict[str, Any]:
    """
    Read what training wrote beside adapters.

    Args:
        source (`Path`): Output folder of a run with `lora_rank`.

    Returns:
        `dict`: Facts by name; a base model that is a folder is none that a card can name.
    """
    config = _json(source / "adapter_config.json") or {}
    facts = model_facts(source)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    facts["base_model"] = on_the_hub(base)
    if revision:
        facts["base_model_revision"] = revision
    if config:
        modules = config.get("target_modules") or []
        facts["adapter"] = {
            "type": config["peft_type"],
            "rank": config.get("r"),
            "alpha": config.get("lora_alpha"),
            "modules": modules if isinstance(modules, str) else ", ".join(sorted(modules)),
            "whole": ", ".join(config.get("modules_to_save") or []),
        }
    return facts


def dataset_facts(source: Path) -> dict[str, Any]:
    """
    Read what a build wrote beside its shards, and count sources and captioners in the shards themselves.

    Args:
        source (`Path`): Repository of `sharegpt4v data build`.

    Returns:
        `dict`: Facts by name.
    """
    facts: dict[str, Any] = {}
    readme = source / "README.md"
    front = split_card(readme.read_text(encoding="utf-8"))[0] if readme.is_file() else {}
    if front.get("configs") and front.get("dataset_info"):
        facts["front_matter"] = front
    if isinstance(front.get("license"), str) and front["license"] != "other":
        facts["license"] = front["license"]
    if front.get("language"):
        facts["language"] = front["language"]
    configs = [_config_facts(file) for file in sorted(source.glob("*/build.json"))]
    if configs:
        facts["configs"] = configs
        facts["rows"] = sum(config["rows"] for config in configs)
        facts["bytes"] = sum(config["bytes"] for config in configs)
        groups = [group for config in configs for group in config["groups"]]
        facts["sources"] = sorted({group["source"] for group in groups} - {""})
        facts["licences"] = _row_licences(groups)
        if makers := {group["captioner"] for group in groups if group["captioner"]}:
            facts["made_by"] = sorted(makers)
    return facts


def metric_facts(source: Path, repo_id: str) -> dict[str, Any]:
    """
    Read a metric's script, README and requirements.

    Args:
        source (`Path`): Folder of `evaluation.metrics`.
        repo_id (`str`): Name on the Hub; `evaluate` takes the script of the same name.

    Returns:
        `dict`: Facts by name.
    """
    facts: dict[str, Any] = {}
    readme, script = source / "README.md", source / f"{repo_id.split('/')[-1]}.py"
    front = split_card(readme.read_text(encoding="utf-8"))[0] if readme.is_file() else {}
    if front:
        facts["front_matter"] = front
    facts |= {name: front[name] for name in ("title", "license") if front.get(name)}
    if not script.is_file():
        return facts
    texts = _texts_of(script)
    facts |= {name: texts[f"_{name.upper()}"] for name in ("description", "citation") if f"_{name.upper()}" in texts}
    inputs = texts.get("_INPUTS", "")
    facts["inputs"] = inputs.partition("Examples:")[0].strip()
    facts["script"] = script.name
    facts["example"] = list(_example(inputs, repo_id))
    needed = source / "requirements.txt"
    facts["requirements"] = needed.read_text(encoding="utf-8").split() if needed.is_file() else []
    return facts


def person_facts(source: Path) -> dict[str, Any]:
    """
    Read `card.yaml`: what only a person knows.

    Args:
        source (`Path`): Folder of the weights, shards or metric.

    Returns:
        `dict`: Empty without such a file.

    Raises:
        `ValueError`: It is no mapping.
    """
    file = source / "card.yaml"
    if not file.is_file():
        return {}
    try:
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML file: {error}") from error
    if facts is not None and not isinstance(facts, dict):
        raise ValueError(f"{file} must be a mapping of facts, `name: value` in each line.")
    return facts or {}


def _json(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file: {error}") from error


def _state_facts(state: dict[str, Any]) -> dict[str, Any]:
    history = state.get("log_history") or []
    losses = [entry["loss"] for entry in history if "loss" in entry]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    facts: dict[str, Any] = {}
    if state.get("global_step"):
        facts |= {"steps": state["global_step"], "epochs": state["epoch"]}
    if losses:
        facts |= {"first_loss": losses[0], "last_loss": losses[-1]}
    if rates:
        facts["learning_rate"] = max(rates)
    return facts


def _config_facts(file: Path) -> dict[str, Any]:
    build = _json(file)
    shards = [shard for split in build["splits"].values() for shard in split]
    name = build["config"]
    told, released = RELEASED.get(name, (None, None))
    return {
        "name": name,
        "kind": build["rows"],
        "told": told,
        "released": released,
        "splits": {split: sum(shard["rows"] for shard in found) for split, found in build["splits"].items()},
        "rows": sum(shard["rows"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "images": build["images"],
        "files": build.get("files", {}),
        "coverage": build.get("coverage"),
        "left_out": build.get("rows_left_out", 0),
        "groups": _groups(file.parent, [shard["file"] for shard in shards], build["rows"]),
    }


def _groups(folder: Path, files: list[str], kind: str) -> list[dict[str, Any]]:
    """Rows by source, captioner and licence, counted in the shards."""
    import pyarrow as pa  # a tenth of a second, needed for datasets alone
    import pyarrow.parquet as pq

    columns = ["source", "captioner", "license"] if kind == "captions" else ["source"]
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ValueError(f"{folder} lacks {missing[0]}, which its build.json names. Build or download it again.")
    table = pa.concat_tables([pq.read_table(folder / file, columns=columns) for file in files])
    counted = table.group_by(columns).aggregate([([], "count_all")]).to_pylist()
    empty = {"captioner": None, "license": None}
    groups = [{**empty, **row, "source": row["source"] or "", "rows": row["count_all"]} for row in counted]
    return sorted(groups, key=lambda row: (row["source"], row["captioner"] or "", row["license"] or ""))


def _row_licences(groups: list[dict[str, Any]]) -> dict[str, str]:
    """Terms of sources that no table knows, from what their rows state."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if group["source"] and group["license"] not in (None, "", "unknown"):
            found.setdefault(group["source"], []).append(group["license"])
    return {
        source: f"Its rows state: {', '.join(dict.fromkeys(licences))}."
        for source, licences in found.items()
        if source not in SOURCES
    }


def _texts_of(script: Path) -> dict[str, str]:
    """Strings that a module assigns to names, read without running it."""
    texts = {}
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[node.targets[0].id] = value.value.strip()
    return texts


def _example(inputs: str, repo_id: str) -> Iterator[str]:
    """Lines of the documented example but for `evaluate.load`, which the card pins."""
    for example in doctest.DocTestParser().get_examples(inputs):
        if "evaluate" not in example.source:
            yield from example.source.rstrip("\n").split("\n")
            yield from (f"# {line}" for line in example.want.rstrip("\n").split("\n") if line)
