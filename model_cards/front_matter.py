"""The metadata at the top of a card: read so that nothing in it is overlooked, written so that nothing breaks out."""

import re
from typing import Any

import yaml


BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice: the later one would silently win."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """
    Split a card into metadata and text.

    Args:
        text (`str`): Of a `README.md`.

    Returns:
        `tuple[dict, str]`: Metadata, empty where there is none; and the Markdown.

    Raises:
        `ValueError`: The metadata is no YAML, no mapping, or names a field twice.
    """
    found = BLOCK.match(text)
    if found is None:
        return {}, text
    try:
        metadata = yaml.load(found.group(1), _UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"The metadata is no YAML: {error}") from error
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError("The metadata is no mapping of fields.")
    return metadata or {}, text[found.end() :]


def join_card(metadata: dict[str, Any], body: str) -> str:
    """
    Put metadata and text together.

    Args:
        metadata (`dict`): Fields; a value is text for YAML, whatever it holds.
        body (`str`): Markdown.

    Returns:
        `str`: Text of a `README.md`.
    """
    dumped = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{dumped}---\n\n{body.strip()}\n"


def listed(value: Any) -> list[Any]:
    """
    A field that may hold one value or several.

    Args:
        value (`Any`): As it was read.

    Returns:
        `list`: Its values; none for nothing.
    """
    return list(value) if isinstance(value, list) else [] if value is None else [value]
