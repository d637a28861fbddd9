"""
Metadata of cards as the Hub reads it.

Fields: https://huggingface.co/docs/hub/model-cards and https://huggingface.co/docs/hub/datasets-cards. Values become
YAML by a dumper, never by text, so that no value can add a field.
"""

from typing import Any

from huggingface_hub import DatasetCardData, ModelCardData


PAPER = "arxiv:2311.12793"


def model_metadata(facts: dict[str, Any]) -> dict[str, Any]:
    """
    Metadata of a model, a captioner or adapters.

    Args:
        facts (`dict`): Of [`model_cards.facts.collect`].

    Returns:
        `dict`: Fields in the order of the card.

    Raises:
        `ValueError`: The Hub's library refuses them.
    """
    adapter = facts["kind"] == "adapter"
    tags = ["sharegpt4v", "multimodal", "image-captioning" if facts["kind"] == "captioner" else "vision-language"]
    tags += ["lora"] if adapter else (["llava"] if "Llava" in facts["architecture"] else [])
    tags += ["custom_code"] if facts["remote_code"] else []
    metadata = {
        **_licence(facts),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": facts["base_model"],
        "base_model_relation": facts["base_model_relation"],
        "datasets": facts["datasets"],
        "tags": list(dict.fromkeys([*tags, PAPER, *facts["tags"]])),
    }
    index = (facts["evaluation"] or {}).get("model_index")
    if index:
        metadata["model-index"] = [{**entry, "name": facts["repo_id"].split("/")[1]} for entry in index]
    ModelCardData(**metadata)  # reads `model-index` and refuses what it cannot
    return metadata


def dataset_metadata(facts: dict[str, Any]) -> dict[str, Any]:
    """
    Metadata of a dataset: what its build wrote, `configs` and `dataset_info` above all, and what a person knows.

    Args:
        facts (`dict`): Of [`model_cards.facts.collect`].

    Returns:
        `dict`: Fields in the order of the card.
    """
    built = {name: value for name, value in facts["front_matter"].items() if not name.startswith("license")}
    makers = {"expert-generated" if name == "human" else "machine-generated" for name in facts["made_by"]}
    metadata = {
        **_licence(facts),
        **{name: value for name, value in built.items() if name not in ("language", "configs", "dataset_info")},
        "pretty_name": facts["repo_id"].split("/")[1],
        "annotations_creators": sorted(makers),
        "source_datasets": facts.get("datasets") or ["original"],
        "tags": list(dict.fromkeys(["sharegpt4v", "image-captioning", PAPER, *facts["tags"]])),
        **{name: built[name] for name in ("configs", "dataset_info")},
    }
    DatasetCardData(**metadata)
    return metadata


def metric_metadata(facts: dict[str, Any]) -> dict[str, Any]:
    """
    Metadata of a metric, which is a Space.

    Args:
        facts (`dict`): Of [`model_cards.facts.collect`].

    Returns:
        `dict`: What `evaluation.metrics` wrote, with title, licence and tags of the facts.
    """
    licence = {name: value for name, value in _licence(facts).items() if name != "language"}
    tags = list(dict.fromkeys([*facts["front_matter"].get("tags", []), "evaluate", "metric", *facts["tags"]]))
    return {**facts["front_matter"], "title": facts["title"], **licence, "tags": tags}


def _licence(facts: dict[str, Any]) -> dict[str, Any]:
    language = facts.get("language")
    fields = {
        "language": language[0] if language and len(language) == 1 else language,
        **{name: facts[name] for name in ("license", "license_name", "license_link")},
    }
    return {name: value for name, value in fields.items() if value is not None}
