"""
Facts of a card: collected from files, from `card.yaml` and from the command line, and complete or refused.

`card.yaml` lies beside the weights and holds what no file can know:

```yaml
base_model: lmsys/vicuna-7b-v1.5
datasets: [owner/sharegpt4v]
license: llama2
language: en
sources: [vicuna, clip, sharegpt4v-captions, coco]
limits: ["Describes what is not there, most often in crowded pictures."]
hardware: 16 x NVIDIA A100 80 GB
```
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fact_files import adapter_facts, dataset_facts, metric_facts, model_facts, person_facts
from .licences import BINDING, LICENCES, NOT_REHOSTED, RELATIONS, SOURCES
from .repo_names import is_repo_id


KINDS = ("model", "captioner", "adapter", "dataset", "metric")
TRAINING = "written by `trainers.train`"
COMMON = {
    "revision": "tag or commit that the card's code loads, such as v1.0",
    "license": "identifier of the Hub, such as llama2; `other` with license_name and license_link",
}
LEGAL = {
    "language": "language of the texts, such as en",
    "sources": f"whose weights, images and texts are in it, of {', '.join(SOURCES)}; others get terms by `licences`",
    "limits": "list of sentences: what it cannot do and must not be used for",
}
RUN = {
    "base_model": "name on the Hub of what the training began with, such as lmsys/vicuna-7b-v1.5",
    "datasets": "names on the Hub of what it was trained on",
    "stage": f"run.json, {TRAINING}",
    "samples": f"run.json, {TRAINING}",
    "step_samples": f"run.json, {TRAINING}",
    "world_size": f"run.json, {TRAINING}",
    "bf16": f"run.json, {TRAINING}",
    "seconds": f"run.json, {TRAINING}",
    "steps": f"trainer_state.json, {TRAINING}",
    "epochs": f"trainer_state.json, {TRAINING}",
    "learning_rate": f"trainer_state.json, {TRAINING}",
    "first_loss": f"trainer_state.json, {TRAINING}",
    "last_loss": f"trainer_state.json, {TRAINING}",
    "trainable": f"trainable.json, {TRAINING}",
    "hardware": "what it was trained on, such as 16 x NVIDIA A100 80 GB",
    "versions": "libraries of the training and their versions, such as {torch: 2.13.0, transformers: 5.23.0}",
}
ARCHITECTURE = {"architecture": "config.json, written with the weights"}
NEEDED = {
    "model": {**COMMON, **LEGAL, **RUN, **ARCHITECTURE},
    "captioner": {**COMMON, **LEGAL, **RUN, **ARCHITECTURE, "instruction": f"run.json, {TRAINING}"},
    "adapter": {
        **{**COMMON, **LEGAL, **RUN, "adapter": "adapter_config.json, written with the adapters"},
        "base_model_revision": "tag or commit of the base model that the adapters were trained on",
    },
    "dataset": {
        **{**COMMON, **LEGAL, "made_by": "who wrote captions or answers, such as GPT4-Vision"},
        "front_matter": "README.md, written by `sharegpt4v data build`",
        "configs": "build.json of each configuration, written by `sharegpt4v data build`",
    },
    "metric": {
        **{**COMMON, "title": "name of the metric"},
        "front_matter": "README.md, written by `python -m evaluation.metrics`",
        "script": "script with the name of the repository, written by `python -m evaluation.metrics`",
        **dict.fromkeys(("description", "inputs", "citation", "example"), "the metric's script"),
    },
}
# What a card has where it is known, and what stands in its place otherwise.
OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("summary", "license_name", "license_link", "energy_kwh", "evaluation", "instruction"), None),
    **dict.fromkeys(("peak_memory_gb", "parameters", "trained_parameters"), None),
    **{"tags": [], "settings": {}, "samples_dropped": {}, "turns_dropped": {}, "licences": {}, "requirements": []},
    **{"base_model_relation": "finetune", "remote_code": False, "has_results": False, "rows": 0, "bytes": 0},
}
LISTS = ("base_model", "datasets", "language", "sources", "limits", "tags", "made_by")
NUMBERS = (
    *("samples", "step_samples", "world_size", "steps", "epochs", "learning_rate", "first_loss", "last_loss"),
    *("seconds", "energy_kwh", "peak_memory_gb"),
)
TEXTS = (
    *("revision", "base_model_revision", "license", "license_name", "license_link", "summary", "hardware"),
    *("instruction", "stage", "title", "base_model_relation"),
)
REVISION = re.compile(r"[\w][\w.\-/]{0,127}")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)?|multilingual|code")
FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{"model": model_facts, "captioner": model_facts, "adapter": adapter_facts, "dataset": dataset_facts}
}


class CardError(ValueError):
    """
    A card cannot be written.

    Args:
        repo_id (`str`): Name of the repository.
        source (`Path`): Where facts were looked for.
        missing (`dict[str, str]`): Facts that are missing, with what each is.
        problems (`list[str]`, *optional*): Facts that cannot be true.
    """

    def __init__(self, repo_id: str, source: Path, missing: dict[str, str], problems: list[str] | None = None):
        self.missing, self.problems = missing, problems or []
        lines = [f"The card of {repo_id} cannot be written."]
        if missing:
            lines.append(f"{len(missing)} facts are missing:")
            lines += [f"- {name}: {means}" for name, means in missing.items()]
            lines.append(f"Put them into {source / 'card.yaml'} as `name: value`, or give --fact name=value.")
        lines += [f"- {problem}" for problem in self.problems]
        super().__init__("\n".join(lines))


def collect(kind: str, source: Path, repo_id: str, given: dict[str, Any]) -> dict[str, Any]:
    """
    Collect the facts of a card; `given` comes before `card.yaml`, which comes before what files say.

    Args:
        kind (`str`): One of [`KINDS`].
        source (`Path`): Folder of the weights, the shards or the metric.
        repo_id (`str`): Name on the Hub, with its owner.
        given (`dict`): Facts from the command line or a publishing step.

    Returns:
        `dict`: All facts that the template of this kind may name.

    Raises:
        `CardError`: Facts are missing, unknown or cannot be true.
        `ValueError`: The kind is unknown, or a file cannot be read.
    """
    if kind not in KINDS:
        raise ValueError(f"A card is of a kind of {', '.join(KINDS)}, got {kind!r}.")
    found = metric_facts(source, repo_id) if kind == "metric" else FILES[kind](source)
    if kind == "adapter":
        found["base_model_relation"] = "adapter"
    told = {**person_facts(source), **given}
    known = {**NEEDED[kind], **OPTIONAL}
    unknown = [name for name in told if name not in known]
    problems = [f"`{name}` is no fact of a {kind}'s card; known are {', '.join(known)}" for name in unknown]
    facts = {**OPTIONAL, **found, **{name: value for name, value in told.items() if name in known}}
    problems += _tidy(facts)
    for name in ("sources", "licences"):  # what the rows say is not undone by what a person adds
        if kind == "dataset" and name in told and name in found and facts.get(name):
            facts[name] = _together(found[name], facts[name])
    problems += _check(facts, repo_id)
    missing = {name: means for name, means in NEEDED[kind].items() if facts.get(name) in (None, "", [], {})}
    missing |= _depending(facts)
    if missing or problems:
        raise CardError(repo_id, source, missing, problems)
    terms = {name: SOURCES[name].__dict__ for name in facts.get("sources", []) if name in SOURCES}
    own = {name: {"title": name, "terms": text, "link": None} for name, text in facts["licences"].items()}
    return {**facts, "kind": kind, "repo_id": repo_id, "terms": {**terms, **own}}


def _together(found: Any, told: Any) -> Any:
    return {**found, **told} if isinstance(found, dict) else list(dict.fromkeys([*found, *told]))


def _tidy(facts: dict[str, Any]) -> list[str]:
    """Make lists of single values and numbers of texts; tells what is of the wrong type."""
    problems = []
    for name in TEXTS:
        if facts.get(name) is not None and not isinstance(facts[name], str):
            problems.append(f"`{name}` must be a text (put it in quotes), got {facts[name]!r}")
            facts[name] = OPTIONAL.get(name)
    for name in LISTS:
        value = facts.get(name)
        if isinstance(value, str):
            facts[name] = [value]
        elif value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            problems.append(f"`{name}` must be a text or a list of texts, got {value!r}")
            facts[name] = None
    for name in NUMBERS:
        value = facts.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            try:
                facts[name] = float(value) if "." in str(value) or "e" in str(value) else int(value)
            except (TypeError, ValueError):
                problems.append(f"`{name}` must be a number, got {value!r}")
    for name in ("settings", "versions", "licences", "samples_dropped", "turns_dropped"):
        if not isinstance(facts.get(name, {}) or {}, dict):
            problems.append(f"`{name}` must be a mapping, got {facts[name]!r}")
            facts[name] = {}
    return problems


def _check(facts: dict[str, Any], repo_id: str) -> list[str]:
    problems = [
        f"`{field}` must be a name on the Hub, `owner/name`, got {name!r}"
        for field, names in (
            ("repo", [repo_id]),
            ("base_model", facts.get("base_model") or []),
            ("datasets", facts.get("datasets") or []),
        )
        for name in names
        if not is_repo_id(name)
    ]
    for name in ("revision", "base_model_revision"):
        value = facts.get(name)
        if value is not None and not (isinstance(value, str) and REVISION.fullmatch(value)):
            problems.append(f"`{name}` must be a tag, branch or commit, got {value!r}")
    if facts.get("license") is not None and facts["license"] not in LICENCES:
        problems.append(f"`license` {facts['license']!r} is none that the Hub knows; take `other` and license_name")
    if facts["base_model_relation"] not in RELATIONS:
        problems.append(f"`base_model_relation` must be one of {', '.join(RELATIONS)}")
    if facts["license_link"] is not None and not str(facts["license_link"]).startswith(("https://", "LICENSE")):
        problems.append(f"`license_link` must begin with https:// or be LICENSE, got {facts['license_link']!r}")
    problems += [
        f"`language` must be a code such as en, got {code!r}"
        for code in facts.get("language") or []
        if not LANGUAGE.fullmatch(code)
    ]
    problems += [
        f"`license` must be one of {', '.join(bound)} because of the source {name}, got {facts['license']!r}"
        for name, (about, bound) in BINDING.items()
        if about == ("dataset" if "front_matter" in facts else "model")
        and name in (facts.get("sources") or [])
        and facts.get("license") not in (None, *bound)
    ]
    problems += [
        f"{config['name']} holds images of {group['source']}, which may not be handed on; build it with their paths"
        for config in facts.get("configs") or []
        for group in config["groups"]
        if config["images"] != "paths" and group["source"] in NOT_REHOSTED
    ]
    return problems


def _depending(facts: dict[str, Any]) -> dict[str, str]:
    """Facts that are needed because of others."""
    missing = {}
    if facts.get("license") == "other":
        for name in ("license_name", "license_link"):
            if not facts[name]:
                missing[name] = "needed because license is `other`"
    for name in facts.get("sources") or []:
        if name not in SOURCES and name not in facts["licences"]:
            missing[f"licences.{name}"] = f"terms of the source {name!r}, in the mapping `licences`"
    if facts["has_results"] and facts["evaluation"] is None:
        missing["evaluation"] = "figures lie there; `--results` or `sharegpt4v.card_facts` reads them"
    return missing
