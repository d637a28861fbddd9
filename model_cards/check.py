"""
Check the card of any folder that is, or is to become, a repository of the Hub.

The Hub's own validation of metadata is a request (`huggingface_hub.RepoCard.validate`); this one needs no network, and
looks at what the Hub does not: whether code parses and is pinned, figures have their N, links and files exist.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, ModelCardData, SpaceCardData

from .check_code import check_code
from .check_figures import check_figures
from .check_files import check_adapter, check_dataset, check_metric, check_model
from .findings import Finding
from .front_matter import listed, split_card
from .licences import LICENCES, RELATIONS
from .repo_names import is_repo_id


CARD = "README.md"
BIBTEX = re.compile(r"^(`{3,})bibtex\n.*?^\1", re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(
    r"\{\{.*?\}\}|\{%|\[More\b|more information needed|\b(?:TODO|FIXME|TBD|XXX)\b|<owner>|<your[ -]\w+>|your-username",
    re.IGNORECASE,
)
LOCAL_PATH = re.compile(
    r"(?<![\w/:.~-])(?:/(?:home|Users|root|tmp|work|mnt|data|scratch|private|var|opt|gpfs|lustre|nfs|srv|workspace)/"
    r"|[A-Za-z]:\\|~/|file://)[^\s\"'`)>]*"
)
LOCAL_FOLDERS = ("runs", "checkpoints", "outputs", "output", "results", "data", "models")
LINK = re.compile(r"(?<!\\)\]\(\s*<?([^)\s>]+)>?[^)]*\)")
NUMBER = re.compile(r"\bN = [\d,]*\d")
CARD_DATA = {"dataset": DatasetCardData, "metric": SpaceCardData}


def check_folder(folder: Path, repo_id: str | None = None) -> list[Finding]:
    """
    Check a folder's card against what lies beside it.

    Args:
        folder (`Path`): Of a model, adapters, a dataset or a metric.
        repo_id (`str`, *optional*): Name that the card's code must load.

    Returns:
        `list[Finding]`: Empty for a card that can be published.

    Raises:
        `NotADirectoryError`: There is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder.")
    if not (folder / CARD).is_file():
        return [Finding(CARD, "card", "There is no card. `sharegpt4v card render` writes one.")]
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        metadata, body = split_card(text)
    except (ValueError, UnicodeDecodeError) as error:
        return [Finding(CARD, "metadata", str(error))]
    kind = kind_of(folder, metadata)
    found = [*_check_metadata(metadata, kind), *_check_text(text, body, kind), *_check_links(body, folder)]
    found += check_code(body, repo_id)
    found += check_figures(metadata, folder)
    if kind in ("model", "adapter"):
        found += _check_origin(metadata)
        found += check_adapter(metadata, folder) if kind == "adapter" else check_model(folder)
    elif kind == "dataset":
        found += check_dataset(metadata, folder)
    elif kind == "metric":
        found += check_metric(folder, repo_id)
    return list(dict.fromkeys(found))


def kind_of(folder: Path, metadata: dict[str, Any]) -> str:
    """
    What a folder is, by its files.

    Args:
        folder (`Path`): The folder.
        metadata (`dict`): Of its card.

    Returns:
        `str`: `adapter`, `model`, `dataset`, `metric`, or `unknown`.
    """
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    if "configs" in metadata or "dataset_info" in metadata or any(folder.glob("*/build.json")):
        return "dataset"
    tags = metadata.get("tags")
    return "metric" if "sdk" in metadata or (isinstance(tags, list) and "evaluate" in tags) else "unknown"


def _check_metadata(metadata: dict[str, Any], kind: str) -> Iterator[Finding]:
    if not metadata:
        yield Finding(CARD, "metadata", "The card has no metadata: a block of YAML between two lines of ---.")
    try:
        CARD_DATA.get(kind, ModelCardData)(**metadata)
    except (TypeError, ValueError) as error:
        yield Finding(CARD, "metadata", f"The Hub's library refuses it: {error}")
    for name in (name for name, value in metadata.items() if value in (None, "", [], {})):
        yield Finding(CARD, "metadata", f"`{name}` has no value.")
    licences = [str(one) for one in listed(metadata.get("license")) if one != ""]
    if not licences:
        yield Finding(CARD, "license", "There is no `license`.")
    for licence in licences:
        if licence not in LICENCES:
            yield Finding(CARD, "license", f"{licence!r} is none that the Hub knows; take `other` and license_name.")
        for name in ("license_name", "license_link"):
            if licence == "other" and not metadata.get(name):
                yield Finding(CARD, "license", f"`license: other` needs `{name}`.")


def _check_origin(metadata: dict[str, Any]) -> Iterator[Finding]:
    for field, wanted in (("base_model", "what the training began with"), ("datasets", "what it was trained on")):
        names = [name for name in listed(metadata.get(field)) if name != ""]
        if not names:
            yield Finding(CARD, field, f"There is no `{field}`: {wanted}, as names on the Hub.")
            continue
        for name in names:
            if not is_repo_id(name) or name.split("/")[0] in LOCAL_FOLDERS:
                yield Finding(CARD, field, f"{name!r} is no name on the Hub with its owner.")
    if (relation := metadata.get("base_model_relation")) not in RELATIONS:
        yield Finding(CARD, "base_model", f"`base_model_relation` is one of {', '.join(RELATIONS)}, got {relation!r}.")
    for field in ("library_name", "pipeline_tag"):
        if not metadata.get(field):
            yield Finding(CARD, field, f"There is no `{field}`, by which the Hub shows how to load it.")


def _check_text(text: str, body: str, kind: str) -> Iterator[Finding]:
    for number, line in enumerate(BIBTEX.sub(lambda one: "\n" * one.group().count("\n"), text).splitlines(), start=1):
        for match in PLACEHOLDER.finditer(line):
            yield Finding(CARD, "placeholder", f"Line {number} has {match.group()!r}, which nobody filled in.")
        for match in LOCAL_PATH.finditer(line):
            yield Finding(CARD, "path", f"Line {number} names a path of a machine, {match.group()!r}.")
    if kind in ("model", "adapter", "dataset") and not NUMBER.search(body):
        yield Finding(CARD, "N", "The card does not say how many samples or rows there are, as `N = 12`.")


def _check_links(body: str, folder: Path) -> Iterator[Finding]:
    root = folder.resolve()
    for target in LINK.findall(re.sub(r"^(`{3,}).*?^\1", "", body, flags=re.DOTALL | re.MULTILINE)):
        if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
            if not target.startswith(("https://", "http://", "mailto:")):
                yield Finding(CARD, "link", f"{target!r} is no address of the web.")
            continue
        path = (root / target.partition("#")[0]).resolve()
        if not target.startswith("#") and not (path.is_relative_to(root) and path.exists()):
            yield Finding(CARD, "link", f"{target!r} is not in this folder.")
