"""What the Hub makes of the metadata at the top of a card."""

from typing import Any

import yaml


COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SDKS = ("gradio", "docker", "static", "streamlit")


def card_data(text: str) -> dict[str, Any]:
    """
    Read the metadata of a card.

    Args:
        text (`str`): The whole card.

    Returns:
        `dict`: The metadata; empty if there is none.

    Raises:
        `ValueError`: It is no YAML mapping.
    """
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return {}
    end = [line.strip() for line in lines[1:]].index("---") + 1
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError as error:
        raise ValueError(f"bad YAML: {error}") from error
    if not isinstance(found, dict | None):
        raise ValueError("the metadata must be a mapping")
    return found or {}


def faults_of(text: str, kind: str) -> tuple[list[str], list[str]]:
    """
    Check a card as the Hub does before it takes one; of its rules, those that cards of this repository can break.

    Args:
        text (`str`): The whole card.
        kind (`str`): Type of the repository.

    Returns:
        `tuple[list[str], list[str]]`: Errors and warnings.
    """
    try:
        found = card_data(text)
    except ValueError as error:
        return [str(error)], []
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    for name in ("license", "license_name", "license_link", "pipeline_tag", "library_name", "title", "sdk"):
        if name in found and not isinstance(found[name], str | list if name == "license" else str):
            errors.append(f'"{name}" must be a string')
    for name in ("tags", "datasets", "language", "base_model", "metrics"):
        values = found.get(name, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{name}" must be a string or a list of strings')
    if not isinstance(found.get("model-index", []), list):
        errors.append('"model-index" must be an array')
    for model in found.get("model-index", []):
        if not isinstance(model, dict) or not model.get("name") or not isinstance(model.get("results"), list):
            errors.append('"model-index" must have a name and results')
    for name in ("colorFrom", "colorTo"):
        if kind == "space" and name in found and found[name] not in COLOURS:
            errors.append(f'"{name}" must be one of [{", ".join(COLOURS)}]')
    if kind == "space" and found.get("sdk", SDKS[0]) not in SDKS:
        errors.append(f'"sdk" must be one of [{", ".join(SDKS)}]')
    if len(str(found.get("short_description", ""))) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors, []
